# SPDX-License-Identifier: Apache-2.0
"""The verbs of the command line, one file each: ``add_parser(subparsers)`` and ``run(arguments) -> exit code``.

These files are imported by ``bcq --help``, so they import only argparse-like things on top; the work is imported
inside ``run``.
"""

from __future__ import annotations

from bcq.commands import bench, demo, doctor, eval, export, inspect, quantize, run, verify

VERBS = (doctor, inspect, quantize, export, verify, run, eval, bench, demo)
