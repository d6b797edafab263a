# SPDX-License-Identifier: Apache-2.0
"""The verbs of the command line, one file each: ``add_parser(subparsers)`` and ``run(arguments)``.

``bcq --help`` imports all of them, so they import only light things on top; the work is imported inside
``run``, which returns the exit code.
"""

from __future__ import annotations

from bcq.commands import (
    adapt,
    bench,
    chat,
    demo,
    doctor,
    export,
    import_,
    inspect,
    quantize,
    report,
    run,
    serve,
    tune,
    verify,
)
from bcq.commands import eval as evaluate

VERBS = (
    doctor,
    inspect,
    quantize,
    import_,
    tune,
    adapt,
    export,
    verify,
    run,
    chat,
    serve,
    evaluate,
    report,
    bench,
    demo,
)
