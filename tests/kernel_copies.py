# SPDX-License-Identifier: Apache-2.0
"""Libraries of a few kernels, from a copy of the sources that a test may break on purpose."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from bcq.kernels.core import Core
from native_builds import NATIVE, RUNTIME, compile_object, compiler, emulated_flags

ROW = re.compile(r"^BCQ_\w+_KERNEL\(\w+, (\w+),.*\n", re.MULTILINE)


@dataclass(frozen=True)
class Fault:
    """One constant of one file, and what it is changed to."""

    path: str  # below runtime/
    constant: str
    broken: str


def build(folder: Path, files: tuple[str, ...], fault: Fault | None = None) -> Core:
    """A library of the kernels in some files and the scalar ones; AVX-512 and NEON are emulated by SIMDe.

    Args:
        folder: an empty one, which must stay as long as the library is used.
        files: sources below ``runtime/kernels/``, for example ``bcq_matmul/avx2.cc``.
        fault: a change in the copy.
    """
    copy = folder / "runtime"
    for part in ("core", "kernels"):
        shutil.copytree(RUNTIME / part, copy / part)
    kernels = {*files, "bcq_matmul/scalar.cc", "bcq_gather/scalar.cc"}
    for table in (copy / "kernels").glob("*/kernels.inc"):
        _keep_rows(table, {Path(name).stem for name in kernels if name.startswith(table.parent.name)})
    if fault is not None:
        _plant(copy / fault.path, fault)
    core = [path for path in (copy / "core").glob("*.cc") if path.name not in _NOT_NEEDED]
    sources = [*(copy / "kernels" / name for name in kernels), *core, NATIVE / "every_cpu.cc"]
    objects = [_compile(source, folder / f"{number}.o", copy) for number, source in enumerate(sources)]
    library = folder / "libbcq_copy.so"
    subprocess.run([compiler(), "-shared", *map(str, objects), "-o", str(library)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BCQ_LIBRARY", str(library))
        return Core.load()


_NOT_NEEDED = {"cpu.cc", "contract_text.cc", "validate.cc"}  # every_cpu.cc stands for them


def _keep_rows(table: Path, stems: set[str]) -> None:
    text = table.read_text(encoding="utf-8")
    table.write_text(ROW.sub(lambda row: row[0] if row[1] in stems else "", text), encoding="utf-8")


def _plant(path: Path, fault: Fault) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(fault.constant) == 1, (
        f"{fault.path} has {fault.constant!r} {text.count(fault.constant)} times"
    )
    path.write_text(text.replace(fault.constant, fault.broken), encoding="utf-8")


def _compile(source: Path, target: Path, copy: Path) -> Path:
    # Quotes look into the copy first.
    return compile_object(source, target, (*emulated_flags(source), "-iquote", str(copy)))
