# SPDX-License-Identifier: Apache-2.0
"""Runs out of memory at many points: a limit of address space that grows from nothing to enough.

``PYTHONPATH=tests python -m hostile.limits EXTRA_MB...`` imports everything once, forks for every verb and
limit, and prints one JSON line each: exit code of the command, its last words, what lies beside its input.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np

from bcq import cli
from bcq.exporting.write import write_model
from graphs import model_of
from hostile.kills import forked
from tiny_models import save

GRAPH = "main (float[m, 1024] x) => (float[m, 1024] y) { h = MatMul (x, w) y = MatMul (h, v) }"
QUICK = ("--bits", "2", "--method", "greedy", "--quiet")


def commands(root: Path) -> dict[str, list[str]]:
    """Command lines by verb, on inputs whose largest tensors have 32 and 40 MB."""
    wide = np.random.default_rng(0).standard_normal((1024, 8192), np.float32)
    write_model(model_of(GRAPH, w=wide, v=np.ascontiguousarray(wide.T)), root / "in.onnx")
    model = save("gpt2", root / "model", n_embd=512, vocab_size=20_000, n_head=8, n_layer=1)
    out = ["-o", str(root / "out"), *QUICK]
    return {"export": ["export", str(root / "in.onnx"), *out], "quantize": ["quantize", str(model), *out]}


def address_space() -> int:
    """Bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def attempt(words: list[str], extra: int, said: Path) -> str:
    """Exit code of a command that gets so many more bytes."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    limit = address_space() + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        return str(cli.main(words))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def main(arguments: list[str]) -> int:
    """Prints one line a run; 0 when each one is done or says that memory ran out."""
    bad = 0
    with tempfile.TemporaryDirectory(prefix="bcq-limits-") as folder:
        root = Path(folder)
        said = root / "said"
        for verb, words in commands(root).items():
            forked(lambda words=words: str(cli.main(words)))  # type: ignore[misc]  # everything is imported once
            cli.main(words)
            for text in arguments:
                code = forked(lambda text=text, words=words: attempt(words, int(text) << 20, said))  # type: ignore[misc]
                left = sorted(path.name for path in root.iterdir() if path.name.startswith("."))
                bad += not (code == "0" or (code == "6" and "error[E602]: out of memory" in said.read_text()))
                told = {
                    "verb": verb,
                    "mb": int(text),
                    "code": code,
                    "said": said.read_text()[-300:],
                    "left": left,
                }
                print(json.dumps(told), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
