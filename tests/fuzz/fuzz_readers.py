# SPDX-License-Identifier: Apache-2.0
"""Fuzzes everything in Python that reads files of strangers, guided by coverage; see `fuzz.places`.

``PYTHONPATH=tests python -m fuzz.fuzz_readers FOLDER [libFuzzer options]``, FOLDER as `fuzz.seeds` wrote it.
An input is the number of a place and the content of its file. Needs the package atheris.
"""

from __future__ import annotations

import random
import resource
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

atheris: Any = import_module("atheris")  # it has no annotations, and not every machine has it

# The loader of an editable install escapes the instrumentation: modules come from their folder.
sys.meta_path = [finder for finder in sys.meta_path if "Redirecting" not in type(finder).__name__]
sys.path.insert(0, str(Path(__file__).parents[2] / "compiler"))
with atheris.instrument_imports(include=["bcq"]):
    from fuzz.mutate import changed
    from fuzz.places import PLACES, Finding

_MOST_GROWTH = 1 << 26  # bytes of memory that one input may add; inputs have some kilobytes


def main(arguments: list[str]) -> None:
    """Checks that every seed is accepted, then fuzzes until the time is up or something is found."""
    root, corpus = Path(arguments[1]) / "readers", Path(arguments[1]) / "corpus_readers"
    corpus.mkdir(exist_ok=True)
    for number, place in enumerate(PLACES):
        content = (root / place.file).read_bytes()
        code = place.check(root, content)
        if code:
            raise Finding(f"{place.file}: the seed is refused with {code}")
        (corpus / f"seed-{number}").write_bytes(bytes([number]) + content)

    def one(data: bytes) -> None:
        if data and data[0] < len(PLACES):
            before = _peak()
            PLACES[data[0]].check(root, data[1:])
            if _peak() - before > _MOST_GROWTH:
                raise Finding(f"{PLACES[data[0]].file} of {len(data)} bytes took {_peak() - before:,} more")

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        if not data or data[0] >= len(PLACES):
            return bytes(atheris.Mutate(data, most))
        draw = random.Random(seed)
        content = changed(
            PLACES[data[0]].form, data[1:], draw, lambda part: atheris.Mutate(part, len(part) + 64)
        )
        return (data[:1] + content)[:most]

    atheris.Setup([arguments[0], *arguments[2:], str(corpus)], one, custom_mutator=mutator)
    atheris.Fuzz()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(sys.argv)
