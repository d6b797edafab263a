# SPDX-License-Identifier: Apache-2.0
"""examples/cpp/generate.cc gives the tokens that Python gives, on this CPU and on an emulated 64-bit Arm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs the packages for compiling")

import bcq
from bcq.adapters.ort import FILE
from bcq.export import export
from bcq.runtime import library_path
from other_cpu import COMPILER, other_cpu
from sdk_builds import generate_example, ran
from tiny_adapters import task, tiny_base

PROMPT = [3, 4, 5, 6]
COUNT = 12


@pytest.fixture(scope="module", params=["fused", "plain"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that serves two tasks; past and present are one buffer where attention is fused."""
    root = tmp_path_factory.mktemp("exported")
    base = tiny_base(root, embeddings="pack", method="greedy")
    for seed, name in enumerate(("a", "b")):
        task(base, name, seed).save(root / name)
    export(base, root / "out", adapters=[root / "a", root / "b"], attention=request.param)
    return root / "out"


def arm_library() -> Path:
    """onnxruntime for 64-bit Arm; skips without."""
    named = os.environ.get("BCQ_ORT_AARCH64", "")
    found = sorted(Path(named).rglob("libonnxruntime.so*")) if named else []
    if not found:
        pytest.skip("BCQ_ORT_AARCH64 names no folder with onnxruntime for 64-bit Arm; `make aarch64` does")
    return found[0].resolve()


def assert_python_agrees(command: list[str | Path], folder: Path) -> None:
    """What the program prints, with and without an adapter, is what Python generates."""
    model, told = bcq.load(folder), set()
    for name in (None, "a", "b"):
        adapter: list[str] = [] if name is None else ["--adapter", str(folder / "adapters" / name / FILE)]
        said = ran(*command, folder, str(COUNT), *(str(token) for token in PROMPT), *adapter)
        tokens, expected = [int(word) for word in said.split()], model.generate(PROMPT, COUNT, adapter=name)
        # Python leaves an end token out and stops there; the example knows of none.
        assert tokens[: len(expected)] == expected
        assert len(expected) == len(tokens) or tokens[len(expected)] in model.end_tokens
        told.add(tuple(tokens))
    assert len(told) > 1  # tasks differ


def test_the_cpp_program_generates_what_python_generates(exported: Path, tmp_path: Path) -> None:
    assert_python_agrees([generate_example(tmp_path, library_path())], exported)


def test_the_cpp_program_on_64_bit_arm_generates_what_python_generates_here(
    exported: Path, tmp_path: Path
) -> None:
    library = arm_library()
    arm = other_cpu(tmp_path)
    arm.skip_before(10, "loads no onnxruntime")
    program = generate_example(tmp_path, arm.folder / "libbcq_ops.so", library, COMPILER)
    assert_python_agrees([*arm.emulation("max"), program], exported)
