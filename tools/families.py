# SPDX-License-Identifier: Apache-2.0
"""Exports a small model of every family that generates and compares it with PyTorch.

For each family: a seeded model with the family's details, 3 bits, fused attention; logits of a prompt and 64
single steps against PyTorch with the same dequantized weights, and greedy tokens of `bcq.load` and of
onnxruntime-genai, both with one buffer for past and present, against PyTorch's. Of an encoder-decoder the
prompt is the source, attention is plain, and onnxruntime-genai, which runs none, is left out. The table is in
``docs/benchmarks/families.md``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

PROMPT = [5, 17, 33, 60, 2, 9, 71]
STEPS = 64
HEADER = """| family | attention | nodes | error | tolerance | tokens: bcq | tokens: genai |
|---|---|--:|--:|--:|--:|--:|"""


@dataclass(frozen=True)
class Outcome:
    """What one family showed.

    Attributes:
        family: its name.
        fused: whether attention became one node a layer.
        nodes: nodes of the graph.
        relative: RMS difference of logits to PyTorch, relative to their RMS.
        tolerance: what `bcq verify` allows.
        ours: how many greedy tokens in a row are PyTorch's, of `STEPS`, from `bcq.load`.
        genai: the same from onnxruntime-genai; None where it is not installed.
        tied: places where PyTorch's two best tokens lie within tolerance, so that either is right; texts
            part there.
    """

    family: str
    fused: bool
    nodes: int
    relative: float
    tolerance: float
    ours: int
    genai: int | None
    tied: frozenset[int]

    @property
    def ok(self) -> bool:
        """Whether everything agrees."""
        right = {STEPS, None, *self.tied}
        return self.relative <= self.tolerance and self.ours in right and self.genai in right

    def row(self) -> str:
        """A row of the table."""
        kind = "fused" if self.fused else "plain"
        return (
            f"| {self.family} | {kind} | {self.nodes} | {self.relative:.1e} | {self.tolerance:.1e} "
            f"| {self._said(self.ours)} | {self._said(self.genai)} |"
        )

    def _said(self, count: int | None) -> str:
        if count is None:
            return "-"
        return f"{count}, then a tie" if count in self.tied else str(count)


def measure(family: str, folder: Path, attention: str | None = None, **options: Any) -> Outcome:
    """Exports a family into a folder, with options of `bcq.export` besides, and compares."""
    import onnx_ir as ir

    import bcq
    from bcq import parity
    from bcq.export import export
    from bcq.files.exported import ExportedWeights
    from bcq.matrices.plan import QuantizeOptions
    from bcq.parity.tokens import allowed
    from tiny_families import save

    save(family, folder / "model")
    out = folder / "out"
    how = QuantizeOptions(bits=3, group_size=32, method="greedy")
    export(folder / "model", out, how, attention=attention, **options)
    graph = ir.load(out / "model.onnx").graph
    weights = ExportedWeights.open(out)
    model = bcq.load(out)
    expected, got = _both(out, model, weights)
    tokens = expected.tokens[:STEPS]
    return Outcome(
        family,
        any(node.op_type == "GroupQueryAttention" for node in graph),
        len(graph),
        parity.relative_rms(got.logits - expected.logits, expected.logits),
        allowed(weights, model),
        _agreeing(model.generate(PROMPT, max_new_tokens=STEPS), tokens),
        _genai(out, tokens) if model.continues else None,
        _ties(expected.logits[-len(expected.tokens) :], allowed(weights, model)),
    )


def _both(folder: Path, model: Any, weights: Any) -> tuple[Any, Any]:
    """What PyTorch and what the export make of the prompt, both fed PyTorch's tokens."""
    from bcq.parity import reference
    from bcq.parity.decoder import reference_cache, run_decoder
    from bcq.parity.encoder_decoder import run_encoder_decoder

    torch_model = reference.dequantized_model(folder, weights)
    if model.continues:
        cache = reference_cache(weights, model)
        expected = reference.decode(torch_model, PROMPT, STEPS, cache=cache)
        return expected, run_decoder(model, PROMPT, expected.tokens[:STEPS])
    expected = reference.answer(torch_model, PROMPT, model.begin, STEPS)
    return expected, run_encoder_decoder(model, PROMPT, expected.tokens[:STEPS])


def _ties(logits: Any, tolerance: float) -> frozenset[int]:
    """Places whose two best logits are nearer to each other than two errors within tolerance."""
    best = np.sort(logits, axis=-1)
    slack = 2 * tolerance * float(np.sqrt(np.mean(np.square(logits))))
    return frozenset(int(place) for place in np.flatnonzero(best[:, -1] - best[:, -2] <= slack))


def _agreeing(got: list[int], expected: list[int]) -> int:
    """How many tokens in a row agree; all of them when both end with the end token, 1."""
    for place, token in enumerate(expected):
        if place >= len(got):
            return STEPS if token == 1 else place
        if got[place] != token:
            return place
    return STEPS


def _genai(folder: Path, expected: list[int]) -> int | None:
    try:
        import onnxruntime_genai as genai
    except ImportError:
        return None
    model: Any = genai.Model(str(folder))
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=len(PROMPT) + STEPS, do_sample=False)
    generator = genai.Generator(model, options)
    generator.append_tokens(PROMPT)
    while not generator.is_done():
        generator.generate_next_token()
    found = [int(token) for token in generator.get_sequence(0)][len(PROMPT) :]
    return _agreeing(found[:-1] if found[-1:] == [1] else found, expected)


def main() -> int:
    """Prints the table; exit code 1 when a family disagrees."""
    import torch
    import transformers

    from tiny_families import ENCODER_DECODERS, FAMILIES

    every = [*FAMILIES, *ENCODER_DECODERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("families", nargs="*", default=every, help="all, unless some are named")
    parser.add_argument("--attention", choices=("fused", "plain"), default=None)
    parser.add_argument("--kv-cache", choices=("float", "int8"), default="float")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    print(HEADER)
    failed = []
    for family in arguments.families:
        with tempfile.TemporaryDirectory() as folder:
            chosen = {name: getattr(arguments, name) for name in ("attention", "kv_cache", "dtype")}
            outcome = measure(family, Path(folder), **chosen)
        print(outcome.row(), flush=True)
        failed += [] if outcome.ok else [family]
    if failed:
        print(f"disagree: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
