# SPDX-License-Identifier: Apache-2.0
"""``bcq doctor``: what this machine offers and which kernels it will get."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from bcq.commands.options import add_verb, emit

if TYPE_CHECKING:
    from bcq.commands.options import Subparsers

EXAMPLES = """\
  bcq doctor
  bcq doctor --json"""


def add_parser(subparsers: Subparsers) -> None:
    """Declares the verb."""
    verb = add_verb(
        subparsers, "doctor", "show versions, op library, CPU and chosen kernels, memory", EXAMPLES
    )
    verb.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the facts; a missing library is a fact, not a failure."""
    from bcq import doctor

    facts = doctor.facts()
    emit(arguments, facts, "\n".join(lines(facts)))
    return 0


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
