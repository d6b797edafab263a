# SPDX-License-Identifier: Apache-2.0
"""``bcq tune``: a quantized base and a task's data in, an adapter of kilobytes out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.commands.options import add_verb, emit, progress
from bcq.tuning.options import PARTS, SOURCE_FIELDS, TARGET_FIELDS, TASKS

if TYPE_CHECKING:
    from bcq.commands.options import Subparsers
    from bcq.tuning.options import TuneOptions
    from bcq.tuning.tune import TuneResult

EXAMPLES = """\
  bcq tune base --data e2e.jsonl -o adapters/e2e                   # lines {"mr": "...", "ref": "..."}
  bcq tune base --data e2e.jsonl -o adapters/e2e --resume          # after a stop: the same result
  bcq tune base --data chat.jsonl --source question --target answer --dev dev.jsonl -o adapters/chat
  bcq tune base --data reviews.tsv --task classification -o adapters/sst    # lines: text TAB label
  bcq tune minilm --data sts.tsv --task similarity -o adapters/sts          # lines: text TAB text TAB score
  bcq tune minilm --data texts.txt --task distill --teacher MODEL -o adapters/domain"""


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(subparsers, "tune", "train the scaling factors of a base for one task", EXAMPLES)
    verb.add_argument("base", type=Path, metavar="BASE", help="what `bcq quantize` wrote; it is not changed")
    verb.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help=".jsonl or tab-separated, or .xz"
    )
    verb.add_argument("-o", "--output", type=Path, required=True, help="folder of the adapter")
    verb.add_argument("--dev", type=Path, metavar="FILE", help="measure on this file before and after")
    verb.add_argument("--name", default="", help="of the adapter (default: that of the output folder)")
    verb.add_argument("--resume", action="store_true", help="go on from the checkpoint of a stopped run")
    _add_task(verb)
    _add_training(verb)
    verb.set_defaults(run=run)


def _add_task(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("task")
    group.add_argument("--task", choices=TASKS, default="lm", help="what the data means (default lm)")
    for flag, what, usual in (
        ("--source", "the input", SOURCE_FIELDS),
        ("--target", "the answer or answers", TARGET_FIELDS),
    ):
        told = f"jsonl field of {what} (default: the first that is there of {', '.join(usual)})"
        group.add_argument(flag, default="", metavar="FIELD", help=told)
    group.add_argument("--separator", metavar="TEXT", help="between both (default <sep>, or a line break)")
    group.add_argument("--teacher", type=Path, metavar="MODEL", help="dense model that `distill` follows")
    group.add_argument(
        "--score-range",
        nargs=2,
        type=float,
        default=(0.0, 5.0),
        metavar=("LOW", "HIGH"),
        help="(default 0 5)",
    )


def _add_training(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("training")
    group.add_argument(
        "--train", nargs="+", choices=PARTS, default=["alpha_1"], help="what is trained (default alpha_1)"
    )
    group.add_argument(
        "--epochs", type=float, default=3.0, metavar="N", help="passes over the data (default 3)"
    )
    group.add_argument("--steps", type=int, metavar="N", help="updates, instead of --epochs")
    group.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="examples an update (default 16)"
    )
    group.add_argument(
        "--learning-rate", type=float, default=1e-2, metavar="R", help="at the start (default 1e-2)"
    )
    group.add_argument(
        "--no-group-scaling", action="store_true", help="gradients not divided by the group size"
    )
    group.add_argument("--max-length", type=int, metavar="N", help="tokens an example (default: the context)")
    group.add_argument("--checkpoint-every", type=int, default=100, metavar="N", help="updates (default 100)")
    group.add_argument(
        "--evaluate-every", type=int, default=0, metavar="N", help="updates between looks at --dev"
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the order of examples (default 0)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Trains, writes the adapter and sums up."""
    options = _options(arguments)
    from bcq.tuning.tune import tune

    result = tune(
        arguments.base,
        arguments.data,
        arguments.output,
        options=options,
        name=arguments.name,
        dev=arguments.dev,
        teacher=arguments.teacher,
        resume=arguments.resume,
        progress=progress(arguments),
    )
    emit(arguments, _data(arguments, result), _text(arguments, result), result=False)
    return 0


def _options(arguments: argparse.Namespace) -> TuneOptions:
    from bcq.tuning.options import TuneOptions

    return TuneOptions(
        task=arguments.task,
        train=tuple(arguments.train),
        epochs=arguments.epochs,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        group_scaling=not arguments.no_group_scaling,
        source=arguments.source,
        target=arguments.target,
        separator=arguments.separator,
        max_length=arguments.max_length,
        score_range=tuple(arguments.score_range),
        checkpoint_every=arguments.checkpoint_every,
        evaluate_every=arguments.evaluate_every,
        seed=arguments.seed,
    )


def _data(arguments: argparse.Namespace, result: TuneResult) -> dict[str, Any]:
    return {
        "output": arguments.output,
        "name": result.adapter.name,
        "base_hash": result.adapter.base_hash,
        "trained": result.trained,
        "model": result.total,
        "ratio": result.total / result.trained,
        "adapter_bytes": result.adapter.nbytes,
        "updates": result.updates,
        "seconds": result.seconds,
        **result.figures,
    }


def _text(arguments: argparse.Namespace, result: TuneResult) -> str:
    trained, total = result.trained, result.total
    fewer = f"{total / trained:,.0f}x fewer"
    lines = [
        f"trained {trained:,} numbers, {fewer} than the model's {total:,}, in {result.updates} updates",
        f"adapter '{result.adapter.name}' in {arguments.output}: {result.adapter.nbytes / 1000:,.1f} KB",
        *(f"{name.replace('_', ' ')} {value:.4f}" for name, value in result.figures.items()),
        f"time {result.seconds:.1f} s",
    ]
    return "\n".join(lines)
