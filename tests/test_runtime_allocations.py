# SPDX-License-Identifier: Apache-2.0
"""Running a node allocates nothing but the scratch and the output that ONNX Runtime gives."""

from __future__ import annotations

from pathlib import Path

from bcq.runtime import library_path
from native_builds import NATIVE, run_program


def test_no_run_of_any_operator_type_level_or_size_allocates(tmp_path: Path) -> None:
    sources = [NATIVE / name for name in ("allocations.cc", "fake_ort.cc", "fake_node.cc")]
    done = run_program(tmp_path, *sources, arguments=[tmp_path], library=library_path())
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    # 2 operators, 2 types, 3 sizes; mapped and resident, with and without a profile; 4 scenes each.
    assert len(lines) == 2 * 2 * 3 * 2 * 2 * 4
    assert all(line.endswith(": 0 allocations in 3 runs") for line in lines)
