# SPDX-License-Identifier: Apache-2.0
"""examples/cpp/generate.cc gives the tokens that Python gives."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs the packages for compiling")

import bcq
from bcq.adapter_ort import FILE
from bcq.export import export
from bcq.runtime import library_path
from native_builds import RUNTIME, compiler
from sdk_builds import EXAMPLES, onnxruntime_root, ran
from tiny_adapters import task, tiny_base

PROMPT = [3, 4, 5, 6]
COUNT = 12


def exported(root: Path) -> Path:
    """An export that serves two tasks."""
    base = tiny_base(root, embeddings="pack", method="greedy")
    for seed, name in enumerate(("a", "b")):
        task(base, name, seed).save(root / name)
    export(base, root / "out", adapters=[root / "a", root / "b"])
    return root / "out"


def test_the_cpp_program_generates_what_python_generates_with_and_without_an_adapter(tmp_path: Path) -> None:
    root, library, program = onnxruntime_root(tmp_path / "onnxruntime"), library_path(), tmp_path / "generate"
    include = [f"-isystem{root / 'include'}", f"-I{RUNTIME / 'capi'}"]
    linked: list[str | Path] = [
        library,
        root / "lib" / "libonnxruntime.so",
        f"-Wl,-rpath,{library.parent}:{root / 'lib'}",
    ]
    ran(
        compiler(),
        EXAMPLES / "generate.cc",
        "-std=c++17",
        "-Wall",
        "-Wextra",
        *include,
        *linked,
        "-o",
        program,
    )
    folder = exported(tmp_path)
    model, told = bcq.load(folder), set()
    for name in (None, "a", "b"):
        adapter: list[str] = [] if name is None else ["--adapter", str(folder / "adapters" / name / FILE)]
        said = ran(program, folder, str(COUNT), *(str(token) for token in PROMPT), *adapter)
        tokens, expected = [int(word) for word in said.split()], model.generate(PROMPT, COUNT, adapter=name)
        # Python leaves an end token out and stops there; the example knows of none.
        assert tokens[: len(expected)] == expected
        assert len(expected) == len(tokens) or tokens[len(expected)] in model.end_tokens
        told.add(tuple(tokens))
    assert len(told) > 1  # tasks differ
