# SPDX-License-Identifier: Apache-2.0
"""``bcq bench``: BcqMatMul against its peers, in one interleaved run whose results are checked."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.commands import end_to_end
from bcq.commands.options import add_verb, emit, progress
from bcq.errors import InputError, UsageError

if TYPE_CHECKING:
    from bcq.bench import BenchResult, Plan
    from bcq.commands.options import Subparsers

EXAMPLES = """\
  bcq bench                                   # the README's table, about 5 minutes
  bcq bench --quick                           # a first look, under a minute
  bcq bench --goals --markdown                # each goal of the project, measured and judged
  bcq bench --full --output bench/            # every shape, every peer; tables, JSON and pictures in a folder
  bcq bench --shapes 4096x4096 --bits 3 --threads 2 --weights cold hot --svg bench.svg
  bcq bench --cost-table costs.json           # times by shape and bits, for a latency budget
  bcq bench --full --dry-run                  # what would run, and for how long
  bcq bench --end-to-end llama-1b --work models/    # whole models: tokens a second, memory, size"""

ARITHMETIC = {0: "near-exact", 1: "float32", 4: "int8"}  # by accuracy_level
OWN_FILES = ("bench.json", "bench.md", "bench.txt", "summary.md")


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb; options that are left out keep what the plan says."""
    verb = add_verb(subparsers, "bench", "time the kernels against their peers", EXAMPLES)
    _add_plans(verb)
    _add_choices(verb)
    _add_outputs(verb)
    end_to_end.add_options(verb)
    verb.set_defaults(run=run)


def _add_plans(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("plans").add_mutually_exclusive_group()
    group.add_argument("--quick", action="store_true", help="two small shapes, few rounds: under a minute")
    group.add_argument("--full", action="store_true", help="all shapes of three models, all peers: an hour")
    group.add_argument("--goals", action="store_true", help="what the project's goals speak of: 7 minutes")


def _add_choices(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("what is measured")

    def add(flag: str, **settings: Any) -> None:
        group.add_argument(flag, default=argparse.SUPPRESS, **settings)

    add("--shapes", nargs="+", metavar="NxK", help="outputs x inputs, such as 4096x4096")
    add("--tokens", nargs="+", type=int, metavar="M", help="rows of activations (default 1)")
    add("--threads", nargs="+", type=int, metavar="T", help="threads (default 1 2)")
    add("--weights", nargs="+", choices=("cold", "hot"), help="from memory or cached (default cold)")
    add("--bits", nargs="+", type=int, metavar="Q", help="planes of BcqMatMul, 1 to 8 (default 2 3 4)")
    add("--group-size", type=int, metavar="G", help="inputs that share a scale, 0 = row (default 128)")
    levels = "0 near-exact, 1 exact, 4 int8 (default all)"
    add("--accuracy-level", nargs="+", type=int, choices=tuple(ARITHMETIC), help=levels)
    where = "bcq.weights of the session: computed where the file is mapped, or on a copy"
    add("--residence", nargs="+", choices=("mapped", "resident"), help=where)
    add("--peers", choices=("none", "main", "all"), help="who is compared (default main)")
    add("--rounds", type=int, metavar="N", help="timed rounds; the median is shown (default 9)")


def _add_outputs(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("results")
    group.add_argument("--dry-run", action="store_true", help="say what would run and how long; run nothing")
    group.add_argument("--markdown", action="store_true", help="print the Markdown table only")
    group.add_argument("--svg", type=Path, metavar="FILE", help="a picture of the first shape")
    folder = "folder for bench.json, bench.md, bench.txt, summary.md, overview.md of several shapes, pictures"
    group.add_argument("--output", "-o", type=Path, metavar="DIR", help=folder)
    table = "times of BcqMatMul by shape and bits, as JSON; see docs/cost-table.md"
    group.add_argument("--cost-table", type=Path, metavar="FILE", help=table)


def run(arguments: argparse.Namespace) -> int:
    """Measures, writes what was asked for and prints the table."""
    _check(arguments)
    if arguments.end_to_end is not None:
        _warn_if_busy(arguments)
        return end_to_end.run(arguments)
    from bcq import bench
    from bcq.bench import estimate
    from bcq.bench.interrupt import unwound_on_sigterm

    plan = chosen_plan(arguments)
    with unwound_on_sigterm():
        expected = estimate.estimate(plan)
        if arguments.dry_run:
            data = {"problems": len(plan.problems), "products": expected.products}
            data |= {"seconds": round(expected.seconds), "disk_bytes": expected.disk}
            emit(arguments, data, estimate.to_text(plan, expected))
            return 0
        estimate.check_disk(expected.disk)
        _warn_if_busy(arguments)
        _say(arguments, f"about {estimate.minutes(expected.seconds)}; leave the machine alone meanwhile")
        result = bench.run(plan, progress=progress(arguments))
    _write(arguments, result)
    _print(arguments, result)
    return 0


def _warn_if_busy(arguments: argparse.Namespace) -> None:
    from bcq.bench.machine import busy

    warning = busy()
    if warning is not None:
        _say(arguments, warning)


def _say(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.quiet and not arguments.json:
        print(text)  # standard error: results go to `arguments.out`


def _check(arguments: argparse.Namespace) -> None:
    """What can be refused before anything is imported or measured.

    Raises:
        UsageError: E202 for a number out of range or options that do not go together.
        InputError: E101 when a file cannot be made where it should go.
    """
    for name in ("bits", "tokens", "threads"):
        for number in getattr(arguments, name, ()):
            if number < 1:
                raise UsageError("E202", f"--{name}: got {number}, expected numbers of at least 1.")
    if max(getattr(arguments, "bits", (1,))) > 8:
        raise UsageError("E202", f"--bits: got {max(arguments.bits)}, expected at most 8.")
    if getattr(arguments, "rounds", 1) < 1:
        raise UsageError("E202", f"--rounds: got {arguments.rounds}, expected at least 1.")
    group = getattr(arguments, "group_size", 0)
    if group < 0 or group % 32:
        raise UsageError("E202", f"--group-size: got {group}, expected 0 or a multiple of 32.")
    fixed = [name for name in ("tokens", "threads", "weights") if hasattr(arguments, name)]
    if arguments.goals and fixed:
        raise UsageError("E202", f"--goals has its own problems; got --{fixed[0]} too.", "Leave one out.")
    if arguments.cost_table and (arguments.goals or arguments.full):
        raise UsageError("E202", "--cost-table has its own plan; of the plans only --quick goes with it.")
    if arguments.cost_table and len(set(getattr(arguments, "residence", ()))) > 1:
        raise UsageError("E202", "--cost-table takes one --residence: a table has one time for a product.")
    if arguments.end_to_end is not None and arguments.dry_run:
        raise UsageError(
            "E202", "--dry-run says nothing about --end-to-end.", "--prepare makes its models alone."
        )
    for path in (arguments.svg, arguments.cost_table, arguments.output):
        if path is not None and not path.absolute().parent.is_dir():
            raise InputError("E101", f"{path}: {path.absolute().parent} is no folder.", "Make it first.")


def chosen_plan(arguments: argparse.Namespace) -> Plan:
    """The named plan, with what the user has written instead of its own.

    Raises:
        UsageError: E202 for a shape that is not two numbers.
    """
    from bcq.bench import plan

    given = vars(arguments)
    shapes = [parse_shape(text) for text in given.get("shapes", ())]
    choices: dict[str, Any] = {"problems": _problems(arguments, shapes)}
    if arguments.cost_table:
        choices |= {"bits": plan.COST_BITS, "peers": "none"}
    if arguments.full:
        choices |= {"bits": plan.FULL_BITS, "peers": "all"}
    if arguments.quick:
        choices["rounds"] = plan.QUICK_ROUNDS
    if arguments.goals:
        choices |= {"arithmetics": ("near-exact", "int8"), "rounds": plan.GOAL_ROUNDS}
    choices |= {name: given[name] for name in ("group_size", "peers", "rounds") if name in given}
    if "bits" in given:
        choices["bits"] = tuple(dict.fromkeys(given["bits"]))
    if "accuracy_level" in given:
        choices["arithmetics"] = tuple(dict.fromkeys(ARITHMETIC[n] for n in given["accuracy_level"]))
    if "residence" in given:
        choices["weights"] = tuple(dict.fromkeys(given["residence"]))
    return plan.Plan(**choices)


def _problems(arguments: argparse.Namespace, shapes: list[tuple[int, int]]) -> tuple[Any, ...]:
    from bcq.bench import plan

    if arguments.goals:
        return plan.goal_problems(*shapes[:1])
    given = vars(arguments)
    if not any(name in given for name in ("shapes", "tokens", "threads", "weights")):
        if arguments.cost_table:
            return plan.cost_problems(arguments.quick)
        named = {"quick": plan.quick_problems, "full": plan.full_problems}
        chosen = [make for name, make in named.items() if given[name]]
        return chosen[0]() if chosen else plan.default_problems()
    cold = [state == "cold" for state in dict.fromkeys(given.get("weights", ("cold",)))]
    return plan.problems(
        list(dict.fromkeys(shapes)) or plan.README,
        list(dict.fromkeys(given.get("tokens", (1,)))),
        list(dict.fromkeys(given.get("threads", plan.THREADS))),
        cold,
    )


def _write(arguments: argparse.Namespace, result: BenchResult) -> None:
    """The files that were asked for."""
    from bcq.bench import costs, figure, goals, overview, tables

    shapes = figure.shapes(result)
    if arguments.svg:
        arguments.svg.write_text(figure.figure(result, shapes[0]), encoding="utf-8")
    if arguments.cost_table:
        costs.cost_table(result).write(arguments.cost_table)
    if arguments.output:
        folder = arguments.output
        folder.mkdir(exist_ok=True)
        pages = (tables.to_page(result), tables.to_table(result), tables.to_summary(result))
        texts = (json.dumps(result.to_json(), indent=1), *pages)
        for name, text in zip(OWN_FILES, texts, strict=True):
            (folder / name).write_text(text + "\n", encoding="utf-8")
        if arguments.goals:
            page = goals.to_page(goals.judge(result), result)
            (folder / "goals.md").write_text(page + "\n", encoding="utf-8")
        if len(shapes) > 1:
            (folder / "overview.md").write_text(overview.to_overview(result) + "\n", encoding="utf-8")
        for rows, inputs in shapes:
            picture = figure.figure(result, (rows, inputs))
            (folder / f"{rows}x{inputs}.svg").write_text(picture, encoding="utf-8")


def _print(arguments: argparse.Namespace, result: BenchResult) -> None:
    from bcq.bench import goals, tables

    data = result.to_json()
    table, markdown = tables.to_table, tables.to_markdown
    if arguments.goals:
        judged = goals.judge(result)
        data["goals"] = [goal.to_json() for goal in judged]
        emit(
            arguments,
            data,
            goals.to_page(judged, result) if arguments.markdown else goals.to_text(judged, result),
        )
        return
    emit(arguments, data, markdown(result) if arguments.markdown else table(result))


def parse_shape(text: str) -> tuple[int, int]:
    """Reads ``"4096x1024"`` as (N, K).

    Raises:
        UsageError: E202 when it is not two numbers of at least 1.
    """
    rows, separator, inputs = text.partition("x")
    if not (separator and rows.isdecimal() and inputs.isdecimal() and int(rows) and int(inputs)):
        raise UsageError("E202", f"--shapes {text!r}: expected two numbers such as 4096x1024.")
    return int(rows), int(inputs)
