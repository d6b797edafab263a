# SPDX-License-Identifier: Apache-2.0
"""A process that solves matrices: tasks come in on standard input, results go out where output was."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
from typing import IO, Any

from bcq.calibration.task import SolveTask, attempt

_LENGTH_BYTES = 8


def send(stream: IO[bytes], message: Any) -> None:
    """Writes one message; both ends are this program, started by the same user."""
    data = pickle.dumps(message, protocol=5)
    stream.write(len(data).to_bytes(_LENGTH_BYTES, "little"))
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Reads one message.

    Raises:
        EOFError: when the other end has gone.
    """
    length = stream.read(_LENGTH_BYTES)
    if len(length) < _LENGTH_BYTES:
        raise EOFError
    data = stream.read(count := int.from_bytes(length, "little"))
    if len(data) < count:
        raise EOFError
    return pickle.loads(data)


def main() -> None:
    """Solves what comes in until the other end goes; then ends at once, whatever it is doing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with results
    tasks: queue.SimpleQueue[SolveTask] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, tasks), daemon=True).start()
    while True:
        answer = attempt(tasks.get())
        try:
            send(results, answer)
        except OSError:
            os._exit(1)


def _listen(stream: IO[bytes], tasks: queue.SimpleQueue[SolveTask]) -> None:
    try:
        while True:
            tasks.put(receive(stream))
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    main()
