# SPDX-License-Identifier: Apache-2.0
"""The toolchain file for Android: what it tells an NDK (a stand-in), and what it says without one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from native_builds import RUNTIME, compiler

TOOLCHAIN = RUNTIME / "cmake" / "toolchains" / "android-arm64.cmake"
# The NDK's own file reads these variables and chooses a compiler; this one tells them and takes any.
STAND_IN = """
file(WRITE "$ENV{TOLD}" "${ANDROID_ABI} ${ANDROID_PLATFORM} ${ANDROID_STL}")
set(CMAKE_CXX_COMPILER "$ENV{COMPILER}")
"""


def configure(folder: Path, ndk: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Configures the library with a folder that shall hold an NDK."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    command = ["cmake", "-S", str(RUNTIME), "-B", str(folder / "build"), *generator]
    names = {"ANDROID_NDK_ROOT": str(ndk), "TOLD": str(folder / "told"), "COMPILER": compiler()}
    return subprocess.run(
        [*command, f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}", *options],
        capture_output=True,
        text=True,
        env={**os.environ, **names},
    )


def test_the_ndk_is_told_the_processor_the_version_of_android_and_to_bring_its_library(
    tmp_path: Path,
) -> None:
    (tmp_path / "ndk" / "build" / "cmake").mkdir(parents=True)
    (tmp_path / "ndk" / "build" / "cmake" / "android.toolchain.cmake").write_text(STAND_IN, encoding="utf-8")
    done = configure(tmp_path, tmp_path / "ndk")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "told").read_text(encoding="utf-8") == "arm64-v8a android-26 c++_static"
    assert configure(tmp_path, tmp_path / "ndk", "-DANDROID_PLATFORM=android-33").returncode == 0
    assert (tmp_path / "told").read_text(encoding="utf-8") == "arm64-v8a android-33 c++_static"


def test_a_folder_that_is_no_ndk_is_named_with_what_to_do(tmp_path: Path) -> None:
    done = configure(tmp_path, tmp_path)
    told = " ".join(done.stderr.split())
    assert done.returncode != 0
    assert f"ANDROID_NDK_ROOT: got '{tmp_path}', expected the folder of an NDK" in told
    assert "Install the NDK and name its folder." in told
