# SPDX-License-Identifier: Apache-2.0
"""The whole chain on the small trained model that ships with the package: the story behind ``bcq demo``."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq import evaluate, report
from bcq.errors import UsageError
from bcq.evaluate import Logits, Perplexity
from bcq.files.manifest import listed_files
from bcq.generation.model import Model, load
from bcq.matrices.plan import QuantizeOptions
from bcq.progress import SILENT, Progress
from bcq.torch_threads import one_torch_thread

_CHOOSE = "Choose another folder or a new one."
PROMPT = "The people of the United States"
CONTEXT = 256
WINDOWS = 20  # of the held-out speech: half of it, so that all is done within a minute
PORTABLE_WINDOWS = 4
# One operator is within 1e-4 of exact arithmetic; this model's 17 products may add up to sqrt(17) * 1e-4 of
# the logits, whose size is about 5: 2e-3 nats.
PORTABLE_TOLERANCE = 2e-3
NEW_TOKENS = 48
SAMPLING: dict[str, Any] = {"temperature": 0.5, "top_k": 20, "seed": 0}
TIMED_TOKENS = 64
TIMED_RUNS = 5


@dataclass(frozen=True)
class Line:
    """One exported model.

    Attributes:
        bits: planes per matrix; 32 for the model left dense.
        file_bytes: ``model.onnx`` and its data file.
        weight_bytes: tensors only: packed matrices and dense rest, without graph and alignment.
        perplexity: on the held-out speech, with the op library.
        portable_difference: RMS difference of a token's loss, in nats, when the library is not there.
        agreement: share of places where the likeliest token is that of the fp32 model.
        tokens_per_second: greedy decoding, one sequence, best of a few runs.
        parity: RMS of the difference to PyTorch with the same dequantized weights, relative; None for dense.
        ok: whether parity is within tolerance and the library changes nothing.
        text: sampled continuation of the prompt.
    """

    bits: int
    file_bytes: int
    weight_bytes: int
    perplexity: float
    portable_difference: float
    agreement: float
    tokens_per_second: float
    parity: float | None
    ok: bool
    text: str


@dataclass(frozen=True)
class DemoResult:
    """What the demo found: the fp32 reference by PyTorch and one line a model."""

    reference: float
    tokens: int
    lines: list[Line]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every model computes what PyTorch computes."""
        return all(line.ok for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "ok": self.ok, "prompt": PROMPT}


def run(bits: Sequence[int], output: Path | None = None, progress: Progress = SILENT) -> DemoResult:
    """Quantizes, exports, runs, verifies and measures the shipped model.

    Args:
        bits: one model each.
        output: keeps the exported folders here; a temporary folder when None.
        progress: one step a stage.

    Raises:
        UsageError: E202 for bits outside 1 to 8, E203 for an output that holds something else.
    """
    began = time.monotonic()
    if output is not None:
        _check_output(output)
    choices = [QuantizeOptions(bits=number) for number in bits]  # refuses wrong bits before any work
    with ExitStack() as stack:
        stack.enter_context(one_torch_thread())
        model = stack.enter_context(as_file(files("bcq") / "demo_model"))
        if output is None:
            output = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bcq-demo-")))
        progress.start("demo", 2 + len(choices))
        speech = evaluate.read_text(model / "heldout.txt")
        reference = evaluate.measure(torch_logits(model), tokens_of(model, speech), CONTEXT, WINDOWS)
        progress.step("PyTorch fp32", f"perplexity {reference.perplexity:.2f}")
        lines = []
        for options in [QuantizeOptions(overrides=("*=keep",)), *choices]:
            lines.append(_line(model, output, options, speech, reference))
            progress.step(_name(lines[-1].bits), f"perplexity {lines[-1].perplexity:.2f}")
        progress.done()
    return DemoResult(reference.perplexity, reference.tokens, lines, time.monotonic() - began)


def _check_output(folder: Path) -> None:
    """Refuses a folder with anything but the exports of an earlier demo."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError("E203", f"{folder} exists and is not a folder.", _CHOOSE)
    for entry in sorted(folder.iterdir()):
        if not (re.fullmatch("fp32|q[1-8]", entry.name) and listed_files(entry) is not None):
            raise UsageError("E203", f"{folder} holds '{entry.name}', which no demo wrote.", _CHOOSE)


def torch_logits(model: Path) -> Logits:
    """The original model in PyTorch, float32, as a function from token ids to logits."""
    import torch

    from bcq.parity.reference import original_model

    module = original_model(model)

    def logits(tokens: Sequence[int]) -> NDArray[Any]:
        with torch.no_grad():
            result: NDArray[Any] = module(input_ids=torch.tensor([list(tokens)])).logits[0].numpy()
        return result

    return logits


def tokens_of(model: Path, text: str) -> list[int]:
    """Token ids by the folder's own tokenizer."""
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids)


def text(result: DemoResult) -> str:
    """The table and what each model writes, for people."""
    first = result.lines[0]
    rows = [
        [
            _name(line.bits),
            f"{line.file_bytes / report.MEGA:.2f}",
            f"{line.weight_bytes / report.MEGA:.2f}",
            f"{first.weight_bytes / line.weight_bytes:.1f}x",
            f"{first.weight_bytes / 2 / line.weight_bytes:.1f}x",
            f"{line.perplexity:.2f}",
            f"{line.agreement:.1%}",
            f"{line.tokens_per_second:,.0f}",
            "-" if line.parity is None else f"{line.parity:.0e}",
            f"{line.portable_difference:.0e}",
        ]
        for line in result.lines
    ]
    header = ["weights", "file MB", "weights MB", "vs fp32", "vs fp16", "perplexity", "top-1 as fp32",
              "tokens/s", "parity", "no library"]  # fmt: skip
    verdict = "all models compute what PyTorch computes" if result.ok else "PARITY FAILED"
    texts = [f"{_name(line.bits)}: {' '.join((PROMPT + line.text).split())}" for line in result.lines]
    legend = [
        f"perplexity   over {result.tokens} held-out tokens; PyTorch fp32: {result.reference:.2f}",
        "vs           weights alone; the file adds graph and alignment, which count in so small a model",
        "parity       relative difference to PyTorch with the same dequantized weights",
        "no library   RMS difference of a token's loss when plain onnxruntime runs the same file",
    ]
    return "\n".join(
        [report.table(header, rows), "", *legend, "", *texts, "", f"{verdict}; {result.seconds:.0f} s"]
    )


def _line(model: Path, output: Path, options: QuantizeOptions, speech: str, reference: Perplexity) -> Line:
    from bcq.export import export
    from bcq.parity import verify

    dense = bool(options.overrides)
    folder = output / ("fp32" if dense else f"q{options.bits}")
    exported = export(model, folder, options)
    packed = evaluate.perplexity(folder, speech, CONTEXT, WINDOWS)
    portable = evaluate.perplexity(folder, speech, CONTEXT, PORTABLE_WINDOWS, with_library=False)
    difference = float(np.sqrt(np.square(packed.losses[: portable.tokens] - portable.losses).mean()))
    parity = None if dense else verify(folder, model)
    decoder = load(folder)
    return Line(
        bits=32 if dense else options.bits,
        file_bytes=exported.model_bytes,
        weight_bytes=_weight_bytes(folder),
        perplexity=packed.perplexity,
        portable_difference=difference,
        agreement=float((packed.guesses == reference.guesses).mean()),
        tokens_per_second=_speed(decoder),
        parity=None if parity is None else parity.relative,
        ok=difference <= PORTABLE_TOLERANCE and (parity is None or parity.ok),
        text=decoder.generate(PROMPT, NEW_TOKENS, **SAMPLING),
    )


def _weight_bytes(folder: Path) -> int:
    """Bytes of all initializers of an exported model, alignment not counted."""
    import onnx_ir as ir

    initializers = ir.load(folder / "model.onnx").graph.initializers.values()
    return sum(value.const_value.nbytes for value in initializers if value.const_value is not None)


def _speed(decoder: Model) -> float:
    """Greedy tokens a second after the prompt: the best of a few runs, because machines are shared."""
    prompt = decoder.tokenizer.encode(PROMPT).ids
    seconds = []
    for _ in range(TIMED_RUNS):
        began = time.perf_counter()
        made = len(decoder.generate(prompt, max_new_tokens=TIMED_TOKENS))
        seconds.append((time.perf_counter() - began) / max(1, made))
    return 1 / min(seconds)


def _name(bits: int) -> str:
    return "fp32" if bits == 32 else f"{bits} bits"
