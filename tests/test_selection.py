# SPDX-License-Identifier: Apache-2.0
"""Which kernel runs, by name, on CPUs that are not there: the flags are an argument of selection."""

from __future__ import annotations

import platform

import numpy as np
import pytest

from bcq import contract
from bcq.errors import BcqError
from bcq.kernels.core import Core
from bcq.packing import pack
from nodes import activations, one_node, open_session, random_weight

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 kernels are built on x86 only")

CORE = Core.load()
# The values of BCQ_CPU_* in runtime/core/bcq_core.h.
AVX2, AVX512, VBMI, VNNI, BF16 = 1, 2, 4, 8, 16
CPUS = {
    "Nehalem": 0,
    "Sandy Bridge": 0,  # AVX without AVX2
    "Haswell": AVX2,
    "Zen 3": AVX2,
    "Alder Lake": AVX2,
    "Skylake-X": AVX2 | AVX512,
    "Cascade Lake": AVX2 | AVX512 | VNNI,
    "Cannon Lake": AVX2 | AVX512 | VBMI,
    "Ice Lake": AVX2 | AVX512 | VBMI | VNNI,
    "Zen 4": AVX2 | AVX512 | VBMI | VNNI | BF16,
}
METHODS = {0: "t16", 1: "exact", 2: "t16", 3: "t16", 4: "t8"}  # by accuracy_level
BITS = range(contract.MIN_BITS, contract.MAX_BITS + 1)


def expected(cpu: str, level: int) -> str:
    """Look-ups need VBMI and VNNI above AVX2; float32 needs no more than AVX-512 itself."""
    flags = CPUS[cpu]
    if not flags & AVX2:
        return "scalar"
    needed = AVX512 if METHODS[level] == "exact" else AVX512 | VBMI | VNNI
    return f"{'avx512' if flags & needed == needed else 'avx2'}_{METHODS[level]}"


@pytest.mark.parametrize("level", METHODS)
@pytest.mark.parametrize("cpu", CPUS)
def test_every_cpu_gets_its_kernel_for_all_bits_groups_and_rows(cpu: str, level: int) -> None:
    for bits in BITS:
        for group in (32, 64, 96, 128, 1024, 4096, 5000):
            for tokens in (0, 1, 4, 32, 256):
                chosen = CORE.select_matmul(
                    bits=bits, flags=CPUS[cpu], M=tokens, group_size=group, accuracy_level=level
                )
                assert chosen == expected(cpu, level), (bits, group, tokens)


@pytest.mark.parametrize("level", METHODS)
@pytest.mark.parametrize(("rows", "inputs"), [(1, 1), (15, 31), (16, 32), (50000, 768), (7, 14336)])
def test_the_size_of_a_matrix_does_not_change_the_kernel(rows: int, inputs: int, level: int) -> None:
    for cpu, flags in CPUS.items():
        chosen = CORE.select_matmul(
            bits=3, flags=flags, N=rows, K=inputs, group_size=inputs, accuracy_level=level
        )
        assert chosen == expected(cpu, level)


@pytest.mark.parametrize("cpu", CPUS)
def test_every_cpu_gets_its_gather(cpu: str) -> None:
    assert CORE.select_gather(flags=CPUS[cpu]) == ("avx2" if CPUS[cpu] & AVX2 else "scalar")


def test_avx512_without_avx2_is_no_cpu_that_kernels_run_on() -> None:
    for level in METHODS:
        assert CORE.select_matmul(bits=3, flags=AVX512 | VBMI | VNNI, accuracy_level=level) == "scalar"


@pytest.mark.parametrize("cpu", CPUS)
def test_the_name_of_the_instruction_set_tells_the_cpus_apart(cpu: str) -> None:
    names = {0: "scalar", AVX2: "avx2", AVX2 | AVX512: "avx512"}
    full = AVX2 | AVX512 | VBMI | VNNI
    flags = CPUS[cpu] & full
    assert CORE.isa_name(CPUS[cpu]) == ("avx512vnni" if flags == full else names[flags & (AVX2 | AVX512)])


@pytest.mark.parametrize("level", METHODS)
def test_bcq_isa_lowers_what_runs_and_the_bits_are_those_of_the_lower_kernel(
    monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    weight = pack(random_weight(40, 100, 3, 32))
    a = activations(3, 100)
    monkeypatch.setenv("BCQ_ISA", "scalar")
    assert CORE.select_matmul(bits=3, flags=CORE.flags(), accuracy_level=level) == "scalar"
    assert CORE.select_gather(flags=CORE.flags()) == "scalar"
    lowered = CORE.matmul(a, weight, accuracy_level=level)
    assert lowered.tobytes() == CORE.matmul(a, weight, kernel="scalar", accuracy_level=level).tobytes()


@pytest.mark.skipif(not CORE.detected_flags() & AVX2, reason="this CPU has no AVX2")
def test_bcq_isa_avx2_takes_the_avx2_kernels_whatever_else_the_cpu_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BCQ_ISA", "avx2")
    chosen = [CORE.select_matmul(bits=3, flags=CORE.flags(), accuracy_level=level) for level in METHODS]
    assert chosen == [expected("Haswell", level) for level in METHODS]


def test_an_unknown_bcq_isa_stops_a_session_and_names_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCQ_ISA", "avx3")
    model = one_node(contract.MATMUL, random_weight(16, 32, 1, 32))
    with pytest.raises(BcqError, match="BCQ_ISA: got 'avx3', expected one of scalar, avx2"):
        open_session(model)
    monkeypatch.delenv("BCQ_ISA")
    y = open_session(model).run(None, {"A": np.zeros((1, 1, 32), np.float32)})[0]
    assert not np.asarray(y).any()
