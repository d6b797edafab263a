# SPDX-License-Identifier: Apache-2.0
"""The wheel is one py3 file with the library and the contract inside, and installs nothing but `bcq`."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
LICENSE_LINE = "Apache License"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    options = [
        "--wheel-dir",
        str(folder),
        "--config-settings",
        f"build-dir={folder / 'build'}",
        str(CHECKOUT),
    ]
    subprocess.run([*command, *options], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_one_wheel_serves_every_python_of_a_platform(wheel: Path) -> None:
    name, version, python, abi, _platform = wheel.stem.split("-")
    assert (name, python, abi) == ("onnx_bcq", "py3", "none")
    assert version


def test_the_wheel_holds_library_contract_and_licence_and_no_other_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (licence,) = [name for name in names if name.endswith("LICENSE")]
        assert LICENSE_LINE in archive.read(licence).decode()
    assert {"bcq/libbcq_ops.so", "bcq/contract.json", "bcq/runtime.py", "bcq/py.typed"} <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"bcq"}
    assert not [name for name in names if name.endswith((".cc", ".h", ".o", ".pyc"))]


def test_the_unpacked_wheel_finds_its_own_library(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    # -S leaves site-packages and with it the editable install out; only what bcq.runtime needs is put back.
    packages = [path for path in sys.path if path.endswith("site-packages")]
    program = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; sys.path += {packages!r}\n"
        "from bcq import runtime; print(runtime.library_path())\n"
        "import onnxruntime; runtime.register_library(onnxruntime.SessionOptions())"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "BCQ_LIBRARY")
    }
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert Path(done.stdout.strip()) == (tmp_path / "bcq" / "libbcq_ops.so").resolve()
