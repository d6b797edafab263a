# SPDX-License-Identifier: Apache-2.0
"""The wheel is one py3 file with the library and the contract inside, and installs nothing but `bcq`."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from other_cpu import other_cpu

CHECKOUT = Path(__file__).resolve().parents[1]
LICENSE_LINE = "Apache License"
MB = 1_000_000
# What manylinux_2_24 lets a wheel ask for, less than the wheels of onnxruntime ask for.
MANYLINUX = {"GLIBC": (2, 24), "GLIBCXX": (3, 4, 22), "CXXABI": (1, 3, 10), "GCC": (6, 0)}
SYSTEM = {"libc.so.6", "libm.so.6", "libdl.so.2", "libstdc++.so.6", "libgcc_s.so.1"}


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


@pytest.fixture(scope="module", params=["this processor", "64-bit Arm"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    if request.param == "64-bit Arm":
        return other_cpu(folder).folder / "libbcq_ops.so"
    with zipfile.ZipFile(request.getfixturevalue("wheel")) as archive:
        return Path(archive.extract("bcq/libbcq_ops.so", folder))


def said(*command: str | Path) -> str:
    """What a program of binutils prints; skips without."""
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed (Debian: binutils)")
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


def test_the_library_is_small_and_needs_only_what_every_linux_has(library: Path) -> None:
    assert library.stat().st_size < MB
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", said("readelf", "-d", library)))
    assert {name for name in needed if not name.startswith("ld-linux")} <= SYSTEM


def test_the_library_asks_for_no_symbol_newer_than_its_manylinux_tag(library: Path) -> None:
    newest = tuple(int(part) for part in platform.libc_ver()[1].split(".")[:2])
    if newest > (2, 36):
        pytest.skip(f"built with glibc {newest}: symbols of its own time are asked for")
    asked = re.findall(r"@([A-Z]+)_([\d.]+)", said("nm", "-D", "--undefined-only", library))
    assert {name for name, _ in asked} <= set(MANYLINUX)
    for name, version in asked:
        assert tuple(int(part) for part in version.split(".")) <= MANYLINUX[name], (name, version)


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
