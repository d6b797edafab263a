# SPDX-License-Identifier: Apache-2.0
"""What quantization costs a real model: perplexity of a language model, or cosine of an encoder.

    python tools/quality.py MODEL --text test.txt --bits 1 2 3 4
    python tools/quality.py MODEL --sentences pairs.tsv --bits 2 3 4 --offset

The weights are solved and dequantized in PyTorch; nothing is exported. Text may be xz-compressed. Only linear
layers, unless ``--embeddings``.
"""

from __future__ import annotations

import argparse
import copy
import lzma
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from bcq.files.checkpoint import Checkpoint
from bcq.matrices.find import find_matrices
from bcq.matrices.plan import METHODS, QuantizeOptions, choice_for, group_size_for
from bcq.solver import relative_error, solve


def main() -> None:
    """Prints one line a method and number of bits."""
    arguments = parse()
    checkpoint = Checkpoint.open(arguments.model)
    kind = transformers.AutoModelForCausalLM if arguments.text else transformers.AutoModel
    dense = kind.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    torch.set_num_threads(arguments.threads)
    if arguments.text:
        windows = cut_windows(tokenizer, read_text(arguments.text), arguments.window, arguments.count)
        print(f"float32: perplexity {perplexity(dense, windows):.2f} on {len(windows)} windows")
    else:
        sentences = list(read_sentences(arguments.sentences, arguments.count))
        expected = embed(dense, tokenizer, sentences)
        print(f"{len(sentences)} sentences")
    for method in arguments.method:
        for bits in arguments.bits:
            options = QuantizeOptions(
                bits, arguments.group_size, arguments.offset, method, arguments.embeddings
            )
            model = copy.deepcopy(dense)
            line = f"{method} q={bits}: {quantize_in_place(model, checkpoint, options)}"
            if arguments.text:
                print(f"{line}, perplexity {perplexity(model, windows):.2f}", flush=True)
            else:
                cosine = (embed(model, tokenizer, sentences) * expected).sum(axis=1)
                low = np.percentile(cosine, 1)
                print(f"{line}, cosine mean {cosine.mean():.4f}, 1st percentile {low:.4f}", flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", type=Path, help="documents with an empty line between: perplexity")
    source.add_argument("--sentences", type=Path, help="score TAB sentence TAB sentence: cosine")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--offset", action="store_true")
    parser.add_argument("--embeddings", action="store_true")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=["multistart"])
    parser.add_argument("--window", type=int, default=256, help="tokens in a window")
    parser.add_argument("--count", type=int, default=64, help="windows, or sentences")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def quantize_in_place(model: Any, checkpoint: Checkpoint, options: QuantizeOptions) -> str:
    """Replaces the matrices of a torch model by their dequantized codes; says what it took and cost."""
    began = time.perf_counter()
    parameters = dict(model.named_parameters())
    wrong = total = 0.0
    for info in find_matrices(checkpoint):
        bits = choice_for(info.name, options, info.kind == "embedding").bits
        if info.tied_to or info.reason or bits is None or info.name not in parameters:
            continue
        weight = checkpoint.read(info.stored)
        weight = weight.T if info.transposed else weight
        group_size = group_size_for(options, info.inputs)
        solved = solve(weight, bits, group_size, options.method, options.offset, name=info.name)
        squares = float(np.square(weight, dtype=np.float64).sum())
        wrong, total = wrong + relative_error(weight, solved) * squares, total + squares
        dequantized = solved.dequantize()
        value = torch.from_numpy(np.ascontiguousarray(dequantized.T if info.transposed else dequantized))
        parameters[info.name].data.copy_(value)
    return f"relative error {wrong / total:.4f}, {time.perf_counter() - began:.1f} s"


def read_text(path: Path) -> str:
    """A text file, unpacked when its name ends in ``.xz``."""
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8").read()
    return path.read_text(encoding="utf-8")


def cut_windows(tokenizer: Any, text: str, width: int, count: int) -> torch.Tensor:
    """``count`` windows spread evenly over the text, ``[count, width]``; each document follows token 0."""
    tokens: list[int] = []
    for document in text.split("\n\n"):
        if document.strip():
            tokens += [0, *tokenizer.encode(document.strip(), add_special_tokens=False)]
    whole = len(tokens) // width
    windows = torch.tensor(tokens[: whole * width]).reshape(whole, width)
    return windows[np.linspace(0, whole - 1, min(count, whole)).astype(int)]


@torch.inference_mode()
def perplexity(model: Any, windows: torch.Tensor) -> float:
    """The exponential of the mean loss over tokens 2 to the last of each window."""
    total = 0.0
    for batch in torch.split(windows, 8):
        logits = model(batch).logits[:, :-1].flatten(0, 1)
        total += float(torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum"))
    return math.exp(total / (windows.shape[0] * (windows.shape[1] - 1)))


def read_sentences(path: Path, count: int) -> Iterator[str]:
    """The first ``count`` different sentences of a table of pairs."""
    seen: dict[str, None] = {}
    for line in read_text(path).splitlines():
        for sentence in line.split("\t")[1:3]:
            seen.setdefault(sentence)
    yield from list(seen)[:count]


@torch.inference_mode()
def embed(model: Any, tokenizer: Any, sentences: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Masked mean of the last hidden state, of length one: float32 ``[sentences, hidden]``."""
    rows = []
    for begin in range(0, len(sentences), 50):
        inputs = tokenizer(sentences[begin : begin + 50], padding=True, return_tensors="pt")
        hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][:, :, None].float()
        rows.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    result: np.ndarray[Any, np.dtype[np.float32]] = torch.cat(rows).numpy()
    return result


if __name__ == "__main__":
    main()
