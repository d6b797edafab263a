# SPDX-License-Identifier: Apache-2.0
"""The C interface (runtime/capi/bcq.h): products, look-ups, refusals, and the reader of exported models."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from bcq import contract
from bcq.bcq import BcqWeight
from bcq.exporting.write import write_model
from bcq.packing import PackedWeight, pack
from native_builds import RUNTIME
from nodes import activations, among_planes, attributes, product, random_weight
from sdk_builds import EXAMPLES, cmake, install, ran, shared

ABI = 1
FLOAT32, FLOAT16 = 0, 1


class Matrix(ctypes.Structure):
    """``BcqMatrix``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("N", "K", "group_size")),
        *((name, ctypes.c_int32) for name in ("bits", "planes")),
        *((name, ctypes.c_void_p) for name in ("codes", "alpha_1", "alpha_rest", "offset")),
    )


class Gemm(ctypes.Structure):
    """``BcqGemm``."""

    _fields_ = (
        ("struct_bytes", ctypes.c_size_t),
        ("matrix", ctypes.POINTER(Matrix)),
        ("M", ctypes.c_int64),
        ("type", ctypes.c_int32),
        ("accuracy_level", ctypes.c_int32),
        ("a", ctypes.c_void_p),
        ("a_stride", ctypes.c_int64),
        ("y", ctypes.c_void_p),
        ("y_stride", ctypes.c_int64),
        ("scratch", ctypes.c_void_p),
        ("scratch_bytes", ctypes.c_size_t),
        ("parallel_for", ctypes.c_void_p),
        ("pool", ctypes.c_void_p),
    )


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed package."""
    return install(tmp_path_factory.mktemp("sdk"))


@pytest.fixture(scope="module")
def library(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The C interface of its static library."""
    folder = tmp_path_factory.mktemp("shared")
    loaded = ctypes.CDLL(str(shared(next(prefix.glob("lib*/**/libbcq_core.a")), folder / "libbcq_c.so")))
    for name in ("version", "gemm", "gemm_kernel", "rows", "model_name"):
        getattr(loaded, f"bcq_{name}").restype = ctypes.c_char_p
    for name in ("gemm_scratch_bytes", "model_count"):
        getattr(loaded, f"bcq_{name}").restype = ctypes.c_size_t
    loaded.bcq_rows.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
    loaded.bcq_model_open.restype = ctypes.c_void_p
    loaded.bcq_model_open.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
    loaded.bcq_model_close.argtypes = (ctypes.c_void_p,)
    loaded.bcq_model_count.argtypes = (ctypes.c_void_p,)
    loaded.bcq_model_name.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    for name, key in (("matrix", ctypes.c_size_t), ("find", ctypes.c_char_p)):
        function = getattr(loaded, f"bcq_model_{name}")
        function.restype, function.argtypes = ctypes.POINTER(Matrix), (ctypes.c_void_p, key)
    return loaded


def matrix_of(packed: PackedWeight) -> Matrix:
    """Its tensors, which must live as long."""
    return Matrix(
        packed.rows, packed.inputs, packed.group_size, packed.bits, packed.planes,
        packed.codes.ctypes.data, packed.alpha_1.ctypes.data,
        packed.alpha_rest.ctypes.data if packed.alpha_rest.size else None,
        packed.offset.ctypes.data if packed.offset.size else None,
    )  # fmt: skip


def gemm_of(matrix: Matrix, a: Any, y: Any) -> Gemm:
    gemm = Gemm(ctypes.sizeof(Gemm), ctypes.pointer(matrix), a.shape[0])
    gemm.type = FLOAT16 if a.dtype == np.float16 else FLOAT32
    gemm.a, gemm.y = a.ctypes.data, y.ctypes.data
    return gemm


def aligned(bytes_: int) -> Any:
    whole = np.zeros(bytes_ + 64, np.uint8)
    return whole[-whole.ctypes.data % 64 :]


def test_the_version_is_that_of_the_package(library: ctypes.CDLL) -> None:
    pyproject = (RUNTIME.parent / "pyproject.toml").read_text(encoding="utf-8")
    declared = re.search(r'^version = "(.*)"', pyproject, re.MULTILINE)
    assert declared is not None
    assert library.bcq_version().decode() == declared[1]
    assert library.bcq_abi_version() == ABI


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("bits", "offset"), [(1, False), (3, True)])
def test_a_product_on_own_buffers_is_that_of_the_oracle(
    library: ctypes.CDLL, dtype: Any, bits: int, offset: bool
) -> None:
    weight = random_weight(40, 100, bits, 32, offset)
    packed, a = pack(weight), activations(3, 100).astype(dtype)
    y = np.zeros((3, 40), dtype)
    gemm = gemm_of(matrix_of(packed), a, y)
    scratch = aligned(library.bcq_gemm_scratch_bytes(ctypes.byref(gemm)))
    gemm.scratch, gemm.scratch_bytes = scratch.ctypes.data, scratch.size
    assert library.bcq_gemm(ctypes.byref(gemm)) is None
    # The scalar kernel sums in double; what is left is the rounding of Y: half a step of float32 or float16.
    relative = 2.0**-10 if dtype == np.float16 else 1e-6
    np.testing.assert_allclose(y, product(a, weight), rtol=relative, atol=1e-3 * relative)


def test_strides_step_over_what_is_not_theirs(library: ctypes.CDLL) -> None:
    weight = random_weight(20, 64, 2, 32)
    packed, a = pack(weight), activations(3, 80)
    y = np.full((3, 33), 7, np.float32)
    gemm = gemm_of(matrix_of(packed), a, y)
    gemm.a_stride, gemm.y_stride = 80, 33
    assert library.bcq_gemm(ctypes.byref(gemm)) is None
    np.testing.assert_allclose(y[:, :20], product(a[:, :64], weight), rtol=1e-6, atol=1e-6)
    assert (y[:, 20:] == 7).all()


def test_the_first_planes_of_codes_that_hold_more_are_a_matrix(library: ctypes.CDLL) -> None:
    weight = random_weight(20, 64, 2, 32)
    packed, a, y = among_planes(weight, 4), activations(3, 64), np.zeros((3, 20), np.float32)
    gemm, rows = gemm_of(matrix_of(packed), a, y), np.zeros((1, 64), np.float32)
    assert library.bcq_gemm(ctypes.byref(gemm)) is None
    np.testing.assert_allclose(y, product(a, weight), rtol=1e-6, atol=1e-6)
    assert library.bcq_rows(gemm.matrix, np.array([7]).ctypes.data, 1, rows.ctypes.data) is None
    np.testing.assert_allclose(rows[0], weight.dequantize()[7], rtol=0, atol=8 * 2.0**-23)


def test_rows_are_looked_up(library: ctypes.CDLL) -> None:
    weight = random_weight(20, 70, 3, 32)
    matrix, wanted = matrix_of(packed := pack(weight)), np.array([3, -1, 3], np.int64)
    y = np.zeros((3, 70), np.float32)
    assert packed.rows == 20
    assert library.bcq_rows(ctypes.addressof(matrix), wanted.ctypes.data, 3, y.ctypes.data) is None
    np.testing.assert_allclose(y, weight.dequantize()[wanted], rtol=0, atol=8 * 2.0**-23)
    wanted[1] = 20
    assert b"N - 1" in library.bcq_rows(ctypes.addressof(matrix), wanted.ctypes.data, 3, y.ctypes.data)


WRONG = [
    ("struct_bytes", 8, "struct_bytes"),
    ("M", -1, "M:"),
    ("type", 2, "type:"),
    ("accuracy_level", 5, "accuracy_level:"),
    ("a", None, "a:"),
    ("a", 1, "a:"),
    ("y", None, "y:"),
    ("a_stride", 99, "a_stride:"),
    ("y_stride", 39, "y_stride:"),
    ("scratch", None, "scratch:"),
    ("scratch", 32, "scratch:"),
    ("scratch_bytes", 1, "scratch_bytes:"),
    ("matrix.N", 0, "matrix N:"),
    ("matrix.K", 2**31, "matrix K:"),
    ("matrix.bits", 9, "matrix bits:"),
    ("matrix.planes", 1, "matrix planes:"),
    ("matrix.group_size", 48, "matrix group_size:"),
    ("matrix.codes", None, "matrix codes:"),
    ("matrix.codes", 2, "matrix codes:"),
    ("matrix.alpha_1", None, "matrix alpha_1:"),
    ("matrix.alpha_rest", None, "matrix alpha_rest:"),
    ("matrix.offset", 1, "matrix offset:"),
]


@pytest.mark.parametrize(("field", "value", "told"), WRONG)
def test_what_a_caller_gets_wrong_is_named_and_nothing_is_written(
    library: ctypes.CDLL, field: str, value: int | None, told: str
) -> None:
    packed = pack(random_weight(40, 100, 2, 32))
    a, y = activations(2, 100).astype(np.float16), np.zeros((2, 40), np.float16)
    matrix = matrix_of(packed)
    gemm = gemm_of(matrix, a, y)
    scratch = aligned(library.bcq_gemm_scratch_bytes(ctypes.byref(gemm)))
    gemm.scratch, gemm.scratch_bytes = scratch.ctypes.data, scratch.size
    *owner, name = field.split(".")
    setattr(gemm.matrix.contents if owner else gemm, name, value)
    assert library.bcq_gemm(ctypes.byref(gemm)).decode().startswith(told)
    assert not y.any()


def test_a_null_pointer_is_refused_everywhere(library: ctypes.CDLL) -> None:
    assert library.bcq_gemm(None) is not None
    assert library.bcq_gemm_kernel(None) is None
    assert library.bcq_rows(None, None, 0, None) is not None
    assert library.bcq_model_open(None, None, 0) is None
    assert library.bcq_model_count(None) == 0
    assert not library.bcq_model_find(None, b"x")
    library.bcq_model_close(None)


Written = tuple[Path, dict[str, BcqWeight]]
NAMES = ("large", "small")  # the factors of a small matrix lie in the graph file itself


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A model of two matrices, one of which two nodes share."""
    folder = tmp_path_factory.mktemp("written")
    weights = {"large": random_weight(300, 300, 3, 32, True), "small": random_weight(5, 300, 1, 300)}
    tensors = {
        f"{name}.{part}": array
        for name, weight in weights.items()
        for part, array in pack(weight).tensors().items()
    }
    nodes = [_node(name, weights[name], index) for index, name in enumerate(["large", "small", "large"])]
    graph = helper.make_graph(
        nodes,
        "matrices",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, ["M", 300])],
        [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node in nodes],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(contract.DOMAIN, contract.OPSET_VERSION)]
    write_model(
        ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10)), folder / "model.onnx"
    )
    return folder, weights


def _node(name: str, weight: BcqWeight, index: int) -> onnx.NodeProto:
    inputs = [f"{name}.{port.name}" for port in contract.MATMUL.inputs[1:]]
    return helper.make_node(
        contract.MATMUL.name,
        ["A", *inputs],
        [f"Y_{index}"],
        domain=contract.DOMAIN,
        **attributes(contract.MATMUL, pack(weight)),
    )


@contextmanager
def opened(library: ctypes.CDLL, path: Path) -> Iterator[int]:
    why = ctypes.create_string_buffer(400)
    model = library.bcq_model_open(str(path).encode(), why, 400)
    assert model is not None, why.value
    yield model
    library.bcq_model_close(model)


def test_the_reader_finds_the_bytes_that_were_packed(library: ctypes.CDLL, written: Written) -> None:
    folder, weights = written
    with opened(library, folder) as model:
        count = library.bcq_model_count(model)
        assert [library.bcq_model_name(model, i).decode() for i in range(count)] == list(NAMES)
        assert library.bcq_model_name(model, count) is None
        assert not library.bcq_model_find(model, b"none")
        for name in NAMES:
            found, packed = library.bcq_model_find(model, name.encode()).contents, pack(weights[name])
            assert (found.N, found.K, found.bits) == (packed.rows, packed.inputs, packed.bits)
            for part in ("codes", "alpha_1", "alpha_rest", "offset"):
                expected = getattr(packed, part).tobytes()
                address = getattr(found, part)
                assert (ctypes.string_at(address, len(expected)) if address else b"") == expected, part


def test_a_matrix_of_a_file_multiplies(library: ctypes.CDLL, written: Written) -> None:
    a, y = activations(2, 300), np.zeros((2, 300), np.float32)
    with opened(library, written[0] / "model.onnx") as model:
        gemm = gemm_of(library.bcq_model_matrix(model, 0).contents, a, y)
        assert library.bcq_gemm(ctypes.byref(gemm)) is None
    np.testing.assert_allclose(y, product(a, written[1]["large"]), rtol=1e-5, atol=1e-4)


def refusal(library: ctypes.CDLL, path: Path) -> str:
    why = ctypes.create_string_buffer(400)
    assert library.bcq_model_open(str(path).encode(), why, 400) is None
    return why.value.decode()


def test_a_graph_that_is_cut_short_is_refused_wherever_it_ends(
    library: ctypes.CDLL, written: Written, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(written[0], tmp_path / "model"))
    whole = (folder / "model.onnx").read_bytes()
    ends = len(onnx.load_model_from_string(whole).SerializeToString())
    for length in range(0, ends, 61):
        (folder / "model.onnx").write_bytes(whole[:length])
        model = library.bcq_model_open(str(folder).encode(), None, 0)
        library.bcq_model_close(model)  # a cut between two fields leaves a model with less in it
    (folder / "model.onnx").write_bytes(whole[: ends // 2])
    assert "cut short" in refusal(library, folder)


def test_bytes_that_changed_never_end_the_process(
    library: ctypes.CDLL, written: Written, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(written[0], tmp_path / "model"))
    whole, rng = bytearray((folder / "model.onnx").read_bytes()), np.random.default_rng(0)
    for position, value in zip(rng.integers(0, len(whole), 1500), rng.integers(0, 256, 1500), strict=True):
        damaged = bytearray(whole)
        damaged[position] = value
        (folder / "model.onnx").write_bytes(damaged)
        library.bcq_model_close(library.bcq_model_open(str(folder).encode(), None, 0))


def test_data_that_is_cut_short_elsewhere_or_a_link_is_refused(
    library: ctypes.CDLL, written: Written, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(written[0], tmp_path / "model"))
    data = folder / "model.onnx.data"
    whole = data.read_bytes()
    data.write_bytes(whole[:-5000])
    assert "cut short" in refusal(library, folder)
    data.unlink()
    assert "No such file" in refusal(library, folder)
    (tmp_path / "elsewhere").write_bytes(whole)
    data.symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in refusal(library, folder)
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../elsewhere" if entry.key == "location" else entry.value
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    assert "another folder" in refusal(library, folder)


def test_sizes_that_do_not_fit_are_refused_with_the_words_of_the_operators(
    library: ctypes.CDLL, written: Written, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(written[0], tmp_path / "model"))
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    (attribute,) = [a for a in model.graph.node[0].attribute if a.name == "K"]
    attribute.i = 3000
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    assert re.search(
        r"codes shape: got \[19, 10, 3, 16\], expected \[19, 94, 3, 16\]", refusal(library, folder)
    )
    assert "Is a directory" not in refusal(library, folder)
    assert "no ONNX model" in refusal(library, RUNTIME.parent / "LICENSE")


def changed(written: Written, folder: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    """A copy of the written model whose graph says something else."""
    shutil.copytree(written[0], folder)
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def place_of(model: onnx.ModelProto, name: str, key: str) -> onnx.StringStringEntryProto:
    """An entry of a tensor's external data."""
    tensors = (tensor for tensor in model.graph.initializer if tensor.name == name)
    (entry,) = [entry for tensor in tensors for entry in tensor.external_data if entry.key == key]
    found: onnx.StringStringEntryProto = entry
    return found


def overlap(model: onnx.ModelProto) -> None:
    place_of(model, "large.alpha_1", "offset").value = place_of(model, "large.codes", "offset").value


def store_twice(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    tensor.raw_data = b"1234"


TWICE: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "an attribute": (
        lambda m: m.graph.node[0].attribute.append(m.graph.node[0].attribute[0]),
        "got it twice",
    ),
    "an initializer": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "got it twice"),
    "bytes": (overlap, "overlaps that of another tensor"),
    "data": (store_twice, "both inside and outside"),
}


@pytest.mark.parametrize("what", TWICE)
def test_what_a_file_says_twice_is_refused(
    library: ctypes.CDLL, written: Written, tmp_path: Path, what: str
) -> None:
    change, reason = TWICE[what]
    told = refusal(library, changed(written, tmp_path / "model", change))
    assert reason in told
    assert "model.onnx" in told


def test_a_refusal_is_one_clean_line_however_long(
    library: ctypes.CDLL, written: Written, tmp_path: Path
) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.node[0].name = "two\nlines \x7f" + "\u00e4" * 300
        model.graph.node[0].attribute[0].i = 99

    folder = changed(written, tmp_path / "model", rename)
    told = refusal(library, folder)  # decodes it: no character is cut in half
    assert "two?lines ?\u00e4" in told
    assert len(told.encode()) in (398, 399)


def test_factors_that_many_matrices_share_are_copied_once(
    library: ctypes.CDLL, written: Written, tmp_path: Path
) -> None:
    def share(model: onnx.ModelProto) -> None:
        codes = next(tensor for tensor in model.graph.initializer if tensor.name == "small.codes")
        for number in range(3):
            copy, node = model.graph.initializer.add(), model.graph.node.add()
            copy.CopyFrom(codes)
            node.CopyFrom(model.graph.node[1])
            copy.name = node.input[1] = f"copy_{number}.codes"

    with opened(library, changed(written, tmp_path / "model", share)) as model:
        names = [b"small", *(b"copy_%d" % number for number in range(3))]
        found = [library.bcq_model_find(model, name).contents for name in names]
        assert len({matrix.alpha_1 for matrix in found}) == 1


def test_external_data_counts_only_where_the_tensor_says_that_it_is_external(
    library: ctypes.CDLL, written: Written, tmp_path: Path
) -> None:
    def inside(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "large.codes")
        entries = list(tensor.external_data)
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(written[0]))
        tensor.data_location = TensorProto.DEFAULT
        tensor.external_data.extend(entries)
        place_of(model, "large.codes", "location").value = "../elsewhere"

    with opened(library, changed(written, tmp_path / "model", inside)) as model:
        matrix = library.bcq_model_find(model, b"large").contents
        expected = pack(written[1]["large"]).codes.tobytes()
        assert ctypes.string_at(matrix.codes, len(expected)) == expected


def test_the_examples_build_against_the_installed_package_and_run(
    prefix: Path, written: Written, tmp_path: Path
) -> None:
    files = {path.name for path in prefix.rglob("*") if path.is_file()}
    assert {"bcq.h", "bcq_decoder.h", "bcq_ops.h", "bcqConfig.cmake"} <= files
    assert {"libbcq_ops.so", "libbcq_core.a", "libbcq_native.a"} <= files
    assert {"LICENSE", "contract.json", "embedding.md", "generate.cc"} <= files
    cmake("-S", EXAMPLES, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}", f"-DONNXRUNTIME_ROOT={tmp_path}")
    assert f"bcq_DIR:PATH={prefix}" in (tmp_path / "CMakeCache.txt").read_text(encoding="utf-8")
    cmake("--build", tmp_path, "--target", "gemm", "matrices", "native")
    assert "kernel scalar" in ran(tmp_path / "gemm")
    listed = [line.split(",")[0] for line in ran(tmp_path / "matrices", written[0]).splitlines()]
    assert listed == ["large: 300 x 300", "small: 5 x 300"]
