# SPDX-License-Identifier: Apache-2.0
"""The public names: complete, lazy, and functions even where a module has the same name."""

from __future__ import annotations

import subprocess
import sys

import pytest

import bcq
import bcq.export  # the module must not hide the function
import bcq.quantize


def test_every_public_name_can_be_had() -> None:
    for name in bcq.__all__:
        assert getattr(bcq, name) is not None
    assert set(bcq.__all__) <= set(dir(bcq))


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
