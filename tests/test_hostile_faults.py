# SPDX-License-Identifier: Apache-2.0
"""Broken libraries, old runtimes, odd environments, calls that fail: each is told, none ends the process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bcq.checks.library import check_contract, check_whole
from bcq.runtime import library_path
from hostile.faults import Fault, faults, needs_limits, run
from native_builds import NATIVE, run_program

FAULTS = list(faults())


def test_there_are_at_least_thirty_faults_and_no_two_share_a_name() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 30


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_told_clearly_or_changes_nothing(fault: Fault) -> None:
    if needs_limits(fault) and "LD_PRELOAD" in os.environ:
        pytest.skip("a sanitizer reserves more address space than the limit")
    outcome, told = run(fault)
    assert outcome == ("clear" if fault.words else "legal"), told


def test_the_installed_library_is_whole_and_has_the_contract_of_this_package() -> None:
    check_whole(library_path())
    check_contract(library_path())


def test_every_call_and_every_allocation_of_the_library_may_fail(tmp_path: Path) -> None:
    """A stand-in for onnxruntime fails at each call in turn, and memory runs out at each allocation."""
    sources = [NATIVE / name for name in ("planned_failures.cc", "fake_ort.cc", "fake_node.cc")]
    done = run_program(tmp_path, *sources, arguments=[tmp_path], library=library_path())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAULT" not in done.stdout
    assert sum(int(line.split(": ")[1].split()[0]) for line in done.stdout.splitlines()) > 500
