# SPDX-License-Identifier: Apache-2.0
"""Every kill and every full disk, counted: all calls in forked runs, then whole commands under strace.

``PYTHONPATH=tests python -m hostile.kill_score [--quick]`` exits with 1 when one point is bad. Without strace
the second half is left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hostile import kills

TESTS = Path(__file__).resolve().parents[1]
SHIM = TESTS / "native" / "write_faults.c"
SYSCALLS = ("write", "fsync", "rename", "renameat2", "mkdir", "rmdir", "unlink", "unlinkat", "chmod")
FAULTS = {"kill": "signal=SIGKILL", "full once": "error=ENOSPC"}
_KILLED = 137  # 128 + SIGKILL, as shells count
_ENDS = {0: "done", 6: "full", _KILLED: "killed"}
STRIDES = {"graph": 1, "quantize": 1, "model": 4}  # the calls of a model are those of the others together
MOST_WRITES = 12  # of the many that only fill files or print progress, evenly spread


def build_shim(folder: Path) -> Path:
    """Compiles the library that is preloaded.

    Raises:
        FileNotFoundError: when there is no C compiler.
    """
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("a C compiler (gcc or clang)")
    target = folder / "write_faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", target, SHIM, "-ldl"], check=True)
    return target


def forked_points(shim: Path, subject: str, mode: str, stride: int) -> list[dict[str, object]]:
    """Points of one subject and one fault, from a process in which the library is preloaded."""
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "hostile.kills", subject, mode, str(stride)],
        env={**os.environ, "PYTHONPATH": path, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not found:
        raise RuntimeError(done.stderr[-2000:])
    return found


def strace_points(root: Path) -> Iterator[kills.Point]:
    """Whole ``bcq export`` commands, one fault each."""
    root.mkdir()
    subject = kills.Subject("graph", root)
    output = subject.fresh() / "out"
    code = _traced(subject, output, root / "trace", [])
    if code != 0 or kills.state(subject, output) != "new":
        raise RuntimeError(f"the command itself fails: exit code {code}")
    calls = Counter(re.findall(r"^(?:\d+ +)?(\w+)\(", (root / "trace").read_text(), re.MULTILINE))
    for syscall in SYSCALLS:
        step = max(1, calls[syscall] // MOST_WRITES)
        for call in range(1, calls[syscall] + 1, step):
            for mode, fault in FAULTS.items():
                work = subject.fresh()
                inject = ["-e", f"inject={syscall}:{fault}:when={call}"]
                code = _traced(subject, work / "out", root / "trace", inject)
                ended = (
                    "killed" if code == 137 else "done" if code == 0 else "full" if code == 6 else str(code)
                )
                output_state = kills.state(subject, work / "out")
                resumed = kills.resumed(subject, work)
                yield kills.Point(f"strace {syscall}", mode, call, ended, output_state, resumed)


def _traced(subject: kills.Subject, output: Path, log: Path, inject: list[str]) -> int:
    """Exit code of an export of the new output under strace; 137 when it was killed."""
    strace = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={','.join(SYSCALLS)}"]
    bcq = [sys.executable, "-m", "bcq.cli", *subject.words(kills.NEW), "-o", str(output), "--quiet"]
    done = subprocess.run(
        [*strace, *inject, *bcq],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return _KILLED if done.returncode in (-9, _KILLED) else done.returncode


def main(arguments: list[str]) -> int:
    """Prints a table, and each bad point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="every twelfth point, no strace")
    quick = parser.parse_args(arguments).quick
    points: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="bcq-kill-") as folder:
        shim = build_shim(Path(folder))
        for subject, stride in STRIDES.items():
            for mode in ("kill", "full once", "full"):
                points += _told(subject, mode, forked_points(shim, subject, mode, 12 if quick else stride))
        if quick or shutil.which("strace") is None:
            print("whole commands: left out" + ("" if quick else ", strace is not installed"))
        else:
            found = [{**vars(point), "good": point.good} for point in strace_points(Path(folder) / "strace")]
            points += _told("bcq export under strace", "kill, full once", found)
    bad = [point for point in points if not point["good"]]
    for point in bad:
        print(json.dumps(point))
    print(f"{len(points)} points, {len(bad)} bad: old or new, usable, and the same bytes after --resume")
    return 1 if bad else 0


def _told(subject: str, mode: str, found: list[dict[str, object]]) -> list[dict[str, object]]:
    counts = Counter(str(point["output"]) for point in found)
    good = sum(bool(point["good"]) for point in found)
    print(f"{subject:24} {mode:16} {good:4} of {len(found):4} good  {dict(counts)}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
