# SPDX-License-Identifier: Apache-2.0
"""The same work gives the same bytes with other threads, hash seed, locale and place of the output."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs the packages for compiling")

from bcq.commands.options import recorded
from tiny_models import save

# Everything that may differ between two runs: libraries' threads, the solver's, hashes of strings, language.
SETTINGS = {
    "one": {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "LC_ALL": "C", "TZ": "UTC"},
    "two": {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "4711", "LC_ALL": "C.UTF-8", "TZ": "Asia/Seoul"},
}
SCRIPT = """
import os, sys
cores = os.sched_getaffinity(0)
os.sched_setaffinity(0, sorted(cores)[: int(sys.argv.pop(1))])
from bcq.cli import main
source, place = sys.argv[1:]
base, out = place + "/base", place + "/out"
assert main(["quantize", source, "-o", base, "--bits", "2", "--group-size", "32", "--quiet"]) == 0
assert main(["export", base, "-o", out, "--quiet"]) == 0
"""


def run(source: Path, place: Path, threads: int, settings: dict[str, str]) -> dict[str, str]:
    """SHA-256 of every file that three commands write, by name."""
    place.mkdir(parents=True)
    command = [sys.executable, "-c", SCRIPT, str(threads), str(source), str(place)]
    done = subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    files = sorted(path for path in place.rglob("*") if path.is_file())
    return {
        path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def test_threads_hash_seed_locale_and_place_change_no_byte(tmp_path: Path) -> None:
    source = save("bert", tmp_path / "model", num_hidden_layers=1)
    one = run(source, tmp_path / "here", 1, SETTINGS["one"])
    two = run(source, tmp_path / "there" / "and deeper", 2, SETTINGS["two"])
    assert one == two
    assert {"base/MANIFEST.json", "out/MANIFEST.json", "out/model.onnx.data"} <= one.keys()


@pytest.mark.parametrize(
    "words",
    [
        ["export", "some/where/m", "-o", "out", "--bits", "3"],
        ["export", "some/where/m", "--output", "out", "--bits", "3", "--json"],
        ["export", "-oout", "some/where/m", "--bits", "3", "--quiet", "--debug"],
        ["export", "some/where/m", "--resume", "--bits", "3", "--output=out"],
        ["export", "some/where/m", "--bits", "3", "--outp", "out"],
    ],
)
def test_the_manifest_records_what_decides_the_bytes(words: list[str]) -> None:
    assert recorded(words, Path("some/where/m")) == ["export", "m", "--bits", "3"]


def test_an_option_that_begins_alike_is_recorded() -> None:
    assert recorded(["quantize", "m", "--offset", "-o", "x"], Path("m")) == ["quantize", "m", "--offset"]
