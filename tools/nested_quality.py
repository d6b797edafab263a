# SPDX-License-Identifier: Apache-2.0
"""What it costs a real model that 2, 3 and 4 bits share their planes: quality and storage of each way.

    python tools/nested_quality.py MODEL --text test.txt
    python tools/nested_quality.py MODEL --sentences pairs.tsv
    python tools/nested_quality.py MODEL --sentences pairs.tsv --calibrate train.txt

Only linear layers, data-free, groups of 128 where not said otherwise. Ways: `apart` (each precision solved by
itself), `cut` (the 4-bit solution without its last planes, its alphas as they are), `refit` (the same planes,
alphas fitted to each precision), and `joint` (codes chosen for all, `bcq.precisions.solve`) in several sizes.
With a calibration text: `apart` and `joint` as `bcq.quantize` makes them, in the sizes that it chooses.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

import bcq
from bcq.bcq import BcqWeight
from bcq.files.base import QuantizedBase
from bcq.files.checkpoint import Checkpoint
from bcq.matrices.find import find_matrices
from bcq.packing import unpack
from bcq.precisions.solve import refit, solve_nested
from bcq.solver import relative_error, solve
from quality import cut_windows, embed, perplexity, read_sentences, read_text

PRECISIONS = (2, 3, 4)
JOINT = {
    "joint 128": {2: 128, 3: 128, 4: 128},
    "joint 128/256/128": {2: 128, 3: 256, 4: 128},
    "joint rows/rows/128": {2: 0, 3: 0, 4: 128},
}
Solved = dict[str, dict[int, BcqWeight]]


def main() -> None:
    """Prints one line a way and precision."""
    arguments = parse()
    torch.set_num_threads(1)
    checkpoint = Checkpoint.open(arguments.model)
    kind = transformers.AutoModelForCausalLM if arguments.text else transformers.AutoModel
    dense = kind.from_pretrained(arguments.model, dtype=torch.float32).eval()
    measure = measure_of(arguments, dense)
    print(f"float32: {measure(dense)}", flush=True)
    if arguments.calibrate:
        calibrated(arguments, dense, measure)
        return
    models = {
        (way, bits): copy.deepcopy(dense)
        for way in ("apart", "cut", "refit", *arguments.joint)
        for bits in PRECISIONS
    }
    parameters = {key: dict(model.named_parameters()) for key, model in models.items()}
    wrong, bytes_of, total = dict.fromkeys(models, 0.0), dict.fromkeys(models, 0), 0.0
    for info in find_matrices(checkpoint):
        if info.tied_to or info.reason or info.kind == "embedding":
            continue
        weight = checkpoint.read(info.stored)
        weight = np.ascontiguousarray(weight.T if info.transposed else weight)
        squares = float(np.square(weight, dtype=np.float64).sum())
        total += squares
        for way, solved in every_way(weight, arguments, bytes_of).items():
            for bits, made in solved.items():
                wrong[way, bits] += relative_error(weight, made) * squares
                values = made.dequantize()
                values = values.T if info.transposed else values
                target = parameters[way, bits][info.name]
                target.data.copy_(torch.from_numpy(np.ascontiguousarray(values)))
    print(f"float32: {measure(dense)}", flush=True)
    base = bytes_of["apart", 4]
    for (way, bits), model in models.items():
        size = "" if way == "apart" else f", file {bytes_of[way, 4] / base:.3f} of the 4-bit one"
        print(f"{way} q={bits}: error {wrong[way, bits] / total:.4f}, {measure(model)}{size}", flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", type=Path, help="documents with an empty line between: perplexity")
    source.add_argument("--sentences", type=Path, help="score TAB sentence TAB sentence: cosine")
    parser.add_argument("--window", type=int, default=256, help="tokens in a window")
    parser.add_argument("--count", type=int, default=64, help="windows, or sentences")
    parser.add_argument("--calibrate", type=Path, help="text to solve on")
    parser.add_argument("--workers", type=int, help="processes that solve then")
    parser.add_argument("--ways", nargs="*", choices=("joint", "apart"), default=["joint", "apart"])
    parser.add_argument("--joint", nargs="*", choices=JOINT, default=list(JOINT), help="group sizes to try")
    parser.add_argument("--rounds", type=int, default=8, help="alternations of the joint solver")
    return parser.parse_args()


def calibrated(arguments: argparse.Namespace, dense: Any, measure: Callable[[Any], str]) -> None:
    """Measures the linear layers of calibrated bases."""
    how: dict[str, Any] = {"embeddings": False, "group_size": 128, "workers": arguments.workers}
    with tempfile.TemporaryDirectory() as folder:
        for way, precisions in (("joint", {4: (2, 3)}), ("apart", dict.fromkeys(PRECISIONS, ()))):
            if way not in arguments.ways:
                continue
            for bits, also in precisions.items():
                base = bcq.quantize(
                    arguments.model, f"{folder}/{way}{bits}", bits=bits, also_bits=also,
                    calibrate=arguments.calibrate, **how,
                )  # fmt: skip
                size = sum(matrix.packed_bytes for matrix in base.matrices.values())
                for served in (*also, bits):
                    model = loaded(dense, base, served)
                    print(f"{way} q={served}: {measure(model)}, {size} packed bytes", flush=True)


def loaded(dense: Any, base: QuantizedBase, bits: int) -> Any:
    """A copy of a model with the matrices of a base."""
    model = copy.deepcopy(dense)
    parameters = dict(model.named_parameters())
    for matrix in base.matrices.values():
        values = unpack(base.packed(matrix.stored, bits)).dequantize()
        values = np.ascontiguousarray(values.T if matrix.transposed else values)
        parameters[matrix.name].data.copy_(torch.from_numpy(values))
    return model


def measure_of(arguments: argparse.Namespace, dense: Any) -> Callable[[Any], str]:
    """A function that says how good a model is."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    if arguments.text:
        windows = cut_windows(tokenizer, read_text(arguments.text), arguments.window, arguments.count)
        return lambda model: f"perplexity {perplexity(model, windows):.2f}"
    sentences = list(read_sentences(arguments.sentences, arguments.count))
    expected = embed(dense, tokenizer, sentences)
    return lambda model: f"cosine {float((embed(model, tokenizer, sentences) * expected).sum(1).mean()):.4f}"


def every_way(
    weight: NDArray[np.float32], arguments: argparse.Namespace, bytes_of: dict[tuple[str, int], int]
) -> Solved:
    """One matrix solved in every way; adds the bytes of each file that serves all precisions."""
    apart = {bits: solve(weight, bits, 128) for bits in PRECISIONS}
    four = apart[4]
    cut = {
        bits: BcqWeight(four.words[:bits], four.alpha[:bits], None, four.inputs, 128) for bits in PRECISIONS
    }
    found: Solved = {"apart": apart, "cut": cut, "refit": {}}
    bytes_of["apart", 4] += four.words.nbytes + four.alpha.nbytes
    bytes_of["cut", 4] += four.words.nbytes + four.alpha.nbytes
    made = {"refit": refit(weight, four, {2: 128, 3: 128})}
    for way in arguments.joint:
        made[way] = solve_nested(weight, JOINT[way], rounds=arguments.rounds)
    for way, nested in made.items():
        bytes_of[way, 4] += nested.nbytes
        found[way] = {bits: nested.at(bits) for bits in PRECISIONS}
    return found


if __name__ == "__main__":
    main()
