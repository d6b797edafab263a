# SPDX-License-Identifier: Apache-2.0
"""The public names: complete, lazy, and functions even where a module has the same name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bcq
import bcq.export  # the module must not hide the function
import bcq.quantize


def test_every_public_name_can_be_had() -> None:
    for name in bcq.__all__:
        assert getattr(bcq, name) is not None
    assert dir(bcq) == sorted(bcq.__all__)


def test_functions_win_over_modules_of_the_same_name() -> None:
    assert callable(bcq.export)
    assert callable(bcq.quantize)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        bcq.absent  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import sys, bcq; print(sorted({'numpy', 'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def files_at_home(program: str, home: Path, **variables: str) -> set[str]:
    """Names of the files that a program leaves in a home folder of its own."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment = {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home), **variables}
    subprocess.run([sys.executable, "-B", "-c", program], check=True, env=environment)
    return {path.name for path in home.rglob("*") if path.is_file()}


def test_onnxruntime_collects_nothing_about_models_unless_the_user_asks_for_it(tmp_path: Path) -> None:
    """Where it collects, it keeps what it is going to send in a data base of its own."""
    collected = files_at_home("import onnxruntime", tmp_path / "alone", ORT_DISABLE_TELEMETRY="0")
    if not collected:
        pytest.skip("this build of onnxruntime collects nothing")
    assert files_at_home("import bcq.runtime", tmp_path / "quiet") == set()
    asked = files_at_home("import bcq.runtime", tmp_path / "asked", ORT_DISABLE_TELEMETRY="0")
    assert asked == collected
