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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from bcq.bcq import BcqWeight
from bcq.budget.choose import Chosen, choose, with_choices
from bcq.budget.formats import Format, parse_label
from bcq.budget.measure import measure
from bcq.budget.proxy import weighted
from bcq.budget.sensitivity import Table
from bcq.budget.subjects import Model, read_model
from bcq.budget.target import Target
from bcq.calibration import CalibrationOptions
from bcq.plan import METHODS, QuantizeOptions
from bcq.progress import PlainLines
from bcq.quantize import quantize
from bcq.report import table
from bcq.solver import solve
from quality import cut_windows, embed, perplexity, read_sentences, read_text

TARGETS = (2.25, 2.5, 3.0, 3.5)
UNIFORM = ("2:g0", "2:g128", "2:g128:offset", "2:g64", "2:g32", "3:g0", "3:g128", "3:g128:offset")
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
        parameters = dict(self.torch_model.named_parameters())
        before = {name: parameters[name].data.clone() for name in plan}
        for subject in self.model.subjects:
            form = plan[subject.name]
            if form.bits is not None:
                value = self._weight(subject, form).dequantize()
                value = value.T if subject.transposed else value
                parameters[subject.name].data.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        scores = self.score(self.torch_model)
        for name, value in before.items():
            parameters[name].data.copy_(value)
        return scores

    def _weight(self, subject: Any, form: Format) -> BcqWeight:
        key = (subject.name, form)
        if key not in self.solved:
            assert form.bits is not None
            group_size = form.group_size if 0 < form.group_size < subject.inputs else subject.inputs
            self.solved[key] = solve(subject.read(), form.bits, group_size, self.method, form.offset)
        return self.solved[key]

    def calibrated(self, plan: Plan, text: Path) -> Score:
        """Scores of a plan whose matrices are solved on a text, as `bcq quantize --calibrate` does."""
        from bcq.frontends.hf import read_dense

        chosen = tuple(Chosen(subject, plan[subject.name], 0, 0.0) for subject in self.model.subjects)
        options = with_choices(QuantizeOptions(), chosen)
        parameters = dict(self.torch_model.named_parameters())
        before = {name: parameters[name].data.clone() for name in plan}
        with tempfile.TemporaryDirectory() as folder:
            base = quantize(self.folder, f"{folder}/base", options, calibration=CalibrationOptions(text))
            for name in plan:
                matrix = base.find(name)
                if matrix is not None:
                    parameters[name].data.copy_(torch.from_numpy(np.array(read_dense(base, matrix.stored))))
        scores = self.score(self.torch_model)
        for name, value in before.items():
            parameters[name].data.copy_(value)
        return scores


def main() -> None:
    """Prints the sensitivities by kind, and a table of bits and one of file sizes."""
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
    best_first = "perplexity" if arguments.text else "lost cosine"
    for kind, amounts in (("bpw", arguments.targets), ("size", sizes(bench.model, arguments))):
        print(budget_table(bench, kind, amounts, uniform, tables, best_first, arguments), flush=True)
        print()


def budget_table(
    bench: Bench,
    kind: str,
    amounts: Any,
    uniform: Mapping[Format, Score],
    tables: Mapping[str, Table],
    key: str,
    arguments: argparse.Namespace,
) -> str:
    """One row a target and method."""
    rows = []
    for amount in amounts:
        target = Target(kind, amount)
        fitting = [form for form in uniform if cost(bench.model, target, form) <= amount * (1 + 1e-9)]
        best = min(fitting, key=lambda form: uniform[form][key])
        plan = {subject.name: best for subject in bench.model.subjects}
        rows.append(
            [
                f"{amount:,.6g}",
                f"uniform {best.label}",
                f"{cost(bench.model, target, best):,.6g}",
                *columns(uniform[best]),
            ]
        )
        if arguments.calibrate:
            rows.append(
                ["", "uniform, calibrated", "", *columns(bench.calibrated(plan, arguments.calibrate))]
            )
        for name, losses in tables.items():
            found = choose(bench.model, QuantizeOptions(), target, losses)
            plan = {chosen.subject.name: chosen.form for chosen in found.matrices}
            rows.append(["", f"budget, {name}", f"{found.spent:,.6g}", *columns(bench.of(plan))])
            if arguments.calibrate and name == "measured":
                rows.append(
                    [
                        "",
                        "budget, measured, calibrated",
                        "",
                        *columns(bench.calibrated(plan, arguments.calibrate)),
                    ]
                )
        print(*rows[-len(tables) - 1 :], sep="\n", flush=True)
    unit = {"bpw": "bits a weight", "size": "bytes of the file"}[kind]
    return table(
        [f"at most, {unit}", "plan", "takes", *uniform[best]], rows, "rlr" + "r" * len(uniform[best])
    )


def cost(model: Model, target: Target, form: Format) -> float:
    """What a uniform format takes of a target."""
    if target.kind == "bpw":
        weights = sum(subject.weights for subject in model.subjects)
        return 8 * sum(form.nbytes(subject.rows, subject.inputs) for subject in model.subjects) / weights
    return model.other_bytes + sum(
        form.file_bytes(subject.rows, subject.inputs) for subject in model.subjects
    )


def sizes(model: Model, arguments: argparse.Namespace) -> list[float]:
    """Files of some uniform formats."""
    return [cost(model, Target("size", 1.0), form) for form in map(parse_label, arguments.same_size)]


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
