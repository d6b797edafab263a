# SPDX-License-Identifier: Apache-2.0
"""Kills a run, or fills its disk, at each call that changes the disk, over a good older output.

``LD_PRELOAD=write_faults.so python -m hostile.kills SUBJECT MODE STRIDE`` imports everything once, forks for
every point, and prints one JSON line a point. After each fault the output must be the old or the new one byte
for byte and open as a session or base, and the same run with ``resume`` must make the same bytes as one that
was never stopped and leave nothing else behind.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bcq
from bcq.commands.options import recorded
from bcq.errors import ResourceError
from bcq.export import export
from bcq.exporting.write import write_model
from bcq.files.integrity import check_integrity
from bcq.matrices.plan import QuantizeOptions
from bcq.quantize import quantize
from graphs import model_of, normal
from tiny_models import save

MODES = {"count": 1, "kill": 2, "full once": 3, "full": 4}
_TWO_LAYERS = """graph (float[n, 64] x) => (float[n, 48] y) {
    h = MatMul (x, first)
    r = Relu (h)
    y = Gemm <transB = 1> (r, second, bias)
}"""
OLD: dict[str, Any] = {"bits": 1, "method": "greedy"}
NEW: dict[str, Any] = {"bits": 2, "method": "greedy"}


@dataclass(frozen=True)
class Point:
    """What was found after a fault at one call."""

    subject: str
    mode: str
    call: int
    ended: str  # how the faulty run ended: killed, done, full, or what it raised otherwise
    output: str  # old, new, or what is wrong
    resumed: str  # new, or what is wrong

    @property
    def good(self) -> bool:
        """Whether nothing was lost, said wrongly or left behind."""
        ended = ("killed", "done") if self.mode == "kill" else ("full", "done")
        return self.ended in ended and self.output in ("old", "new") and self.resumed == "new"


class Subject:
    """A run that writes ``out`` over an older output, in a folder of its own."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root
        self.source = self._make_source()
        (root / "reference").mkdir()
        for which, options in (("old", OLD), ("new", NEW)):
            self.write(root / "reference" / which, options, False)
        self.old, self.new = (tree(root / "reference" / which) for which in ("old", "new"))
        assert self.old != self.new

    def _make_source(self) -> Path:
        if self.name != "graph":
            return save("gpt2", self.root / "source", n_layer=1)
        (self.root / "source").mkdir()
        model = model_of(_TWO_LAYERS, first=normal(64, 96), second=normal(48, 96), bias=normal(48))
        write_model(model, self.root / "source" / "in.onnx")
        return self.root / "source" / "in.onnx"

    def words(self, options: dict[str, Any]) -> list[str]:
        """The command line but for the output, which the manifest records."""
        verb = "quantize" if self.name == "quantize" else "export"
        return [
            verb,
            str(self.source),
            *(word for key in options for word in (f"--{key}", str(options[key]))),
        ]

    def write(self, output: Path, options: dict[str, Any], resume: bool) -> None:
        """One run, in this process."""
        work = quantize if self.name == "quantize" else export
        command = ["bcq", *recorded(self.words(options), self.source)]
        work(self.source, output, QuantizeOptions(**options), command=command, resume=resume)

    def fresh(self) -> Path:
        """A folder that holds the old output and nothing else."""
        work = self.root / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(self.root / "reference" / "old", work / "out")
        return work


def tree(folder: Path) -> str:
    """One hash over names and bytes of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def forked(work: Callable[[], str]) -> str:
    """What ``work`` says in a process of its own, or "killed"."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        text = "no answer"
        try:
            text = work()
        except BaseException:
            text = traceback.format_exc()
        finally:
            arm("off", 0)
            os.write(writer, text[-4000:].encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "killed" if status == -signal.SIGKILL else text if status == 0 else f"exit status {status}"


def arm(mode: str, call: int) -> None:
    """Makes the preloaded library count, and fail at a call."""
    fault_arm = getattr(ctypes.CDLL(None), "fault_arm", None)
    if fault_arm is not None:  # else strace makes the faults
        fault_arm(MODES.get(mode, 0), call)


def attempt(subject: Subject, output: Path, mode: str, call: int) -> str:
    """A run with a fault; "done", "full" when it says so, else what it says."""
    arm(mode, call)
    try:
        subject.write(output, NEW, False)
    except ResourceError as fault:
        return "full" if fault.code == "E601" and "No space left" in fault.message else str(fault)
    return "done"


def count(subject: Subject) -> int:
    """How many calls of a run change the disk."""
    output = subject.fresh() / "out"

    def run() -> str:
        attempt(subject, output, "count", 0)
        return str(ctypes.CDLL(None).fault_calls())

    return int(forked(run))


def state(subject: Subject, output: Path) -> str:
    """Which output is there: old or new, whole and usable; else what is wrong."""
    if not output.is_dir():
        return "no output"
    found = {subject.old: "old", subject.new: "new"}.get(tree(output), "neither the old nor the new bytes")

    def usable() -> str:
        intact = check_integrity(output)
        if subject.name != "quantize":
            bcq.session(output)
        return "usable" if intact.ok else intact.faults[0]

    said = forked(usable)
    return found if said == "usable" else said


def resumed(subject: Subject, work: Path) -> str:
    """What the same run makes with resume, "new" when all is as if never stopped and nothing else is left."""

    def run() -> str:
        subject.write(work / "out", NEW, True)
        return "done"

    said = forked(run)
    if said != "done":
        return said
    left = sorted(path.name for path in work.iterdir() if path.name != "out")
    return f"left {left}" if left else state(subject, work / "out")


def point(subject: Subject, mode: str, call: int) -> Point:
    """One fault and what came of it."""
    work = subject.fresh()
    ended = forked(lambda: attempt(subject, work / "out", mode, call))
    output = state(subject, work / "out")
    return Point(subject.name, mode, call, ended, output, resumed(subject, work))


def main(arguments: list[str]) -> int:
    """Prints one line a point; 0 when all are good."""
    name, mode, stride = arguments[0], arguments[1], int(arguments[2])
    bad = 0
    with tempfile.TemporaryDirectory(prefix="bcq-kills-") as folder:
        subject = Subject(name, Path(folder))
        for call in range(1, count(subject) + 1, stride):
            found = point(subject, mode, call)
            bad += not found.good
            print(json.dumps({**asdict(found), "good": found.good}), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
