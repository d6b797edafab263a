# SPDX-License-Identifier: Apache-2.0
"""``bcq bench --end-to-end``: whole models that generate, ours and those of peers, in one interleaved run."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.commands.options import emit, progress
from bcq.errors import InputError, UsageError

if TYPE_CHECKING:
    from bcq.bench.end_to_end.plan import Plan
    from bcq.bench.end_to_end.result import EndToEnd

DEFAULT = "gpt2-small"
_KERNEL_ONLY = ("shapes", "weights", "accuracy_level", "residence")


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declares the option and those that only it has."""
    group = verb.add_argument_group("whole models")
    what = "generate with whole models: a shape with random weights (gpt2-small, gpt2-medium, llama-1b), a"
    what += f" model folder, or an export (default {DEFAULT})"
    group.add_argument("--end-to-end", nargs="?", const=DEFAULT, metavar="MODEL", help=what)
    group.add_argument(
        "--prompt", type=int, default=128, metavar="N", help="tokens of the prompt (default 128)"
    )
    group.add_argument(
        "--work", type=Path, metavar="DIR", help="keep the models that are made, for the next run"
    )
    group.add_argument("--vocabulary", type=int, metavar="N", help="tokens of a shape, to make it smaller")
    group.add_argument("--fresh", action="store_true", help="export anew what DIR has")
    group.add_argument("--prepare", action="store_true", help="make the models and measure nothing")
    group.add_argument("--profile", action="store_true", help="also show where the time of a token goes")


def run(arguments: argparse.Namespace) -> int:
    """Prepares, measures, writes and prints."""
    from bcq.bench.end_to_end.measure import run as measured
    from bcq.bench.end_to_end.prepare import prepare
    from bcq.bench.interrupt import unwound_on_sigterm

    _check(arguments)
    with unwound_on_sigterm(), _work(arguments) as work:
        plan = chosen(arguments, work)
        if arguments.prepare:
            found = prepare(plan, progress(arguments))
            data = {"entrants": [e.name for e in found.entrants], "absent": found.absent}
            emit(arguments, data, "\n".join([*data["entrants"], *_absent(found.absent)]))
            return 0
        result = measured(plan, progress(arguments), profile=arguments.profile)
        _write(arguments, result)
    _print(arguments, result)
    return 0


def _absent(reasons: dict[str, str]) -> list[str]:
    return [f"absent: {name}: {reason}" for name, reason in reasons.items()]


def chosen(arguments: argparse.Namespace, work: Path) -> Plan:
    """The plan, with what the user has written instead of its own."""
    from bcq.bench.end_to_end.plan import Plan

    given = vars(arguments)
    choices: dict[str, Any] = {name: given[name] for name in ("prompt", "vocabulary", "fresh")}
    choices |= {name: given[name] for name in ("rounds", "group_size") if name in given}
    choices |= {name: given[name][0] for name in ("tokens", "threads") if name in given}
    if "bits" in given:
        choices["bits"] = tuple(dict.fromkeys(given["bits"]))
    if arguments.quick:
        choices["rounds"] = 3
    return Plan(arguments.end_to_end, work, peers=given.get("peers") != "none", **choices)


def _check(arguments: argparse.Namespace) -> None:
    """Raises UsageError E202 or InputError E101 before anything is made."""
    from bcq.bench.end_to_end.shapes import SHAPES

    given = vars(arguments)
    source = arguments.end_to_end
    if source not in SHAPES and not Path(source).is_dir():
        shapes = ", ".join(name for name in SHAPES if "tiny" not in name and not name.endswith("-llama"))
        raise InputError("E101", f"{source}: no such folder, and no shape.", f"Shapes are {shapes}.")
    for name in _KERNEL_ONLY:
        if name in given:
            raise UsageError("E202", f"--{name.replace('_', '-')} does not go with --end-to-end.")
    for name in ("tokens", "threads"):
        if len(given.get(name, (1,))) > 1:
            raise UsageError("E202", f"--{name}: got several numbers, --end-to-end takes one.")
    if given.get("tokens", (2,))[0] < 2:
        raise UsageError("E202", "--tokens: got 1, expected at least 2: the first one belongs to the prompt.")
    for name in ("prompt", "vocabulary"):
        if given[name] is not None and given[name] < 8:
            raise UsageError("E202", f"--{name}: got {given[name]}, expected at least 8.")
    if arguments.prepare and arguments.work is None:
        raise UsageError("E202", "--prepare needs --work DIR, where the models stay.")


@contextlib.contextmanager
def _work(arguments: argparse.Namespace) -> Iterator[Path]:
    from bcq.bench.scratch import scratch_folder

    if arguments.work is not None:
        arguments.work.mkdir(exist_ok=True)
        yield arguments.work
        return
    with scratch_folder() as folder:
        yield folder


def _write(arguments: argparse.Namespace, result: EndToEnd) -> None:
    from bcq.bench.end_to_end import figure, tables

    picture = figure.figure(result)
    if arguments.svg:
        arguments.svg.write_text(picture, encoding="utf-8")
    if arguments.output:
        folder: Path = arguments.output
        folder.mkdir(exist_ok=True)
        text = json.dumps(result.to_json(), indent=1)
        (folder / f"{result.name}.json").write_text(text + "\n", encoding="utf-8")
        (folder / f"{result.name}.md").write_text(tables.to_markdown(result) + "\n", encoding="utf-8")
        (folder / f"{result.name}.svg").write_text(picture, encoding="utf-8")


def _print(arguments: argparse.Namespace, result: EndToEnd) -> None:
    from bcq.bench.end_to_end import tables

    emit(arguments, result.to_json(), tables.to_markdown(result))
