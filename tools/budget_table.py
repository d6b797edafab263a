# SPDX-License-Identifier: Apache-2.0
"""Budgets against uniform bits at the same size, on text that the budget has not seen.

    python tools/budget_table.py MODEL --sensitivity-text dev.txt --text test.txt
    python tools/budget_table.py MODEL --sensitivity-text dev.txt --sentences pairs.tsv

All matrices are packed, embeddings too; the weights are solved and dequantized in PyTorch. "uniform" is the
best on the held-out text of all uniform formats that are not larger: it has the advantage of having seen it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from bcq.bcq import BcqWeight, Float32
from bcq.budget.choose import Chosen, choose, with_choices
from bcq.budget.formats import Format, parse_label
from bcq.budget.measure import measure
from bcq.budget.proxy import weighted
from bcq.budget.sensitivity import Table
from bcq.budget.subjects import Model, read_model
from bcq.budget.target import Target
from bcq.calibration import CalibrationOptions
from bcq.matrices.plan import METHODS, QuantizeOptions
from bcq.progress import PlainLines
from bcq.quantize import quantize
from bcq.report import table
from bcq.solver import solve
from quality import cut_windows, embed, perplexity, read_sentences, read_text

TARGETS = (2.25, 2.5, 3.0, 3.5)
UNIFORM = ("2:g0", "2:g128", "2:g128:offset", "2:g64", "2:g32", "3:g0", "3:g128", "3:g128:offset")
ALLOWED = 1e-3  # uniform plans may be so much larger: rows that are padded to whole tiles
Plan = Mapping[str, Format]
Score = dict[str, float]


@dataclass
class Bench:
    """A model whose matrices are replaced plan by plan, and what it says about the held-out text."""

    folder: Path
    model: Model
    torch_model: Any
    score: Callable[[Any], Score]
    method: str
    solved: dict[tuple[str, Format], BcqWeight]

    def of(self, plan: Plan) -> Score:
        """Scores of a plan; matrices are solved once a format."""
        values = {}
        for subject in self.model.subjects:
            if plan[subject.name].bits is not None:
                value = self._weight(subject, plan[subject.name]).dequantize()
                values[subject.name] = value.T if subject.transposed else value
        return self._scores(values)

    def calibrated(self, plan: Plan, text: Path) -> Score:
        """Scores of a plan whose matrices are solved on a text, as `bcq quantize --calibrate` does."""
        from bcq.frontends.hf import read_dense

        chosen = tuple(Chosen(subject, plan[subject.name], 0, 0.0) for subject in self.model.subjects)
        options = with_choices(QuantizeOptions(method=self.method), chosen)
        with tempfile.TemporaryDirectory() as folder:
            base = quantize(self.folder, f"{folder}/base", options, calibration=CalibrationOptions(text))
            stored = {name: matrix.stored for name in plan if (matrix := base.find(name)) is not None}
            return self._scores({name: read_dense(base, place) for name, place in stored.items()})

    def _scores(self, values: Mapping[str, Float32]) -> Score:
        """Scores with other values in some parameters, which are as before in the end."""
        parameters = dict(self.torch_model.named_parameters())
        before = {name: parameters[name].data.clone() for name in values}
        for name, value in values.items():
            parameters[name].data.copy_(torch.from_numpy(np.array(value, order="C")))
        scores = self.score(self.torch_model)
        for name, original in before.items():
            parameters[name].data.copy_(original)
        return scores

    def _weight(self, subject: Any, form: Format) -> BcqWeight:
        key = (subject.name, form)
        if key not in self.solved:
            assert form.bits is not None
            group_size = form.group_size if 0 < form.group_size < subject.inputs else subject.inputs
            self.solved[key] = solve(subject.read(), form.bits, group_size, self.method, form.offset)
        return self.solved[key]


def main() -> None:
    """Prints what every uniform format scores, and a table of plans within bits and file sizes."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    bench = open_bench(arguments)
    subjects = bench.model.subjects
    cached = arguments.sensitivity
    if cached is not None and cached.exists():
        measured = Table.read(cached)
    else:
        measured = measure(
            arguments.model, subjects, arguments.sensitivity_text, arguments.method, PlainLines()
        )
        if cached is not None:
            measured.write(cached)
    errors = {name: entry.errors for name, entry in measured.matrices.items()}
    tables = {"weights": weighted(subjects, errors), "measured": measured}
    print(f"float32: {shown(bench.score(bench.torch_model))}\n", flush=True)
    uniform = {}
    for form in map(parse_label, arguments.uniform):
        uniform[form] = bench.of({subject.name: form for subject in subjects})
        print(f"{form.label}: {shown(uniform[form])}", flush=True)
    targets = [Target("bpw", amount) for amount in arguments.targets]
    targets += [
        Target("size", cost(bench.model, "size", form)) for form in map(parse_label, arguments.same_size)
    ]
    rows = []
    for target in targets:
        for label, plan, calibrated in contest(
            bench, target, uniform, tables, arguments.calibrate is not None
        ):
            scores = bench.calibrated(plan, arguments.calibrate) if calibrated else bench.of(plan)
            limit = f"{target.amount:.6g}" if target.kind == "bpw" else f"{target.amount / 1e6:.3f} MB"
            bits, file_bytes = sizes(bench.model, plan)
            rows.append([limit, label, f"{bits:.3f}", f"{file_bytes / 1e6:.3f}", *columns(scores)])
            print("|".join(rows[-1]), flush=True)
    header = ["at most", "plan", "bits", "file MB", *next(iter(uniform.values()))]
    print(f"\n{table(header, rows, 'rl' + 'r' * (len(header) - 2))}")


def contest(
    bench: Bench,
    target: Target,
    uniform: Mapping[Format, Score],
    tables: Mapping[str, Table],
    calibrate: bool,
) -> Iterator[tuple[str, Plan, bool]]:
    """Name and plan of each that takes part, and whether it is solved on a text."""
    limit = target.amount * (1 + ALLOWED)
    fitting = [form for form in uniform if cost(bench.model, target.kind, form) <= limit]
    best = min(fitting, key=lambda form: uniform[form][next(iter(uniform[form]))])
    plans = {f"uniform {best.label}": {subject.name: best for subject in bench.model.subjects}}
    for name, losses in tables.items():
        found = choose(bench.model, QuantizeOptions(), target, losses)
        plans[f"budget, {name}"] = {chosen.subject.name: chosen.form for chosen in found.matrices}
    for label, plan in plans.items():
        yield label, plan, False
    if calibrate:
        for label in (f"uniform {best.label}", "budget, measured"):
            yield f"{label}, calibrated", plans[label], True


def cost(model: Model, kind: str, form: Format) -> float:
    """What a uniform format takes of a target."""
    bits, file_bytes = sizes(model, {subject.name: form for subject in model.subjects})
    return bits if kind == "bpw" else file_bytes


def sizes(model: Model, plan: Plan) -> tuple[float, int]:
    """Bits a weight, and bytes of the exported file as `--target-size` counts them."""
    packed = file_bytes = 0
    for subject in model.subjects:
        form, shape = plan[subject.name], (subject.rows, subject.inputs)
        packed += 4 * subject.weights if form.bits is None else form.nbytes(*shape)
        file_bytes += subject.dense_bytes if form.bits is None else form.file_bytes(*shape)
    return 8 * packed / sum(subject.weights for subject in model.subjects), model.other_bytes + file_bytes


def open_bench(arguments: argparse.Namespace) -> Bench:
    """The model, and the score for its kind."""
    kind = transformers.AutoModelForCausalLM if arguments.text else transformers.AutoModel
    model = kind.from_pretrained(arguments.model, dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    if arguments.text:
        windows = cut_windows(tokenizer, read_text(arguments.text), 256, arguments.count)

        def score(changed: Any) -> Score:
            return {"perplexity": perplexity(changed, windows)}

    else:
        sentences = list(read_sentences(arguments.sentences, arguments.count))
        expected = embed(model, tokenizer, sentences)

        def score(changed: Any) -> Score:
            cosine = (embed(changed, tokenizer, sentences) * expected).sum(axis=1)
            return {
                "lost cosine": 1 - float(cosine.mean()),
                "1st percentile": float(np.percentile(cosine, 1)),
            }

    return Bench(
        arguments.model, read_model(arguments.model, QuantizeOptions()), model, score, arguments.method, {}
    )


def columns(scores: Score) -> list[str]:
    """Scores as cells."""
    return [f"{value:.4f}" if value < 2 else f"{value:.2f}" for value in scores.values()]


def shown(scores: Score) -> str:
    """Scores in a line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    held_out = parser.add_mutually_exclusive_group(required=True)
    held_out.add_argument("--text", type=Path, help="held-out documents: perplexity")
    held_out.add_argument("--sentences", type=Path, help="held-out score TAB sentence TAB sentence: cosine")
    parser.add_argument("--sensitivity-text", type=Path, required=True)
    parser.add_argument("--sensitivity", type=Path, help="file to keep sensitivities in")
    parser.add_argument("--calibrate", type=Path, help="also solve on this text")
    parser.add_argument("--targets", type=float, nargs="*", default=TARGETS, help="bits a weight")
    parser.add_argument("--uniform", nargs="+", default=UNIFORM, help="formats to compare with")
    parser.add_argument(
        "--same-size", nargs="*", default=["2:g128", "3:g128"], help="formats whose files to match"
    )
    parser.add_argument("--method", default="multistart", choices=METHODS)
    parser.add_argument("--count", type=int, default=64, help="windows, or sentences")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
