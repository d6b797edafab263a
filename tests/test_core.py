# SPDX-License-Identifier: Apache-2.0
"""The library and the compiler agree: contract, kernel table, instruction sets, selection by name."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bcq import contract
from bcq.errors import ResourceError
from bcq.kernels import core
from bcq.kernels.core import Core, GatherProblem, KernelRow, MatMulProblem
from bcq.packing import pack
from native_builds import compiler
from nodes import activations, random_weight

CORE = Core.load()
RUNTIME = Path(__file__).resolve().parents[1] / "runtime"
FOLDERS = {"BcqMatMul": "bcq_matmul", "BcqGather": "bcq_gather"}
# The values of BCQ_CPU_* in runtime/core/bcq_core.h.
AVX2, AVX512, VBMI, VNNI = 1, 2, 4, 8
# The accuracy_level that each method serves; every other method serves level 0.
LEVEL_OF = {"t8": 4, "exact": 1}
THIS_ARCHITECTURE = (
    {"neon", "sve"} if CORE.isa_name(CORE.detected_flags()) in ("neon", "dotprod") else {"avx"}
)


def ports(declared: tuple[contract.Port, ...]) -> str:
    return " ".join(f"{p.name}:{'|'.join(p.types)}[{','.join(p.shape)}]" for p in declared)


def test_the_library_was_built_with_the_contract_that_the_compiler_reads() -> None:
    lines = [
        f"{contract.DOMAIN} opset={contract.OPSET_VERSION} format={contract.FORMAT_VERSION}"
        f" layout={contract.LAYOUT} tile_rows={contract.TILE_ROWS} word_bits={contract.WORD_BITS}"
        f" bits={contract.MIN_BITS}..{contract.MAX_BITS} group_size_multiple={contract.GROUP_SIZE_MULTIPLE}"
        f" ort_api={contract.ORT_API_VERSION}"
    ]
    for op in contract.OPS.values():
        attributes = " ".join(f"{name}:{kind}" for name, kind in sorted(op.attributes.items()))
        lines.append(f"{op.name}({ports(op.inputs)})->({ports(op.outputs)}){{{attributes}}}")
    assert CORE.contract().splitlines() == lines


def test_inputs_stand_where_the_custom_ops_read_them() -> None:
    # runtime/ort reads codes at 1 and the factors from 2 on, as uint32 and float16.
    for op in contract.OPS.values():
        assert [port.name for port in op.inputs[1:]] == ["codes", "alpha_1", "alpha_rest", "offset"]
        assert [port.types for port in op.inputs[1:]] == [("uint32",), *[("float16",)] * 3]


def test_the_structures_of_the_c_abi_have_the_size_that_the_header_gives_them() -> None:
    # int64 and pointers take eight bytes, int32 four, and neither structure has a hole.
    assert ctypes.sizeof(MatMulProblem) == 4 * 8 + 4 * 4 + 10 * 8
    assert ctypes.sizeof(GatherProblem) == 4 * 8 + 2 * 4 + 7 * 8
    header = (RUNTIME / "core" / "bcq_core.h").read_text(encoding="utf-8")
    for structure, name in ((MatMulProblem, "BcqMatMulProblem"), (GatherProblem, "BcqGatherProblem")):
        body = header.split(f"typedef struct {name} {{")[1].split("}")[0]
        declared = re.findall(r"(\w+);", re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL))
        assert [field[0] for field in structure._fields_] == declared


@pytest.mark.parametrize("op", list(FOLDERS))
def test_every_kernel_source_is_built_and_has_a_row(op: str) -> None:
    folder = RUNTIME / "kernels" / FOLDERS[op]
    sources = {path.stem for path in folder.glob("*.cc") if not path.stem.startswith(("bench", "test"))}
    foreign = {stem for stem in sources if stem != "scalar" and not stem.startswith(tuple(THIS_ARCHITECTURE))}
    assert {row.source for row in CORE.kernels(op)} == sources - foreign
    build_file = (RUNTIME / "CMakeLists.txt").read_text(encoding="utf-8")
    for stem in sources:
        assert f"kernels/{FOLDERS[op]}/{stem}.cc" in build_file


@pytest.mark.parametrize("op", list(FOLDERS))
def test_every_row_of_the_table_is_in_the_library_in_the_same_order(op: str) -> None:
    text = (RUNTIME / "kernels" / FOLDERS[op] / "kernels.inc").read_text(encoding="utf-8")
    rows = re.findall(r"^BCQ_\w+_KERNEL\((\w+), (\w+),", text, re.MULTILINE)
    built = [(row.name, row.source) for row in CORE.kernels(op)]
    assert [row for row in rows if row in built] == built
    assert built[-1] == ("scalar", "scalar")
    assert len({name for name, _ in rows}) == len(rows)


def test_asking_for_kernels_of_no_operator_gives_none() -> None:
    assert CORE.kernels("Conv") == []


@pytest.mark.parametrize("op", list(FOLDERS))
def test_a_cpu_without_features_gets_the_scalar_kernel(op: str) -> None:
    if op == contract.GATHER.name:
        assert CORE.select_gather(flags=0) == "scalar"
        return
    for bits in range(contract.MIN_BITS, contract.MAX_BITS + 1):
        for tokens in (1, 4, 32, 256):
            assert CORE.select_matmul(bits=bits, flags=0, M=tokens) == "scalar"


def test_selection_never_takes_a_kernel_that_the_cpu_lacks() -> None:
    rows: dict[str, KernelRow] = {row.name: row for row in CORE.kernels(contract.MATMUL.name)}
    for flags in (0, AVX2, AVX2 | AVX512, AVX2 | AVX512 | VBMI | VNNI, 0x7F):
        for bits in (1, 3, 4, 8):
            for level in (0, 1, 4):
                name = CORE.select_matmul(bits=bits, flags=flags, accuracy_level=level)
                assert rows[name].flags & ~flags == 0


@pytest.mark.skipif({"avx"} != THIS_ARCHITECTURE, reason="x86 kernels are built on x86 only")
def test_an_avx2_cpu_gets_an_avx2_kernel_in_the_fast_range() -> None:
    for bits in range(contract.MIN_BITS, contract.FAST_BITS + 1):
        assert CORE.select_matmul(bits=bits, flags=AVX2).startswith("avx2")


def test_bcq_isa_lowers_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCQ_ISA", "scalar")
    assert (CORE.flags(), CORE.isa_name(CORE.flags()), CORE.isa_error()) == (0, "scalar", None)
    monkeypatch.setenv("BCQ_ISA", "")
    assert CORE.flags() == CORE.detected_flags()
    monkeypatch.delenv("BCQ_ISA")
    assert CORE.flags() == CORE.detected_flags()


def test_an_unknown_bcq_isa_is_an_error_that_lists_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCQ_ISA", "avx9000")
    assert CORE.flags() == 0
    assert str(CORE.isa_error()).startswith("BCQ_ISA: got 'avx9000', expected one of scalar, avx2,")
    monkeypatch.setenv("BCQ_ISA", "é\n" + "x" * 100)
    assert str(CORE.isa_error()).startswith(f"BCQ_ISA: got '???{'x' * 61}', expected one of")


def test_bcq_isa_cannot_ask_for_more_than_the_cpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = "neon" if {"avx"} == THIS_ARCHITECTURE else "avx2"
    monkeypatch.setenv("BCQ_ISA", lacking)
    most = CORE.isa_name(CORE.detected_flags())
    assert f"BCQ_ISA: got '{lacking}', expected {most} or lower" in str(CORE.isa_error())


def test_instruction_sets_are_named_by_all_of_their_flags() -> None:
    names = {
        0: "scalar",
        AVX2: "avx2",
        AVX512: "scalar",
        AVX2 | AVX512: "avx512",
        AVX2 | AVX512 | VNNI: "avx512",
    }
    names[AVX2 | AVX512 | VBMI | VNNI] = "avx512vnni"
    assert {flags: CORE.isa_name(flags) for flags in names} == names


def kernels_of_this_machine() -> list[str]:
    flags = CORE.detected_flags()
    return [row.name for row in CORE.kernels(contract.MATMUL.name) if row.flags & ~flags == 0]


@pytest.mark.parametrize("kernel", kernels_of_this_machine())
@pytest.mark.parametrize(
    ("rows", "inputs", "bits", "group"), [(37, 200, 3, 200), (64, 256, 2, 128), (16, 96, 4, 32)]
)
def test_a_resident_copy_gives_the_bits_of_the_mapped_codes(
    kernel: str, rows: int, inputs: int, bits: int, group: int
) -> None:
    level = LEVEL_OF.get(kernel.partition("_")[2], 0)
    weight = pack(random_weight(rows, inputs, bits, group, offset=True))
    a = activations(5, inputs)
    a[1] *= 1e30  # outside the tables' range: kernels take another path through the same codes
    copy = CORE.make_resident(weight, kernel=kernel, accuracy_level=level)
    assert copy.ctypes.data % 64 == 0
    # Each line of 16 words holds the bits that it held, in some order.
    ones = [
        np.unpackbits(codes.reshape(-1, 16).view(np.uint8), axis=1).sum(1) for codes in (copy, weight.codes)
    ]
    np.testing.assert_array_equal(ones[0], ones[1])
    mapped = CORE.matmul(a, weight, kernel=kernel, accuracy_level=level)
    resident = CORE.matmul(a, weight, kernel=kernel, accuracy_level=level, resident=copy)
    assert resident.tobytes() == mapped.tobytes()


def test_a_resident_copy_for_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel none: unknown kernel name"):
        CORE.make_resident(pack(random_weight(16, 32, 1, 32)), kernel="none")


@pytest.mark.parametrize("kernel", kernels_of_this_machine())
@pytest.mark.parametrize("inputs", [1024, 14336, 2**20])
def test_scratch_stays_small_however_many_rows_there_are(kernel: str, inputs: int) -> None:
    def scratch(rows: int) -> int:
        problem = MatMulProblem(M=rows, K=inputs, N=64, group_size=128, bits=3, a_stride=inputs, y_stride=64)
        return int(CORE.library.bcq_matmul_scratch_bytes(ctypes.byref(problem), kernel.encode()))

    # At most 64 rows, of these as many as 4 MiB hold, but never less than a set of 16 (runtime/core/run.cc).
    assert scratch(10_000) <= min(scratch(64), max(4 * 2**20, scratch(16)))
    assert scratch(10_000) >= scratch(16)


def test_no_kernel_name_has_no_order_of_its_own() -> None:
    assert CORE.library.bcq_matmul_has_own_order(None) == 0
    assert CORE.library.bcq_matmul_has_own_order(b"none") == 0


def test_a_library_without_a_function_of_this_version_is_refused_by_its_name(tmp_path: Path) -> None:
    library = tmp_path / "libolder.so"
    command = [compiler(), "-shared", "-x", "c", "/dev/null", "-o", str(library)]
    subprocess.run(command, check=True)
    with pytest.raises(ResourceError, match=r"not of this version .* bcq_contract") as caught:
        core._load(library)
    assert caught.value.code == "E603"
