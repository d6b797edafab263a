# SPDX-License-Identifier: Apache-2.0
"""Short runs of what ``tests/stress.py`` and ``make tsan`` do at length."""

from __future__ import annotations

from pathlib import Path

import pytest

import stress
from bcq.runtime import library_path
from native_builds import NATIVE, run_program


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return stress.write_weights(tmp_path)


def test_sixteen_threads_on_one_session_get_the_bits_of_one(model: Path) -> None:
    assert stress.threads_on_one_session(model, 16, 1600) == stress.Runs(1600, wrong=0)


def test_eight_sessions_share_one_file(model: Path) -> None:
    assert stress.sessions_on_one_file(model, 8, 800) == stress.Runs(800, wrong=0)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="memory and descriptors are read from /proc")
def test_sessions_that_come_and_go_leave_nothing_behind(model: Path) -> None:
    grown = stress.load_cycles(model, 200)
    assert grown.descriptor_growth == 0
    assert grown.resident_growth < stress.MOST_GROWTH


def test_kernels_called_from_many_threads_give_the_bits_of_one(tmp_path: Path) -> None:
    done = run_program(tmp_path, NATIVE / "threads.cc", arguments=["10"], library=library_path())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" products, 0 wrong\n")
