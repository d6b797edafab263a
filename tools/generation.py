# SPDX-License-Identifier: Apache-2.0
"""Generation against peers, and where a token's time goes: docs/benchmarks/generation.md and decode.md.

    python tools/generation.py gpt2-medium llama-1b --work FOLDER --write docs/benchmarks

Each shape is measured by ``bcq bench --end-to-end`` with a profile at the end. FOLDER keeps the models:
after ``--prepare`` only measuring is left. Pages keep what stands outside of their marks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from bcq.bench.end_to_end import figure, measure, prepare, profile, tables
from bcq.bench.end_to_end.plan import Plan
from bcq.bench.end_to_end.result import EndToEnd
from bcq.bench.end_to_end.shapes import SHAPES
from bcq.progress import PlainLines

BEGIN, END = "<!-- begin: measured -->", "<!-- end: measured -->"


def main() -> None:
    """Measures the shapes one after the other; pages are rewritten after each."""
    arguments = parse()
    results: list[EndToEnd] = []
    for name in arguments.shapes:
        plan = planned(name, arguments)
        if arguments.prepare:
            found = prepare.prepare(plan, PlainLines())
            print(name, [e.name for e in found.entrants], found.absent, flush=True)
            continue
        results.append(measure.run(plan, PlainLines(), profile=True))
        if arguments.write:
            write_pages(results, arguments.write)
        print(tables.to_markdown(results[-1]), flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps the models")
    parser.add_argument("--write", type=Path, help="folder of generation.md, decode.md and pictures")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--fresh", action="store_true", help="export ours anew")
    parser.add_argument("--prepare", action="store_true", help="make the models, measure nothing")
    return parser.parse_args()


def planned(name: str, arguments: argparse.Namespace) -> Plan:
    """Prompt of 128 tokens and 64 more, every export and peer."""
    return Plan(
        name, arguments.work, threads=arguments.threads, rounds=arguments.rounds, fresh=arguments.fresh
    )


def write_pages(results: Iterable[EndToEnd], folder: Path) -> None:
    """Puts results between the marks of both pages, and the pictures beside them."""
    results = list(results)
    parts, shares = [], []
    for result in results:
        picture = folder / f"generation-{result.name}.svg"
        picture.write_text(figure.figure(result), encoding="utf-8")
        text = tables.to_markdown(result, with_shares=False)
        parts.append(f"{text}\n\n![tokens a second over file size]({picture.name})")
        shares.append(f"### {result.name}, {result.threads} threads\n\n{profile.to_table(result.shares)}")
    replace_between_marks(folder / "generation.md", "\n\n".join(parts))
    replace_between_marks(folder / "decode.md", "\n\n".join(shares))


def replace_between_marks(page: Path, text: str) -> None:
    """Replaces what stands between the marks; ends the program where a page has none."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{page}: there is no '{BEGIN}' ... '{END}'")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
