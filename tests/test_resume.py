# SPDX-License-Identifier: Apache-2.0
"""A stopped run goes on, makes the same bytes, trusts nothing that it did not write, and leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcq.errors import ResourceError, UsageError
from bcq.export import export
from bcq.exporting.write import write_model
from bcq.files.atomic import AtomicFolder
from bcq.matrices.plan import QuantizeOptions
from bcq.matrices.resume import Finished, key_of
from bcq.packing import PackedWeight, pack
from graphs import model_of, normal, random_weight

KEY = "a" * 64
TWO_LAYERS = """graph (float[n, 64] x) => (float[n, 48] y) {
    h = MatMul (x, first)
    r = Relu (h)
    y = Gemm <transB = 1> (r, second, bias)
}"""
QUICK = QuantizeOptions(bits=2, group_size=32, method="greedy")


@pytest.fixture
def two_layers(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    model = model_of(TWO_LAYERS, first=normal(64, 96), second=normal(48, 96), bias=normal(48))
    write_model(model, tmp_path / "in" / "in.onnx")
    return tmp_path / "in" / "in.onnx"


def opened(folder: Path, resume: bool = False) -> Finished:
    finished = Finished(folder / "out", resume)
    finished.open()
    return finished


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class StopsAt:
    """Progress that raises at the n-th matrix."""

    def __init__(self, left: int, fault: BaseException) -> None:
        self.left, self.fault = left, fault

    def start(self, what: str, total: int) -> None: ...

    def step(self, name: str, detail: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise self.fault

    def done(self) -> None: ...


def count_solves(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    solved: list[str] = []
    from bcq import solver

    original = solver.solve

    def counted(*arguments: Any, **named: Any) -> Any:
        solved.append(named["name"])
        return original(*arguments, **named)

    monkeypatch.setattr(solver, "solve", counted)
    return solved


@pytest.mark.parametrize(
    "fault", [KeyboardInterrupt(), OSError(28, "No space left on device"), MemoryError()]
)
def test_a_stopped_export_goes_on_where_it_stopped_and_makes_the_same_bytes(
    two_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    export(two_layers, tmp_path / "whole", QUICK)
    solved = count_solves(monkeypatch)
    with pytest.raises((KeyboardInterrupt, ResourceError)) as caught:
        export(two_layers, tmp_path / "out", QUICK, progress=StopsAt(1, fault))
    if isinstance(caught.value, ResourceError):
        assert caught.value.hint.endswith("--resume goes on with the 1 matrices that are done.")
    assert not (tmp_path / "out").exists()
    export(two_layers, tmp_path / "out", QUICK, resume=True)
    assert solved == ["first", "second"]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]


def test_other_options_or_weights_use_nothing_of_the_stopped_run(
    two_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        export(two_layers, tmp_path / "out", QUICK, progress=StopsAt(1, KeyboardInterrupt()))
    solved = count_solves(monkeypatch)
    export(two_layers, tmp_path / "out", QuantizeOptions(bits=1, method="greedy"), resume=True)
    assert solved == ["first", "second"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_run_that_was_to_go_on_and_fails_leaves_what_it_found(
    two_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        export(two_layers, tmp_path / "out", QUICK, progress=StopsAt(1, KeyboardInterrupt()))
    for fault in (KeyboardInterrupt(), ValueError("x")):
        with pytest.raises(type(fault)), AtomicFolder(tmp_path / "out", Finished(tmp_path / "out", True)):
            raise fault
    solved = count_solves(monkeypatch)
    export(two_layers, tmp_path / "out", QUICK, resume=True)
    assert solved == ["second"]


def test_without_resume_a_run_begins_anew(
    two_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        export(two_layers, tmp_path / "out", QUICK, progress=StopsAt(1, KeyboardInterrupt()))
    solved = count_solves(monkeypatch)
    export(two_layers, tmp_path / "out", QUICK)
    assert solved == ["first", "second"]


def test_a_run_that_fails_for_good_leaves_nothing(two_layers: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"):
        export(two_layers, tmp_path / "a" / "out", QUICK, progress=StopsAt(2, ValueError("x")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("bits", [1, 3])
def test_a_matrix_comes_back_as_it_was(tmp_path: Path, bits: int, offset: bool) -> None:
    weight = pack(random_weight(20, 100, bits, offset=offset))
    finished = opened(tmp_path)
    assert finished.find(KEY) is None
    kept = finished.keep(KEY, weight, 0.1)
    found = finished.find(KEY)
    assert found is not None
    assert found[1] == 0.1
    for again in (kept, found[0]):
        assert (again.rows, again.inputs, again.group_size) == (20, 100, 32)
        for name, array in weight.tensors().items():
            np.testing.assert_array_equal(array, again.tensors()[name])


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGES: list[Callable[[bytes], bytes]] = [
    flipped,
    lambda content: content[:-1],
    lambda content: b"",
    lambda content: content.replace(b'\\"relative_error\\": 0.1', b'\\"relative_error\\": 0.2'),
    lambda content: content.replace(b'\\"rows\\": 20', b'\\"rows\\": 21'),
    lambda content: content.replace(b'\\"rows\\": 20', b'\\"rowz\\": 20'),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_kept_matrix_that_is_damaged_is_made_anew(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    finished = opened(tmp_path)
    finished.keep(KEY, pack(random_weight(20, 100)), 0.1)
    file = tmp_path / ".out.resume" / f"{KEY}.safetensors"
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert file.read_bytes() != content
    assert finished.find(KEY) is None
    assert not file.exists()
    other = tmp_path / ".out.resume" / f"{'b' * 64}.safetensors"
    other.write_bytes(content)  # whole, but of another matrix
    assert finished.find("b" * 64) is None


def test_the_key_depends_on_values_shape_and_options() -> None:
    dense = normal(8, 64)
    keys = {
        key_of(dense, 3, 32, "greedy", False, 0),
        key_of(dense, 2, 32, "greedy", False, 0),
        key_of(dense, 3, 64, "greedy", False, 0),
        key_of(dense, 3, 32, "uniform", False, 0),
        key_of(dense, 3, 32, "greedy", True, 0),
        key_of(dense, 3, 32, "greedy", False, 1),
        key_of(dense.reshape(4, 128), 3, 32, "greedy", False, 0),
        key_of(np.nextafter(dense, np.float32(9)), 3, 32, "greedy", False, 0),
    }
    assert len(keys) == 8
    assert key_of(np.asfortranarray(dense), 3, 32, "greedy", False, 0) in keys


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    script = (
        "import sys; from bcq.matrices.resume import Finished\n"
        "f = Finished(sys.argv[1], True); f.open(); print('locked', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "out"],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with (
            pytest.raises(UsageError, match="another run is writing") as caught,
            AtomicFolder(tmp_path / "out", Finished(tmp_path / "out")),
        ):
            pass
        assert caught.value.code == "E203"
        other.communicate(b"")
    with AtomicFolder(tmp_path / "out", Finished(tmp_path / "out")):
        pass  # the lock of a process that is gone holds nobody up
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def as_link(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / ".out.resume").symlink_to("elsewhere")


def as_everybodys(folder: Path) -> None:
    (folder / ".out.resume").mkdir()
    (folder / ".out.resume").chmod(0o777)


@pytest.mark.parametrize("plant", [as_link, as_everybodys])
def test_a_store_that_somebody_else_may_write_is_refused(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    plant(tmp_path)
    with pytest.raises(UsageError, match="not only yours") as caught:
        opened(tmp_path, resume=True)
    assert caught.value.code == "E203"


def test_a_weight_is_mapped_and_outlives_the_store(tmp_path: Path) -> None:
    finished = opened(tmp_path)
    weight: PackedWeight = finished.keep(KEY, pack(random_weight(20, 100)), 0.1)
    finished.close(None)
    assert list(tmp_path.iterdir()) == []
    assert isinstance(weight.codes, np.memmap)
    np.testing.assert_array_equal(weight.codes, pack(random_weight(20, 100)).codes)
