# SPDX-License-Identifier: Apache-2.0
"""``bcq doctor``: what this machine offers, and which kernel each node of a model gets on it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcq.commands.options import add_verb, emit

if TYPE_CHECKING:
    from bcq.commands.options import Subparsers

EXAMPLES = """\
  bcq doctor
  bcq doctor out
  bcq doctor model.onnx --json"""


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(
        subparsers, "doctor", "show versions, op library, CPU and chosen kernels, memory", EXAMPLES
    )
    verb.add_argument(
        "model",
        type=Path,
        nargs="?",
        metavar="MODEL",
        help="packed model, a folder or .onnx file: also list its nodes with their kernels",
    )
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the facts; a missing library is a fact, not a failure."""
    from bcq import doctor

    facts = doctor.facts(arguments.model)
    nodes = facts.get("nodes")
    machine = {name: value for name, value in facts.items() if name != "nodes"}
    text = "\n".join(lines(machine))
    emit(arguments, facts, text if nodes is None else f"{text}\n\n{node_table(nodes)}")
    return 0


def node_table(nodes: list[dict[str, Any]]) -> str:
    """One line a node, in the order of the model."""
    from bcq.report import table

    header = ["node", "op", "kernel", "weights", "q", "K", "N", "group", "level"]
    names = ("name", "op", "kernel", "weights", "bits", "K", "N", "group_size", "accuracy_level")
    body = [["-" if node[name] in (None, "") else str(node[name]) for name in names] for node in nodes]
    return table(header, body, "llllrrrrr")


def lines(facts: dict[str, Any], prefix: str = "") -> list[str]:
    """One aligned line a fact; nested facts carry their path."""
    flat = list(_flat(facts, prefix))
    width = max((len(name) for name, _ in flat), default=0)
    return [f"{name.ljust(width)}  {value}" for name, value in flat]


def _flat(facts: dict[str, Any], prefix: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in facts.items():
        path = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, dict):
            found += _flat(value, f"{path} ")
        elif isinstance(value, list | tuple | set | frozenset):
            found.append((path, " ".join(str(item) for item in value)))
        else:
            found.append((path, "-" if value is None else str(value)))
    return found
