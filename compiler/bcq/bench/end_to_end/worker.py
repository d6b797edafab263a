# SPDX-License-Identifier: Apache-2.0
"""The process of one contender: opens it and takes turns, asked by lines of JSON on standard input.

Run by `bcq.bench.end_to_end.process`, so that peak memory is the contender's own and its idle threads cost
the others nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from bcq.bench.end_to_end.engine import Engine, resident_bytes, take_turn


def main() -> None:
    """``worker MODULE PATH THREADS``: answers each line by one; ends with standard input."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print must not end up among the answers
    module, path, threads = sys.argv[1:4]
    serve(lambda: _opened(module, Path(path), int(threads)), sys.stdin, answers)


def serve(open_engine: Callable[[], tuple[Engine, float]], asked: TextIO, answers: TextIO) -> None:
    """Opens the contender, says how long that took, and does what the lines ask for."""
    engine: Engine | None = None
    try:
        engine, seconds = open_engine()
        _say(answers, {"load": seconds})
        for line in asked:
            _say(answers, answer(engine, json.loads(line)))
    except Exception as error:  # a library may raise anything; the parent says it
        _say(answers, {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"})


def _opened(module: str, path: Path, threads: int) -> tuple[Engine, float]:
    """The engine and the seconds that opening took, imports aside."""
    maker = import_module(module)
    began = time.perf_counter()
    engine: Engine = maker.open_engine(path, threads)
    return engine, time.perf_counter() - began


def answer(engine: Engine, asked: dict[str, Any]) -> dict[str, Any]:
    """One request: ``generate``, ``logits`` (into a file) or ``memory``."""
    if asked["do"] == "generate":
        return take_turn(engine, asked["prompt"], asked["count"]).to_json()
    if asked["do"] == "logits":
        engine.logits(asked["prompt"]).tofile(asked["file"])
        return {}
    peak, private = resident_bytes()
    return {"peak": peak, "private": private}


def _say(answers: TextIO, words: dict[str, Any]) -> None:
    answers.write(json.dumps(words) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
