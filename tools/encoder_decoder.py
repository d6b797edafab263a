# SPDX-License-Identifier: Apache-2.0
"""An encoder-decoder of the shape of T5 1.1 base, packed, against PyTorch and onnxruntime in float32.

    python tools/encoder_decoder.py --work build/t5 --write docs/benchmarks/encoder-decoder.md

Seeded random weights, quantized at 2, 3 and 4 bits. All contenders read one source and write as many tokens
in turns, in one process; those in float32 have the dequantized weights of 3 bits, whose tokens are checked
against theirs. Folders in --work are used again.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

import bcq
from bcq.bench.machine import machine
from bcq.exporting.write import write_models
from bcq.files.base import QuantizedBase
from bcq.files.checkpoint import read_json
from bcq.files.exported import ExportedWeights
from bcq.frontends.hf import skeleton
from bcq.generation.described import ENCODER_DECODER_FILE
from bcq.generation.encoder_decoder import EncoderDecoder
from bcq.parity.reference import dequantized_model
from bcq.precisions.files import ENCODER_FILE, MODEL_FILE
from bcq.report import table
from bcq.runtime import default_options, session

SIZES: dict[str, Any] = {
    "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
}  # fmt: skip
BITS, CHECKED = (2, 3, 4), 3
LEVELS = {"": 0, " int8": 4}  # of exactness, by what names of contenders end with
REST = 0.15  # seconds until another contender's threads no longer spin
PAGE = """\
# An encoder-decoder against float32

Made with `python tools/encoder_decoder.py --write docs/benchmarks/encoder-decoder.md`: the shape of T5 1.1 base (223 M
weights with a tied head, seeded random), a source of {source} tokens, an answer of {tokens}; {threads} threads, in turns, medians of {rounds}
rounds. The tokens of 3 bits are those of PyTorch and onnxruntime with the same weights in float32. First token: the
encoder and the first step of the decoder.

{cpu}, {cores} cores, load {load}, {isa}; bcq {library}, onnxruntime {onnxruntime}, torch {torch}; {made}

{table}
"""  # noqa: E501
Answer = Callable[[list[int]], Iterator[int]]


@dataclass
class Contender:
    """What takes part: how it answers, the bytes of its files, and what was timed, in seconds."""

    name: str
    answer: Answer
    size: int
    first: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)


def main() -> None:
    """Prints the page, or writes it."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    contenders = list(entered(arguments.work, arguments.threads))
    source = [int(token) for token in np.random.default_rng(0).integers(2, 32000, arguments.source)]
    check(contenders, source)
    for _ in range(arguments.rounds):
        for contender in contenders:
            time.sleep(REST)
            play(contender, source, arguments.tokens)
    text = page(contenders, arguments)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
    print(text)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/t5"), help="where models are made")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--source", type=int, default=128, help="tokens of the source")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", type=Path, help="the page")
    return parser.parse_args()


def entered(work: Path, threads: int) -> Iterator[Contender]:
    """Everybody, with the files that they need."""
    for bits in BITS:
        base = quantized(work, bits)
        for name, level in LEVELS.items():
            folder = work / f"out-{bits}-{level}"
            if not folder.exists():
                bcq.export(base, folder, accuracy_level=level)
            yield Contender(f"BCQ {bits} bits{name}", packed(folder, threads), size_of(folder))
    made, dense = work / f"out-{CHECKED}-0", work / "dense"
    if not dense.exists():
        write_dense(QuantizedBase.open(quantized(work, CHECKED)), made, dense)
    yield Contender("onnxruntime float32", packed(dense, threads), size_of(dense))
    yield Contender("PyTorch float32", pytorch(made), size_of(dense))


def quantized(work: Path, bits: int) -> Path:
    """The base of so many bits."""
    source, base = work / "model", work / f"base-{bits}"
    if not source.exists():
        torch.manual_seed(0)
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**SIZES))
        model.half().save_pretrained(source)
    if not base.exists():
        bcq.quantize(source, base, bits=bits, group_size=128, method="greedy")
    return base


def write_dense(base: QuantizedBase, made: Path, folder: Path) -> None:
    """The graphs of an export before packing, with the values that its matrices stand for."""
    folder.mkdir()
    write_models({folder / name: model for name, model in skeleton(base).graphs().items()})
    shutil.copyfile(made / ENCODER_DECODER_FILE, folder / ENCODER_DECODER_FILE)


def size_of(folder: Path) -> int:
    """Bytes of graphs and weights."""
    return sum(path.stat().st_size for path in folder.glob("model*.onnx*"))


def packed(folder: Path, threads: int) -> Answer:
    """An export, or any folder with the same graphs, in onnxruntime."""
    graphs = []
    for name in (MODEL_FILE, ENCODER_FILE):
        options = default_options()
        options.intra_op_num_threads = threads
        graphs.append(session(folder / name, options))
    model = EncoderDecoder(folder, graphs[0], read_json(folder / ENCODER_DECODER_FILE), graphs[1])
    model.end_tokens = frozenset()  # every answer has the length that was asked for
    return lambda source: model.stream(source, None)


def pytorch(folder: Path) -> Answer:
    """The weights of an export in transformers, with its cache."""
    model = dequantized_model(folder, ExportedWeights.open(folder))

    def answer(source: list[int]) -> Iterator[int]:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        token = 0
        with torch.inference_mode():
            encoded = model.get_encoder()(input_ids=torch.tensor([source]))
            while True:
                new = torch.tensor([[token]])
                result: Any = model(
                    encoder_outputs=encoded, decoder_input_ids=new, past_key_values=cache, use_cache=True
                )
                token = int(result.logits[0, -1].argmax())
                yield token

    return answer


def check(contenders: list[Contender], source: list[int]) -> None:
    """Those with the weights of 3 bits must say the same; int8 activations may not."""
    said = {one.name: list(itertools.islice(one.answer(source), 8)) for one in contenders}
    same = [said[name] for name in (f"BCQ {CHECKED} bits", "onnxruntime float32", "PyTorch float32")]
    if same[1:] != same[:-1]:
        raise SystemExit(f"answers differ: {same}")


def play(contender: Contender, source: list[int], tokens: int) -> None:
    """One answer."""
    stream = contender.answer(source)
    began = time.perf_counter()
    next(stream)
    first = time.perf_counter()
    for _ in itertools.islice(stream, tokens - 1):
        pass
    contender.first.append(first - began)
    contender.step.append((time.perf_counter() - first) / (tokens - 1))


def page(contenders: list[Contender], arguments: argparse.Namespace) -> str:
    """Markdown."""
    rows = []
    for one in contenders:
        first, step = (gain(contenders[-1], one, what) for what in ("first", "step"))
        size, rate = f"{one.size / 1e6:.0f}", f"{1 / median(one.step):.1f}"
        rows.append([one.name, size, f"{1e3 * median(one.first):.0f}", first, rate, step])
    header = ["", "MB", "first token, ms", "of PyTorch", "tokens/s", "of PyTorch"]
    chosen = {name: getattr(arguments, name) for name in ("source", "tokens", "threads", "rounds")}
    return PAGE.format(**machine(), **chosen, torch=torch.__version__, table=table(header, rows))


def gain(other: Contender, ours: Contender, what: str) -> str:
    """How many times faster than another, the median over rounds."""
    pairs = zip(getattr(other, what), getattr(ours, what), strict=True)
    return f"{median(theirs / mine for theirs, mine in pairs):.2f}x"


if __name__ == "__main__":
    main()
