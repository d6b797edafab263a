# SPDX-License-Identifier: Apache-2.0
"""Processes and Dask workers that solve matrices: same results, errors with names, nothing left running."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bcq.calibration.cluster import ClusterWorkers
from bcq.calibration.pool import LocalWorkers
from bcq.calibration.task import Solved, SolveTask, Workers, solve_task
from bcq.errors import InputError, ResourceError
from graphs import normal


def task(
    name: str = "one", rows: int = 24, inputs: int = 64, moments: Any = None, also: Any = ()
) -> SolveTask:
    inputs_seen = normal(500, inputs) * np.linspace(0.1, 2, inputs, dtype=np.float32)
    seen = inputs_seen.T @ inputs_seen / np.float32(500) if moments is None else moments
    return SolveTask(name, normal(rows, inputs), False, seen, 2, 32, False, 0, also)


def same(one: Solved, other: Solved) -> bool:
    tensors, others = one.weight.tensors(), other.weight.tensors()
    equal = all(np.array_equal(tensors[name], others[name]) for name in tensors)
    equal = equal and list(one.also) == list(other.also)
    equal = equal and all(same(also, other.also[bits]) for bits, also in one.also.items())
    return equal and (one.relative_error, one.calibrated_error) == (
        other.relative_error,
        other.calibrated_error,
    )


def solved_by(workers: Workers, *tasks: SolveTask) -> dict[str, Solved]:
    return {solved.name: solved for solved in workers.solve(list(tasks))}


def test_processes_give_what_the_solver_gives_in_this_one() -> None:
    tasks = [task(f"t{rows}", rows) for rows in (8, 24, 40)]
    tasks.append(task("nested", also=((1, 64),)))
    with LocalWorkers(2) as workers:
        found = solved_by(workers, *tasks)
    assert sorted(found) == sorted(one.name for one in tasks)
    for one in tasks:
        assert same(found[one.name], solve_task(one))


def test_weights_and_moments_may_lie_in_files(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from bcq.files.safetensors_read import read_header

    dense = task()
    assert isinstance(dense.weights, np.ndarray)
    assert isinstance(dense.moments, np.ndarray)
    save_file({"x": np.ascontiguousarray(dense.weights.T)}, tmp_path / "w.safetensors")
    np.save(tmp_path / "m.npy", dense.moments)
    stored = read_header(tmp_path / "w.safetensors").tensors["x"]
    lying = SolveTask("one", stored, True, tmp_path / "m.npy", 2, 32, False, 0)
    assert same(solve_task(lying), solve_task(dense))
    assert same(solve_task(lying.with_values()), solve_task(dense))


def test_an_error_in_a_process_comes_back_with_the_name_and_the_next_task_runs() -> None:
    with LocalWorkers(1) as workers:
        with pytest.raises(InputError, match="bad") as caught:
            solved_by(workers, task("bad", moments=np.full((64, 64), np.nan, np.float32)))
        assert caught.value.code == "E106"
        assert "in the worker" in str(caught.value.__cause__)
        assert "good" in solved_by(workers, task("good"))


def test_a_process_that_the_system_ends_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalWorkers(1) as workers:
        solved_by(workers, task("first"))
        workers._all[0].kill()
        workers._all[0].wait()
        with pytest.raises(ResourceError, match="while second was solved") as caught:
            solved_by(workers, task("second"))
    assert caught.value.code == "E602"


def test_no_process_is_left_when_work_is_given_up() -> None:
    with LocalWorkers(2) as workers:
        next(iter(workers.solve([task(f"t{number}", rows=400, inputs=256) for number in range(4)])))
    assert [process.poll() is None for process in workers._all] == [False, False]


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    distributed: Any = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # what workers start with
    try:
        with distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",  # a free port: another test process may have a cluster, too
            worker_dashboard_address=None,
        ) as cluster:
            yield cluster.scheduler_address
    finally:
        os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)


def test_a_cluster_gives_the_same_results(scheduler: str) -> None:
    tasks = [task(f"t{rows}", rows) for rows in (8, 16, 24, 32)]
    tasks.append(task("nested", also=((1, 64),)))
    with ClusterWorkers(scheduler) as workers:
        found = solved_by(workers, *tasks)
    assert sorted(found) == sorted(one.name for one in tasks)
    for one in tasks:
        assert same(found[one.name], solve_task(one))


def test_a_base_made_on_a_cluster_is_the_same(scheduler: str, tmp_path: Path) -> None:
    import tiny_models
    from bcq.calibration import CalibrationOptions
    from bcq.matrices.plan import QuantizeOptions
    from bcq.quantize import quantize
    from tiny_tokenizer import save_tokenizer, text

    model = save_tokenizer(tiny_models.save("gpt2", tmp_path / "model", n_layer=1))
    (tmp_path / "text.txt").write_text(text(600))
    for name, where in (("here", {"workers": 1}), ("there", {"scheduler": scheduler})):
        chosen = CalibrationOptions(tmp_path / "text.txt", **where)
        quantize(model, tmp_path / name, QuantizeOptions(bits=2, group_size=32), calibration=chosen)
    for file in (tmp_path / "here").iterdir():
        assert file.read_bytes() == (tmp_path / "there" / file.name).read_bytes(), file.name


def test_an_error_in_a_cluster_comes_back_with_the_name(scheduler: str) -> None:
    with ClusterWorkers(scheduler) as workers, pytest.raises(InputError, match="bad") as caught:
        solved_by(workers, task("bad", moments=np.full((64, 64), np.nan, np.float32)))
    assert caught.value.code == "E106"


def test_a_scheduler_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    monkeypatch.setattr("bcq.calibration.cluster._SECONDS_TO_CONNECT", 0.3)
    with pytest.raises(ResourceError, match=r"tcp://127\.0\.0\.1:9") as caught:
        ClusterWorkers("tcp://127.0.0.1:9")
    assert caught.value.code == "E604"


def test_without_the_package_a_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)  # None makes the import fail
    with pytest.raises(ResourceError, match="distributed") as caught:
        ClusterWorkers("tcp://127.0.0.1:9")
    assert caught.value.code == "E603"
    assert "onnx-bcq[cluster]" in caught.value.hint
