# SPDX-License-Identifier: Apache-2.0
"""Processes of this machine that solve matrices; they start when there is work and end with this one."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import TracebackType

from bcq.calibration.task import Fault, Solved, SolveTask
from bcq.calibration.worker import receive, send
from bcq.errors import ResourceError, out_of_memory

# A BLAS that may split a product adds in another order: one thread each, as many processes as wanted.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class LocalWorkers:
    """Context manager; see :class:`bcq.calibration.task.Workers`.

    The processes are started anew rather than forked (forking a process that runs threads is not safe), and
    not by ``multiprocessing``, which would run the main script of a Python user again.

    Args:
        count: processes at most; each holds one matrix at a time.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._all: list[subprocess.Popen[bytes]] = []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(count)

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._all:
            process.kill()
        self._threads.shutdown(wait=True)
        for process in self._all:
            process.communicate()

    def solve(self, tasks: list[SolveTask]) -> Iterator[Solved]:
        """As :meth:`bcq.calibration.task.Workers.solve`."""
        while len(self._all) < min(self._count, len(tasks)):
            self._all.append(start_worker())
            self._idle.put(self._all[-1])
        futures = [self._threads.submit(self._solve_one, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    def _solve_one(self, task: SolveTask) -> Solved:
        process = self._idle.get()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            send(process.stdin, task)
            answer = receive(process.stdout)
        except (EOFError, OSError) as fault:
            raise _ended(process, task.name) from fault
        finally:
            self._idle.put(process)
        if isinstance(answer, Fault):
            raise answer.error()
        solved: Solved = answer
        return solved


def start_worker() -> subprocess.Popen[bytes]:
    """A process that solves what comes in on its standard input, until that ends."""
    found = [path for path in sys.path if path]
    environment = {**os.environ, **dict.fromkeys(_THREADS, "1"), "PYTHONPATH": os.pathsep.join(found)}
    return subprocess.Popen(
        [sys.executable, "-m", "bcq.calibration.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C is for this process, also while that one is still importing
    )


def _ended(process: subprocess.Popen[bytes], name: str) -> ResourceError:
    """Why there is no answer."""
    code = process.wait()
    if code == -signal.SIGKILL:
        return out_of_memory(f"while {name} was solved: the system ended its process")
    return ResourceError(
        "E602",
        f"the process that solved {name} ended with status {code}.",
        "Run again with --resume; fewer --workers need less memory.",
    )
