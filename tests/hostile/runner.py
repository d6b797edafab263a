# SPDX-License-Identifier: Apache-2.0
"""Runs cases, each in a process of its own: a crash or a hang ends only that process.

``python -m hostile.runner GROUP MODE SELECTION`` imports ONNX Runtime once, forks for every case of the
group and prints one JSON line a case.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from bcq import runtime
from hostile import catalog
from hostile.case import Case, judge_message, judge_output

SECONDS = 30.0  # far above the milliseconds that a case takes, also on a busy machine or under sanitizers
MODES = ("bcq.session", "onnxruntime")


@dataclass(frozen=True)
class Verdict:
    """What became of one case."""

    case: str
    mode: str
    outcome: str  # crash, hang, accepted, opaque, clear or legal
    detail: str


def isolated(work: Callable[[], tuple[str, str]], seconds: float = SECONDS) -> tuple[str, str]:
    """Runs ``work`` in a forked process and returns what it returned, or how the process ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _report(work, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text, in_time = _read_all(pipe.fileno(), seconds)
    if not in_time:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not in_time:
        return "hang", f"no answer within {seconds} s"
    if status != 0 or not text:
        return "crash", f"exit status {status}"
    outcome, detail = json.loads(text)
    return outcome, detail


def _report(work: Callable[[], tuple[str, str]], writer: int) -> None:
    """The child: one answer, then an end without the clean-up that belongs to the parent."""
    status = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        faulthandler.disable()
        if "BCQ_HOSTILE_STDERR" not in os.environ:  # set it to see what a sanitizer found
            os.dup2(quiet, 2)
        os.write(writer, json.dumps(work()).encode())
        status = 0
    finally:
        os._exit(status)


def _read_all(pipe: int, seconds: float) -> tuple[bytes, bool]:
    """Everything until the writer is closed, and whether that happened in time."""
    text, end = b"", time.monotonic() + seconds
    while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
        more = os.read(pipe, 65536)
        if not more:
            return text, True
        text += more
    return text, False


def _open(case: Case, path: Path, mode: str) -> ort.InferenceSession:
    options = runtime.default_options()
    options.intra_op_num_threads = 1
    if mode == "bcq.session":
        return runtime.session(path, options)
    if case.subject.domain == "bcq":
        runtime.register_library(options)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def attempt(case: Case, path: Path, mode: str) -> tuple[str, str]:
    """Opens and runs a case in this process."""
    try:
        session = _open(case, path, mode)
        feeds = {name: value for name, value in case.feeds().items() if name in _inputs(session)}
        output = np.asarray(session.run(None, feeds)[0])
    except Exception as error:  # whatever ONNX Runtime raises is the answer
        return judge_message(case, str(error)), str(error)
    return judge_output(case, output), f"{output.dtype}{list(output.shape)}"


def _inputs(session: ort.InferenceSession) -> set[str]:
    return {port.name for port in session.get_inputs()}


def run(cases: Iterator[Case], mode: str) -> Iterator[Verdict]:
    """Runs cases one after the other."""
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="bcq-hostile-") as folder:
            path = case.write(Path(folder))
            outcome, detail = isolated(lambda: attempt(case, path, mode))  # noqa: B023 - called at once
        yield Verdict(case.key, mode, outcome, detail[:2000])


def main(arguments: list[str]) -> None:
    """Prints one JSON line for each case of a group."""
    group, mode, selection = arguments
    for verdict in run(catalog.cases(group, selection), mode):
        print(json.dumps(asdict(verdict)), flush=True)


def as_verdict(line: str) -> Verdict:
    """The inverse of what `main` prints."""
    fields: dict[str, Any] = json.loads(line)
    return Verdict(**fields)


if __name__ == "__main__":
    main(sys.argv[1:])
