# SPDX-License-Identifier: Apache-2.0
"""The options of ``bcq run``, ``bcq chat`` and ``bcq serve``: which model, and how tokens are chosen."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
_NAMES = ("temperature", "top_k", "top_p", "min_p", *_PENALTIES, "seed")


def add_model_options(verb: argparse.ArgumentParser) -> None:
    """The export, and which of its tasks runs."""
    verb.add_argument("folder", type=Path, metavar="FOLDER", help="what `bcq export` wrote")
    verb.add_argument("--adapter", metavar="NAME", help="task of an export with --adapters, or its folder")
    verb.add_argument("--bits", type=int, metavar="Q", help="precision of an export that serves several")


def add_sampling_options(verb: argparse.ArgumentParser) -> None:
    """How the next token is chosen; greedily unless --temperature is given."""
    group = verb.add_argument_group("sampling")
    add = group.add_argument
    add("--temperature", type=float, default=0.0, metavar="T", help="0 = greedy (default)")
    add("--top-k", type=int, default=0, metavar="K", help="among the K likeliest, 0 = all")
    add("--top-p", type=float, default=1.0, metavar="P", help="within this probability mass")
    add("--min-p", type=float, default=0.0, metavar="P", help="at least so likely, of the likeliest one")
    add("--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1 avoids what was there")
    add("--presence-penalty", type=float, default=0.0, metavar="R", help="off the logits of what was said")
    add("--frequency-penalty", type=float, default=0.0, metavar="R", help="the same, for each time")
    add("--seed", type=int, default=0, metavar="N", help="seed of sampling (0)")
    add("--stop", action="append", default=[], metavar="TEXT", help="ends an answer; may be repeated")


def sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    """How tokens are chosen and where they end, as `Model.generate` takes it."""
    return {"stop": tuple(arguments.stop), **{name: getattr(arguments, name) for name in _NAMES}}
