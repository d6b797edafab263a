# SPDX-License-Identifier: Apache-2.0
"""Kills and full disks at some calls that change the disk; `make kill` takes all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs the packages for compiling")

from hostile import kill_score


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (shutil.which("gcc") or shutil.which("clang")):
        pytest.skip("no C compiler to build the library that makes the faults")
    return kill_score.build_shim(tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize(
    ("subject", "mode", "stride"),
    [("graph", "kill", 9), ("quantize", "full once", 29)],
)
def test_the_output_is_the_old_or_the_new_one_and_resuming_makes_the_new_one(
    shim: Path, subject: str, mode: str, stride: int
) -> None:
    points = kill_score.forked_points(shim, subject, mode, stride)
    assert len(points) >= 3
    assert [point for point in points if not point["good"]] == []
    assert {point["output"] for point in points} <= {"old", "new"}
