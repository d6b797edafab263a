# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels, run thread by thread on the CPU: the same sources, walks, fragments and barriers."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcq.bcq import BcqWeight
from bcq.kernels import cuda as bcq_cuda
from bcq.kernels.core import Core
from bcq.kernels.cuda import Cuda, CudaWeight
from bcq.packing import among, pack, unpack
from cuda_builds import cuda_weight, emulated, from_brain, multiply, on_guarded_pages, to_brain
from guarded import guarded
from native_builds import RUNTIME, compiler
from nodes import Array, activations, magnitudes, product, random_weight

ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
TILES = ("tiles8", "tiles16", "tiles32", "tiles64", "wide128")
ROWS_OF = {
    "digits": (1, 2, 3),
    "tiles8": (3, 8, 9),
    "tiles16": (13,),
    "tiles32": (20,),
    "tiles64": (65,),
    "wide128": (5, 130),
    "generic": (1, 5),
}


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Cuda:
    return emulated(tmp_path_factory.getbasetemp() / "any")


def fed(values: Array, dtype: str) -> tuple[Array, Array]:
    """Activations in a type, and the values that they stand for."""
    if dtype == "bfloat16":
        bits = to_brain(values)
        return bits, from_brain(bits)
    typed = values.astype(dtype)
    return typed, typed.astype(np.float32)


def bound(kernel: str, dtype: str, values: Array, weight: BcqWeight) -> Array:
    """Largest error of an output.

    digits: v is rounded by at most 2^-23 of the step's largest activation, which is at most that of the row;
    everything behind it is exact or one of a few float32 roundings a step. tiles: a weight is rounded once to
    the type of A. generic and all sums: as float32 sums round, K + 2 q + 2 times. The result is rounded once.
    """
    sums = (weight.inputs + 2 * weight.bits + 2) * 2.0**-24 * magnitudes(values, weight)
    if kernel == "digits":
        largest = np.abs(values.astype(np.float64)).max(axis=1, initial=0.0)[:, None]
        sums += 2.0**-23 * magnitudes(np.broadcast_to(largest, values.shape), weight)
    if kernel in TILES:
        sums += ROUNDING[dtype] * magnitudes(values, weight)
    return np.asarray(sums + ROUNDING[dtype] * (np.abs(product(values, weight)) + sums) + 2.0**-24)


def cases() -> list[tuple[str, str, int, tuple[int, int], int, int, bool]]:
    """Kernel, type, M, (N, K), planes, group size, offset: each kernel meets every size and bit width."""
    sizes = [(16, 32), (17, 33), (40, 300), (75, 520), (1, 1), (33, 129)]
    found = []
    for kernel, rows in ROWS_OF.items():
        types = (
            ("float32", "float16", "bfloat16") if kernel in ("digits", "generic") else ("float16", "bfloat16")
        )
        planes = (1, 2, 3, 4, 5, 8) if kernel == "generic" else (1, 2, 3, 4)
        groups = itertools.cycle((32, 64, 128, 96, 0, 256))
        many = zip(
            itertools.cycle(types), itertools.cycle(rows), itertools.cycle(planes), range(12), strict=False
        )
        for dtype, M, bits, i in many:
            N, K = sizes[i % len(sizes)]
            found.append((kernel, dtype, M, (N, K), bits, next(groups) or K, i % 2 == 0))
    return found


@pytest.mark.parametrize(("kernel", "dtype", "M", "size", "bits", "group", "offset"), cases())
def test_every_kernel_agrees_with_float64_and_touches_only_its_tensors(
    cuda: Cuda, kernel: str, dtype: str, M: int, size: tuple[int, int], bits: int, group: int, offset: bool
) -> None:
    N, K = size
    weight = random_weight(N, K, bits, group, offset)
    a, values = fed(activations(M, K), dtype)
    y = multiply(cuda, guarded(a), on_guarded_pages(pack(weight)), kernel=kernel)
    result = from_brain(y) if dtype == "bfloat16" else y
    assert (
        np.abs(result.astype(np.float64) - product(values, weight)) <= bound(kernel, dtype, values, weight)
    ).all()


@pytest.mark.parametrize("kernel", ["digits", *TILES])
def test_float16_results_are_within_a_thousandth_of_float64(cuda: Cuda, kernel: str) -> None:
    weight = random_weight(64, 640, 3, 128)
    a = activations(ROWS_OF[kernel][0], 640, np.float16)
    exact = product(a, weight)
    error = multiply(cuda, a, pack(weight), kernel=kernel).astype(np.float64) - exact
    assert np.linalg.norm(error) < 1e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize("kernel", ["digits", "tiles8", "tiles16", "generic"])
def test_the_first_planes_of_wider_codes_are_a_weight_of_their_own(cuda: Cuda, kernel: str) -> None:
    wide = pack(random_weight(40, 200, 4, 64))
    own = random_weight(40, 200, 2, 64, offset=True)
    coarser = BcqWeight(unpack(wide).words[:2], own.alpha, own.offset, 200, 64)
    a = activations(3, 200, np.float16)
    inside = multiply(cuda, a, on_guarded_pages(among(pack(coarser), wide.codes)), kernel=kernel)
    np.testing.assert_array_equal(inside, multiply(cuda, a, on_guarded_pages(pack(coarser)), kernel=kernel))


@pytest.mark.parametrize("kernel", ["digits", "tiles8", "tiles16", "wide128", "generic"])
def test_results_are_the_same_bits_in_any_order_of_threads_and_blocks(
    cuda: Cuda, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack(random_weight(200, 650, 3, 64, offset=True))
    a = activations(3, 650, np.float16)
    once = multiply(cuda, a, packed, kernel=kernel)
    monkeypatch.setenv("BCQ_CUDA_REVERSED", "1")
    monkeypatch.setenv("BCQ_CUDA_EMULATED_PROCESSORS", "1")  # blocks walk through several row blocks
    np.testing.assert_array_equal(once, multiply(cuda, a, packed, kernel=kernel))


@pytest.mark.parametrize("bits", [1, 3])
def test_activations_that_outgrow_shared_memory_come_in_panels(
    cuda: Cuda, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack(random_weight(130, 1500, bits, 32))
    a = activations(2, 1500, np.float16)
    once = multiply(cuda, a, packed, kernel="digits")
    monkeypatch.setenv("BCQ_CUDA_EMULATED_SHARED", "9000")  # 16 of 47 steps at once
    monkeypatch.setenv("BCQ_CUDA_EMULATED_PROCESSORS", "1")
    np.testing.assert_array_equal(once, multiply(cuda, a, packed, kernel="digits"))


def test_tile_kernels_run_in_the_shared_memory_of_the_oldest_devices(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BCQ_CUDA_EMULATED_SHARED", str(64 * 1024))
    weight = random_weight(40, 520, 4, 32)
    a = activations(20, 520, np.float16)
    y = multiply(cuda, a, pack(weight), kernel="tiles64").astype(np.float64)
    assert (np.abs(y - product(a, weight)) <= bound("tiles64", "float16", a, weight)).all()


@pytest.mark.parametrize("kernel", ["digits", "tiles8", "wide128", "generic"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_an_activation_that_is_not_finite_reaches_its_own_row_only(
    cuda: Cuda, kernel: str, poison: float
) -> None:
    packed = pack(random_weight(20, 200, 2, 64))
    a = activations(4, 200, np.float16)
    clean = multiply(cuda, a, packed, kernel=kernel)
    a[1, 77] = poison
    y = multiply(cuda, a, packed, kernel=kernel)
    assert not np.isfinite(y[1]).any()
    np.testing.assert_array_equal(y[[0, 2, 3]], clean[[0, 2, 3]])


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e30])
def test_float32_activations_of_any_size_keep_their_digits(cuda: Cuda, scale: float) -> None:
    weight = random_weight(20, 200, 2, 64)
    a = (activations(2, 200) * scale).astype(np.float32)
    exact = product(a, weight)
    error = multiply(cuda, a, pack(weight), kernel="digits").astype(np.float64) - exact
    assert np.linalg.norm(error) < 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize("kernel", ["digits", "tiles8", "wide128", "generic"])
def test_rows_may_lie_apart_and_at_odd_addresses(cuda: Cuda, kernel: str) -> None:
    packed = pack(random_weight(20, 100, 2, 32))
    a = activations(3, 100, np.float16)
    wide = np.zeros((3, 107), np.float16)[:, 3:103]
    wide[...] = a
    y = np.full((3, 25), -1, np.float16)
    cuda.matmul(
        cuda_weight(packed),
        M=3,
        dtype="float16",
        a=wide.ctypes.data,
        a_stride=107,
        y=y.ctypes.data,
        y_stride=25,
        kernel=kernel,
    )
    np.testing.assert_array_equal(y[:, :20], multiply(cuda, a, packed, kernel=kernel))
    assert (y[:, 20:] == -1).all()


@pytest.mark.parametrize("processors", [1, 132])
@pytest.mark.parametrize(("stages", "bits"), [(1, 4), (2, 1), (4, 3)])
def test_the_wide_kernel_goes_round_its_slots_with_one_or_two_sets_of_warps(
    cuda: Cuda, stages: int, bits: int, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the reversed order instructions run as late as their wait allows: what they read must still be there.
    # One multiprocessor gets two blocks of 256 rows, many get four of 128.
    weight = random_weight(400, 128 * stages - 40, bits, 64, offset=True)
    a = activations(3, weight.inputs, np.float16)
    monkeypatch.setenv("BCQ_CUDA_EMULATED_PROCESSORS", str(processors))
    once = multiply(cuda, a, on_guarded_pages(pack(weight)), kernel="wide128")
    monkeypatch.setenv("BCQ_CUDA_REVERSED", "1")
    np.testing.assert_array_equal(once, multiply(cuda, a, pack(weight), kernel="wide128"))
    allowed = bound("wide128", "float16", a, weight)
    assert (np.abs(once.astype(np.float64) - product(a, weight)) <= allowed).all()


def test_the_wide_kernel_is_for_one_kind_of_device_and_not_selected(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "wide128" not in {chosen(cuda, M) for M in (1, 3, 64, 128, 512, 4096)}
    monkeypatch.setenv("BCQ_CUDA_EMULATED_SM", "100")
    with pytest.raises(ValueError, match=r"wide128: needs compute capability 9\.0"):
        multiply(cuda, activations(3, 100, np.float16), pack(random_weight(20, 100, 2, 32)), kernel="wide128")


def test_no_rows_are_no_work(cuda: Cuda) -> None:
    packed = pack(random_weight(20, 100, 2, 32))
    assert multiply(cuda, np.zeros((0, 100), np.float16), packed).shape == (0, 20)
    cuda.gather(cuda_weight(packed), count=0, indices=0, y=0)


@pytest.mark.parametrize(("bits", "group", "offset"), [(1, 32, False), (3, 128, True), (8, 300, True)])
@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_gather_gives_the_bits_of_the_specification(
    cuda: Cuda, bits: int, group: int, offset: bool, dtype: Any
) -> None:
    packed = pack(random_weight(50, 300, bits, group, offset))
    indices = np.array([0, 49, -1, -50, 17, 17], dtype)
    y = np.full((6, 300), np.nan, np.float32)
    held = on_guarded_pages(packed)
    cuda.gather(
        cuda_weight(held),
        count=6,
        indices=indices.ctypes.data,
        y=y.ctypes.data,
        index_is_int32=dtype is np.int32,
    )
    np.testing.assert_array_equal(y, Core.load().gather(indices, packed, kernel="scalar"))


def test_gather_rounds_to_the_type_that_is_asked_for(cuda: Cuda) -> None:
    packed = pack(random_weight(20, 70, 2, 32))
    indices = np.arange(20)
    y = np.zeros((20, 70), np.float16)
    cuda.gather(cuda_weight(packed), count=20, indices=indices.ctypes.data, y=y.ctypes.data, dtype="float16")
    np.testing.assert_array_equal(y, Core.load().gather(indices, packed, kernel="scalar").astype(np.float16))


@pytest.mark.parametrize("index", [20, -21, 2**40, -(2**63)])
def test_gather_makes_a_row_of_nan_of_an_index_that_does_not_exist(cuda: Cuda, index: int) -> None:
    packed = pack(random_weight(20, 70, 2, 32))
    indices = np.array([3, index])
    y = np.zeros((2, 70), np.float32)
    held = on_guarded_pages(packed)
    cuda.gather(cuda_weight(held), count=2, indices=indices.ctypes.data, y=y.ctypes.data)
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).all()


def chosen(
    cuda: Cuda, M: int, dtype: str = "float16", planes: int = 3, sm: int = 90, level: int = 0
) -> str | None:
    weight = CudaWeight(0, 0, 0, None, 17408, 5120, 128, planes)
    return cuda.select(weight, M=M, dtype=dtype, sm=sm, processors=132, accuracy_level=level)


def test_rows_type_level_and_planes_select_the_kernel(cuda: Cuda) -> None:
    assert [chosen(cuda, M) for M in (1, 2, 4, 16, 512)] == [
        "digits",
        "digits",
        "tiles8",
        "tiles16",
        "tiles64",
    ]
    assert chosen(cuda, 64, "float32") == "digits"
    assert chosen(cuda, 64, "bfloat16", sm=75) == "digits"
    assert chosen(cuda, 512, "bfloat16", sm=80) == "tiles64"
    assert chosen(cuda, 1, level=1) == "generic"
    assert chosen(cuda, 64, planes=5) == "generic"


@pytest.mark.parametrize(
    ("kernel", "a", "bits", "reason"),
    [
        ("nothing", np.float16, 2, "unknown kernel"),
        ("tiles8", np.float32, 2, "takes float16 and bfloat16"),
        ("digits", np.float16, 5, "at most four planes"),
    ],
)
def test_a_kernel_that_does_not_take_a_problem_says_why(
    cuda: Cuda, kernel: str, a: Any, bits: int, reason: str
) -> None:
    packed = pack(random_weight(20, 100, bits, 32))
    with pytest.raises(ValueError, match=reason):
        multiply(cuda, activations(3, 100, a), packed, kernel=kernel)


def test_structures_have_the_offsets_of_the_header(tmp_path: Path) -> None:
    lines = ['#include "cuda/bcq_cuda.h"', "#include <stdio.h>", "int main(void) {"]
    expected = []
    for name, structure in (
        ("BcqCudaMatMul", bcq_cuda.MatMulProblem),
        ("BcqCudaGather", bcq_cuda.GatherProblem),
    ):
        for field in structure._fields_:
            lines.append(f'printf("%zu\\n", offsetof({name}, {field[0]}));')
            expected.append(getattr(structure, field[0]).offset)
        lines.append(f'printf("%zu\\n", sizeof({name}));')
        expected.append(ctypes.sizeof(structure))
    source = tmp_path / "offsets.c"
    source.write_text(
        "\n".join([*lines, f'printf("%d\\n", {bcq_cuda.ABI} == BCQ_CUDA_ABI); }}']), encoding="utf-8"
    )
    program = tmp_path / "offsets"
    subprocess.run([compiler("gcc"), f"-I{RUNTIME}", str(source), "-o", str(program)], check=True)
    found = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.split()
    assert [int(line) for line in found] == [*expected, 1]


def test_doctor_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCQ_CUDA_LIBRARY", str(tmp_path / "none.so"))
    assert "is not there" in str(bcq_cuda.facts()["missing"])
    (tmp_path / "none.so").write_bytes(b"no library")
    assert "cannot be used" in str(bcq_cuda.facts()["missing"])


def test_kernels_use_the_gpu_through_two_headers_only() -> None:
    allowed = {"simt.h", "simt_wide.h", "device.h", "device.cu"}
    words = ("__shfl", "__syncthreads", "threadIdx", "asm(", "cuda_fp16", "atomicAdd", "cudaMalloc")
    for source in (RUNTIME / "cuda").iterdir():
        text = source.read_text(encoding="utf-8")
        found = [word for word in words if word in text]
        assert source.name in allowed or not found, (source.name, found)
        assert "atomicAdd" not in text
        assert "cudaMalloc" not in text


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize(
    ("header", "kernel", "device"),
    [("tiles.h", "tiles_kernel<false, 3, 1>", "80"), ("wide.h", "wide_kernel<false, 3, 2>", "90a")],
)
def test_nvcc_compiles_a_kernel_without_spills_or_waits(
    header: str, kernel: str, device: str, tmp_path: Path
) -> None:
    source = tmp_path / "one.cu"
    source.write_text(
        f'#include "cuda/{header}"\nnamespace bcq::cuda {{\n'
        f"template __global__ void {kernel}(MatMul, bool);\n}}\n",
        encoding="utf-8",
    )
    command = [
        "nvcc",
        "-std=c++17",
        f"-gencode=arch=compute_{device},code=sm_{device}",
        f"-I{RUNTIME}",
        "-Xptxas=-v",
        "-cubin",
        "-o",
        str(tmp_path / "one"),
        str(source),
    ]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert "0 bytes spill stores" in report
    assert "Potential Performance Loss" not in report  # where ptxas waits for each wide instruction
