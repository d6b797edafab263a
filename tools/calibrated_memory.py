# SPDX-License-Identifier: Apache-2.0
"""Peak memory of ``bcq quantize --calibrate`` on a model of over 2 GB, killed on its way and resumed.

    python tools/calibrated_memory.py
    python tools/calibrated_memory.py --set 'h.*=keep' --set 'h.0.mlp.c_proj=1'     # a quick one

A GPT-2 with seeded random weights is written in shards. One run is killed after a few matrices and resumed,
another is never stopped: both must make the same bytes, in less than 2 GB and the largest tensor beside what
the imports take, in the process that runs the model and in each worker. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peak_memory import MB, SIZES, write_model

ALLOWED = 2000 * MB
WORDS = 5000
_CHILD = """
import json, resource, sys
import torch, transformers
from bcq.cli import main
code = main(sys.argv[1:])
peaks = [resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"code": code, "peaks": peaks}))
"""


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer of words, and a text of them, beside a model; the path of the text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [f"w{number}" for number in range(WORDS)]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, words[0]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=words[0], model_max_length=SIZES["n_positions"]
    ).save_pretrained(folder)
    text = folder / "text.txt"
    text.write_text(" ".join(random.Random(0).choices(words, k=200_000)))
    return text


def started(model: Path, output: Path, arguments: argparse.Namespace, *more: str) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    words = [
        "quantize", str(model), "-o", str(output), "--bits", str(arguments.bits), "--method", "greedy",
        "--calibrate", str(model / "text.txt"), "--calibration-windows", str(arguments.windows),
        "--calibration-tokens", str(arguments.tokens), "--workers", str(arguments.workers),
    ]  # fmt: skip
    words += [word for one in arguments.set for word in ("--set", one)]
    command = [sys.executable, "-c", _CHILD, *words, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed_after(run: subprocess.Popen[str], matrices: int) -> None:
    """Kills a run when it has told of some matrices."""
    assert run.stderr is not None
    for line in run.stderr:
        if f"quantize {matrices}/" in line:
            run.kill()
    run.wait()


def peaks(run: subprocess.Popen[str]) -> list[int]:
    """Peak bytes of a run and of its largest worker, when it has ended well."""
    out, told = run.communicate()
    if run.returncode or json.loads(out.splitlines()[-1])["code"]:
        raise SystemExit(told)
    found: list[int] = json.loads(out.splitlines()[-1])["peaks"]
    return found


def digest(folder: Path) -> str:
    """One hash over a folder, but for the manifest, which records the command."""
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name != "MANIFEST.json":
            with path.open("rb") as stream:
                while piece := stream.read(1 << 24):
                    whole.update(piece)
    return whole.hexdigest()


def main() -> int:
    """Prints what the runs took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=SIZES["n_layer"])
    parser.add_argument("--width", type=int, default=SIZES["n_embd"])
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--kill-after", type=int, default=3, help="matrices; 0 leaves the killed run out")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        return compare(Path(folder), arguments)


def compare(folder: Path, arguments: argparse.Namespace) -> int:
    """All runs on one model."""
    sizes = {**SIZES, "n_layer": arguments.layers, "n_embd": arguments.width}
    total, largest = write_model(folder / "model", sizes)
    write_tokenizer(folder / "model")
    imports = imported()
    allowed = ALLOWED + largest
    print(f"checkpoint {total / MB:,.0f} MB, largest {largest / MB:,.0f} MB, imports {imports / MB:,.0f} MB")
    began = time.monotonic()
    own, worker = peaks(started(folder / "model", folder / "base", arguments))
    print(
        f"calibrated: {(own - imports) / MB:,.0f} MB above imports, largest worker {worker / MB:,.0f} MB "
        f"(allowed {allowed / MB:,.0f}), {time.monotonic() - began:.0f} s",
        flush=True,
    )
    same = True
    if arguments.kill_after:
        killed_after(started(folder / "model", folder / "again", arguments), arguments.kill_after)
        peaks(started(folder / "model", folder / "again", arguments, "--resume"))
        same = digest(folder / "again") == digest(folder / "base")
        told = "the same" if same else "OTHER"
        print(f"killed after {arguments.kill_after} matrices and resumed: {told} bytes")
    return 0 if same and max(own - imports, worker) < allowed else 1


def imported() -> int:
    """Peak bytes of a process that imports the same and does nothing."""
    code = (
        "import resource, torch; from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, env=os.environ
    )
    return int(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
