# SPDX-License-Identifier: Apache-2.0
"""A contender in a process of its own, which sleeps until it is asked."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from bcq.bench.end_to_end.engine import Logits, Turn

WORKER = "bcq.bench.end_to_end.worker"
PATIENCE = 10.0  # seconds for a process to end by itself


class EngineFailure(Exception):
    """A contender's library raised something, or its process has died; the text says what."""


class Process:
    """One engine at work elsewhere.

    Args:
        module: whose ``open_engine`` makes it.
        path: what it opens.
        threads: of its computations.
    """

    def __init__(self, module: str, path: Path, threads: int) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        words = [sys.executable, "-m", WORKER, module, str(path), str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self._child = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment, text=True
        )
        try:
            self.load_seconds = float(self._answer()["load"])
        except BaseException:
            self.close()
            raise

    def generate(self, prompt: Sequence[int], count: int) -> Turn:
        """One timed request.

        Raises:
            EngineFailure: when the engine fails.
        """
        return Turn(**self._ask({"do": "generate", "prompt": list(prompt), "count": count}))

    def logits(self, prompt: Sequence[int]) -> Logits:
        """Scores of the token after a prompt, float32 ``[vocabulary]``.

        Raises:
            EngineFailure: when the engine fails.
        """
        with tempfile.TemporaryDirectory(prefix="bcq-bench-") as folder:
            file = Path(folder) / "logits"
            self._ask({"do": "logits", "prompt": list(prompt), "file": str(file)})
            return np.fromfile(file, np.float32)

    def memory(self) -> tuple[int, int]:
        """Peak resident size and private part, in bytes."""
        found = self._ask({"do": "memory"})
        return int(found["peak"]), int(found["private"])

    def close(self) -> None:
        """Ends the process."""
        if self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has died with a question unread
                self._child.stdin.close()
        try:
            self._child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._log.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, words: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(words) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise EngineFailure(self._last_words()) from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise EngineFailure(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineFailure(answer["error"])
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        status = self._child.wait(PATIENCE)  # its pipe is closed, so it is at its end
        return f"its process ended with {status}: {lines[-1] if lines else 'without a word'}"
