# SPDX-License-Identifier: Apache-2.0
"""The score of all hostile models and faults: a table for people and JSON for programs.

``PYTHONPATH=tests python -m hostile.scoreboard [--json FILE] [--all]`` exits with 1 when one of ours is bad.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from hostile.catalog import GENERATORS
from hostile.faults import faults, run
from hostile.runner import MODES, Verdict, as_verdict

OUTCOMES = ("crash", "hang", "accepted", "opaque", "clear", "legal")
BAD = OUTCOMES[:4]
TESTS = Path(__file__).resolve().parents[1]


def run_group(group: str, mode: str, selection: str = "all") -> list[Verdict]:
    """The verdicts of one group in a fresh process; one that dies itself is an error here."""
    python_path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "hostile.runner", group, mode, selection],
        env={**os.environ, "PYTHONPATH": python_path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [as_verdict(line) for line in done.stdout.splitlines() if line.startswith("{")]


def run_all(groups: list[str], workers: int) -> list[Verdict]:
    """All groups in both modes, several at a time."""
    jobs = [(group, mode) for group in groups for mode in MODES]
    with ThreadPoolExecutor(workers) as pool:
        # The peer is run once: it has no loader of its own.
        found = pool.map(lambda job: run_group(job[0], job[1], "ours" if job[1] == MODES[0] else "all"), jobs)
        return [verdict for verdicts in found for verdict in verdicts]


def run_faults() -> list[Verdict]:
    """Faults of library, environment and runtime."""
    return [Verdict(f"fault/{fault.name}", MODES[0], *run(fault)) for fault in faults()]


def column(verdict: Verdict) -> str:
    """Which row of the table a verdict counts in."""
    op = verdict.case.split("/")[0]
    if not op.startswith("Bcq"):
        return "library faults" if op == "fault" else op
    return "bcq.session" if verdict.mode == MODES[0] else "onnxruntime + library"


def table(verdicts: list[Verdict]) -> str:
    """Counts of outcomes by who was attacked."""
    counts = Counter((column(verdict), verdict.outcome) for verdict in verdicts)
    columns = list(dict.fromkeys(column(verdict) for verdict in verdicts))
    lines = ["| | " + " | ".join((*OUTCOMES, "cases")) + " |", "|---" + "|---:" * (len(OUTCOMES) + 1) + "|"]
    for name in columns:
        numbers = [counts[name, outcome] for outcome in OUTCOMES]
        lines.append(f"| {name} | " + " | ".join(map(str, (*numbers, sum(numbers)))) + " |")
    return "\n".join(lines)


def bad_ones(verdicts: list[Verdict]) -> list[Verdict]:
    """What must not be: any bad outcome of ours through `bcq.session`, any crash or hang of the library."""
    ours = [verdict for verdict in verdicts if verdict.case.startswith(("Bcq", "fault"))]
    return [
        verdict
        for verdict in ours
        if verdict.outcome in (BAD if verdict.mode == MODES[0] else ("crash", "hang"))
    ]


def main() -> int:
    """Prints the score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write every verdict here")
    parser.add_argument("--all", action="store_true", help="list bad outcomes of every row, not only ours")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("groups", nargs="*", default=list(GENERATORS))
    arguments = parser.parse_args()
    verdicts = run_all(arguments.groups, arguments.workers) + run_faults()
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1) + "\n")
    print(table(verdicts))
    ours = bad_ones(verdicts)
    for verdict in [v for v in verdicts if v.outcome in BAD] if arguments.all else ours:
        detail = " ".join(verdict.detail.split())[:160]
        print(f"{verdict.outcome}: {verdict.case} ({column(verdict)}): {detail}")
    return 1 if ours else 0


if __name__ == "__main__":
    sys.exit(main())
