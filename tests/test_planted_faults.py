# SPDX-License-Identifier: Apache-2.0
"""Every leg of the kernels is proven live: one constant of its file broken, and its parity test must fail."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

import test_runtime_kernels as parity
from bcq import contract
from kernel_copies import Fault, build
from native_builds import RUNTIME

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 kernels")

# By file of kernels: a mask, a shift or an order that only this file and its own headers have.
FAULTS = {
    "bcq_matmul/avx2.cc": Fault(
        "kernels/bcq_matmul/avx2_lines.h", "_mm256_set1_epi8(0x0f)", "_mm256_set1_epi8(0x0e)"
    ),
    "bcq_matmul/avx2_exact.cc": Fault(
        "kernels/bcq_matmul/avx2_exact.cc", "_mm256_srli_epi32(x, bits)", "_mm256_srli_epi32(x, bits + 1)"
    ),
    "bcq_matmul/avx512.cc": Fault("kernels/bcq_matmul/avx512_lookups.h", "0x0f0f0f0f", "0x0f0f0f0e"),
    "bcq_matmul/avx512_exact.cc": Fault(
        "kernels/bcq_matmul/avx512_exact.cc", "_mm512_srli_epi32(x, bits)", "_mm512_srli_epi32(x, bits + 1)"
    ),
    "bcq_matmul/neon.cc": Fault(
        "kernels/bcq_matmul/neon_lookups.h",
        "vdupq_n_u8(0x0f)",
        "vdupq_n_u8(0x0e)",
    ),
    "bcq_matmul/neon_exact.cc": Fault(
        "kernels/bcq_matmul/neon_exact.cc", "vshrq_n_u32(x, bits)", "vshrq_n_u32(x, bits + 1)"
    ),
    "bcq_matmul/scalar.cc": Fault(
        "kernels/bcq_matmul/scalar.cc", "(words[r] >> j) & 1u", "(words[r] >> j) & 2u"
    ),
    "bcq_gather/avx2.cc": Fault("kernels/bcq_gather/avx2.cc", "(31, 30, 29,", "(31, 29, 30,"),
    "bcq_gather/scalar.cc": Fault("kernels/bcq_gather/scalar.cc", "(uint32_t(1) << j)", "(uint32_t(2) << j)"),
}


def check_matmul(kernel: str) -> None:
    parity.test_each_matmul_kernel_keeps_the_promised_relative_error(kernel)


def check_gather(kernel: str) -> None:
    parity.test_each_gather_kernel_equals_the_oracle_to_the_bit(kernel, 3, True, "int64")


CHECKS = {
    "bcq_matmul": (contract.MATMUL.name, check_matmul),
    "bcq_gather": (contract.GATHER.name, check_gather),
}


def test_every_file_of_kernels_has_its_fault() -> None:
    sources = (RUNTIME / "kernels").glob("*/*.cc")
    assert {str(path.relative_to(RUNTIME / "kernels")) for path in sources} == set(FAULTS)


@pytest.mark.parametrize("file", FAULTS)
def test_a_broken_constant_fails_the_parity_test_of_its_kernels_and_of_no_other(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = build(tmp_path, (file,), FAULTS[file])
    monkeypatch.setattr(parity, "CORE", core)
    broken = []
    for folder, (op, check) in CHECKS.items():
        for row in core.kernels(op):
            if file != f"{folder}/{row.source}.cc":
                check(row.name)
                continue
            broken.append(row.name)
            with pytest.raises(AssertionError):
                check(row.name)
    assert broken, f"no kernel of {file} is in the library"
