# SPDX-License-Identifier: Apache-2.0
"""Workers of a Dask cluster that solve matrices; see ``docs/decisions/0012-calibration.md`` for why Dask."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from itertools import islice
from types import TracebackType
from typing import Any

import numpy as np

from bcq import __version__
from bcq.calibration.task import Fault, Solved, SolveTask, attempt
from bcq.errors import ResourceError

_SECONDS_TO_CONNECT = 10
_TRIES_AGAIN = 2  # after the death of a worker, on others


class ClusterWorkers:
    """Context manager; see :class:`bcq.calibration.task.Workers`.

    A matrix and its second moments go over the network, so workers need neither the model nor the text. No
    more tasks are under way than the cluster has threads, so that the scheduler does not hold a whole block.

    Args:
        address: of the scheduler, such as ``tcp://host:8786``.

    Raises:
        ResourceError: E603 when the package distributed is missing, E604 when the scheduler does not answer,
            has no workers, or these have another version of this program.
    """

    def __init__(self, address: str) -> None:
        self._distributed = _distributed()
        self._address = address
        try:
            self._client = self._distributed.Client(
                address, timeout=_SECONDS_TO_CONNECT, set_as_default=False
            )
        except (OSError, TimeoutError, ValueError) as fault:
            raise ResourceError(
                "E604",
                f"no Dask scheduler answers at {address} ({fault or type(fault).__name__}).",
                "Start one with `dask scheduler`, and workers with `dask worker ADDRESS`.",
            ) from fault
        try:
            self._check_workers()
        except BaseException:
            self._client.close()
            raise

    def __enter__(self) -> ClusterWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def solve(self, tasks: list[SolveTask]) -> Iterator[Solved]:
        """As :meth:`bcq.calibration.task.Workers.solve`."""
        left = iter(tasks)
        names: dict[str, str] = {}  # of matrices by the keys of their futures

        def submit(task: SolveTask) -> Any:
            values = self._client.scatter(task.with_values(), hash=False)
            future = self._client.submit(attempt, values, pure=False, retries=_TRIES_AGAIN)
            names[future.key] = task.name
            return future

        threads = max(1, sum(self._client.nthreads().values()))
        first = [submit(task) for task in islice(left, threads)]
        ready = self._distributed.as_completed(first, loop=self._client.loop)
        for future in ready:
            yield self._result(future, names[future.key])
            for task in left:
                ready.add(submit(task))
                break

    def _result(self, future: Any, name: str) -> Solved:
        try:
            answer: Solved | Fault = future.result()
        except Exception as fault:  # distributed has an exception for each way in which a worker is lost
            raise ResourceError(
                "E604",
                f"the cluster could not solve {name}: {type(fault).__name__}: {fault}.",
                "Run again with --resume; see the logs of its workers.",
            ) from fault
        if isinstance(answer, Fault):
            raise answer.error()
        return answer

    def _check_workers(self) -> None:
        """Refuses workers that would make other bytes."""
        expected = _versions()
        found: dict[str, Any] = self._client.run(_versions, on_error="return")
        if not found:
            raise ResourceError(
                "E604",
                f"the scheduler at {self._address} has no workers.",
                "Start one: `dask worker ADDRESS`.",
            )
        for worker, versions in found.items():
            if versions != expected:
                told = (
                    f"{type(versions).__name__}: {versions}" if isinstance(versions, Exception) else versions
                )
                raise ResourceError(
                    "E604",
                    f"the worker {worker} has {told}, expected {expected}.",
                    "Install the same versions there.",
                )


def _distributed() -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError as fault:
        raise ResourceError(
            "E603",
            f"the package {fault.name} is not installed; --scheduler needs it.",
            "pip install 'onnx-bcq[cluster]'",
        ) from fault


def _versions() -> dict[str, str]:
    return {"bcq": __version__, "numpy": np.__version__}
