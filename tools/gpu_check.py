# SPDX-License-Identifier: Apache-2.0
"""Everything that needs a GPU in one call: build, checks, sanitizers, times beside cuBLAS and onnxruntime.

    make gpu-check
    python3 tools/gpu_check.py --seconds 400 --output docs/benchmarks

Pieces run in the order of their worth, in a process of their own that is replaced when one fails, hangs or
ends it, so that a bad kernel costs one piece. A piece that this machine lacks something for says so and is no
failure. The page is written again after every piece. The exit status is the number of failed pieces.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

from gpu_pieces import PIECES, Outcome, Piece
from gpu_report import write_page

ROOT = Path(__file__).resolve().parents[1]
LEAST_SECONDS = 5.0  # that are worth starting a piece for


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=400, help="for everything together")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(os.environ.get("OUT") or ROOT / "docs" / "benchmarks"),
        help="folder of the page; the variable OUT names another default",
    )
    parser.add_argument(
        "--rehearse",
        type=Path,
        metavar="LIBRARY",
        help="an emulated library: small problems on the CPU, times that mean nothing",
    )
    parser.add_argument("--only", nargs="*", metavar="PIECE", help="names of pieces")
    return parser.parse_args(arguments)


class Worker:
    """A process that runs one piece after the other and answers with a line of JSON each."""

    def __init__(self, rehearse: Path | None, deadline: float) -> None:
        command = [sys.executable, str(ROOT / "tools" / "gpu_pieces.py"), str(deadline)]
        command += [] if rehearse is None else [str(rehearse)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answers: queue.Queue[str] = queue.Queue()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put("")

    def run(self, piece: Piece, seconds: float) -> Outcome:
        """What became of the piece; the worker may be dead afterwards."""
        assert self.process.stdin is not None
        started = time.monotonic()
        try:
            self.process.stdin.write(piece.name + "\n")
            self.process.stdin.flush()
            line = self.answers.get(timeout=seconds)
        except queue.Empty:
            self.stop()
            return Outcome(piece.name, "FAILED", f"did not end in {seconds:.0f} s", seconds)
        except OSError:
            line = ""
        if line:
            return Outcome(**json.loads(line))
        status = self.stop()
        return Outcome(piece.name, "FAILED", f"the process ended with {status}", time.monotonic() - started)

    def is_alive(self) -> bool:
        """Whether it takes another piece."""
        return self.process.poll() is None

    def stop(self) -> int:
        """Ends the process; its status."""
        if self.is_alive():
            self.process.kill()
        self.listener.join(timeout=5)  # its stream ends with the process
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        return self.process.wait()


def run_pieces(pieces: list[Piece], arguments: argparse.Namespace) -> list[Outcome]:
    """All pieces, each for as long as it may and the time allows."""
    end = time.monotonic() + arguments.seconds
    outcomes: list[Outcome] = []
    worker: Worker | None = None
    for piece in pieces:
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            outcome = Outcome(piece.name, "left out", "the time was up", 0.0)
        else:
            if worker is None or not worker.is_alive():
                worker = Worker(arguments.rehearse, time.time() + left)
            outcome = worker.run(piece, min(piece.seconds, left))
            if outcome.status == "FAILED":  # an error of the device stays until its process ends
                worker.stop()
        outcomes.append(outcome)
        print(outcome.line(), flush=True)
        write_page(arguments.output, outcomes)
        if piece.needed_by_all and outcome.status == "FAILED":
            break
    if worker is not None:
        worker.stop()
    return outcomes


def main(arguments: list[str] | None = None) -> int:
    """Runs the pieces and tells where the page lies."""
    options = parse(arguments)
    pieces = [piece for piece in PIECES if not options.only or piece.name in options.only]
    outcomes = run_pieces(pieces, options)
    print(write_page(options.output, outcomes))
    return sum(outcome.status == "FAILED" for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
