# SPDX-License-Identifier: Apache-2.0
"""Parity: the exported file in onnxruntime against another computation with the dequantized weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bcq.errors import UsageError
from bcq.files.checkpoint import read_json
from bcq.files.genai import CONFIG_FILE
from bcq.files.integrity import require_files
from bcq.files.kinds import require_export, require_original
from bcq.generation.described import ENCODER_DECODER_FILE
from bcq.generation.sampling import is_integer
from bcq.precisions.files import graph_file
from bcq.progress import SILENT, Progress

if TYPE_CHECKING:
    from bcq.files.exported import ExportedWeights

# One BcqMatMul is within 1e-4 of exact arithmetic, as a relative RMS over its outputs (ops/README.md,
# accuracy level 0). Errors of different matrices are independent and the residual stream carries each on at
# about its own relative size, so m of them add up to sqrt(m) times as much. One more term of the same size
# covers the float32 sums that onnxruntime and PyTorch take in another order (about 1e-6 each, and thousands).
OPERATOR_TOLERANCE = 1e-4
INT8_TOLERANCE = 1.5e-2  # the same at accuracy level 4
# In a float16 graph each result is rounded on both sides, and the reference's weights are, too: three
# roundings of at most half a unit in the last place, 2^-11 / sqrt(3) RMS each, add up to 2^-11.
HALF_ROUNDING = 2.0**-11
DEFAULT_PROMPT = 12  # tokens
Array = NDArray[Any]


@dataclass(frozen=True)
class ParityResult:
    """How far the exported model is from its reference with the same dequantized weights.

    Attributes:
        ok: everything within tolerance, and greedy tokens equal (but for ties within tolerance).
        max_abs: largest absolute difference of any output element.
        relative: RMS of the difference over RMS of the reference.
        cosine: smallest cosine between output rows.
        tolerance: what `relative` may reach.
        tokens_equal: greedy tokens identical (decoders), else None.
        original: ``relative``, ``cosine`` (mean) and ``top_1_agreement`` against the original weights, to
            inform; None when no original was given.
        layers: for decoders on demand, the relative RMS of each layer's keys and values.
        reason: why `ok` is False when the export was not made from the given original, else None.
    """

    ok: bool
    max_abs: float
    relative: float
    cosine: float
    tolerance: float
    tokens_equal: bool | None = None
    original: dict[str, float] | None = None
    layers: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def verify(
    folder: str | Path,
    against: str | Path | None = None,
    *,
    prompt: str | None = None,
    tokens: Sequence[int] | None = None,
    steps: int = 16,
    per_layer: bool = False,
    progress: Progress = SILENT,
    bits: int | None = None,
) -> ParityResult:
    """Compares an exported folder with PyTorch, or for an ``.onnx`` source with the original graph.

    Args:
        folder: what ``bcq export`` wrote.
        against: the original model folder or ``.onnx`` file. Without it there are no figures on the
            original weights, and an export of an ``.onnx`` file is compared with its own functions. Of a
            folder, sizes, dense tensors and the likeness of every matrix are compared, too.
        prompt: text to run on; needs the folder's tokenizer.
        tokens: token ids to run on, instead of `prompt`; seeded random ones when neither is given.
        steps: decode steps with cache (of what generates), at least 1.
        per_layer: also report each layer's keys and values (of what generates).
        progress: told about each stage.
        bits: the precision, for an export that serves several; None for its highest one.

    Raises:
        InputError: E101 to E109 for a folder that is missing, of another kind or damaged; E109 for a file
            that is not as ``MANIFEST.json`` records it.
        ParityFailure: E501 when the export cannot run where the original does.
        UsageError: E202 for steps, a prompt or tokens that cannot be run, or bits that it does not serve.
        ResourceError: E603 when a package or the library is missing.
    """
    if not is_integer(steps) or steps < 1:
        raise UsageError("E202", f"steps: got {steps!r}, expected an integer that is at least 1.")
    folder = Path(folder)
    require_export(folder)
    graph_file(folder, bits)
    if against is not None:
        require_original(Path(against), folder)
    require_files(folder)
    if (folder / CONFIG_FILE).is_file() and (folder / "config.json").is_file():
        from bcq.parity.decoder import verify_decoder

        return verify_decoder(folder, _path(against), prompt, tokens, steps, per_layer, progress, bits)
    if (folder / ENCODER_DECODER_FILE).is_file() and (folder / "config.json").is_file():
        from bcq.parity.encoder_decoder import verify_encoder_decoder

        return verify_encoder_decoder(
            folder, _path(against), prompt, tokens, steps, per_layer, progress, bits
        )
    if (folder / "config.json").is_file():
        from bcq.parity.encoder import verify_encoder

        return verify_encoder(folder, _path(against), prompt, tokens, progress, bits)
    from bcq.parity.graph import verify_graph

    return verify_graph(folder, _path(against), progress)


def tolerance(weights: ExportedWeights, half: bool = False) -> float:
    """What the relative RMS of the outputs may reach; the derivation stands at `OPERATOR_TOLERANCE`.

    Args:
        weights: the exported weights.
        half: whether the graph computes in float16.
    """
    each = INT8_TOLERANCE if weights.int8 else OPERATOR_TOLERANCE
    if half:
        each = math.hypot(each, HALF_ROUNDING)
    return each * math.sqrt(weights.matmuls + 1)


def compare(got: Sequence[Array], expected: Sequence[Array], allowed: float) -> ParityResult:
    """The figures of some outputs, rows being their last axis."""
    difference, reference = _flat(got) - _flat(expected), _flat(expected)
    relative = relative_rms(difference, reference)
    cosines = np.concatenate([row_cosines(g, e) for g, e in zip(got, expected, strict=True)])
    return ParityResult(
        ok=bool(relative <= allowed),  # a NaN is not
        max_abs=float(np.abs(difference).max(initial=0.0)),
        relative=relative,
        cosine=float(cosines.min(initial=1.0)),
        tolerance=allowed,
    )


def against_original(got: Sequence[Array], original: Sequence[Array]) -> dict[str, float]:
    """Against the unquantized model: relative RMS, mean cosine, share of equal top-1."""
    cosines = np.concatenate([row_cosines(g, o) for g, o in zip(got, original, strict=True)])
    same = [(g.argmax(-1) == o.argmax(-1)).ravel() for g, o in zip(got, original, strict=True)]
    return {
        "relative": relative_rms(_flat(got) - _flat(original), _flat(original)),
        "cosine": float(cosines.mean()),
        "top_1_agreement": float(np.concatenate(same).mean()),
    }


def _flat(outputs: Sequence[Array]) -> NDArray[np.float64]:
    return np.concatenate([output.astype(np.float64).ravel() for output in outputs])


def relative_rms(difference: Array, reference: Array) -> float:
    """RMS of a difference over RMS of what it should be; 0 when both are zero."""
    size = math.sqrt(float(np.mean(np.square(reference, dtype=np.float64)))) if reference.size else 0.0
    error = math.sqrt(float(np.mean(np.square(difference, dtype=np.float64)))) if difference.size else 0.0
    return error / size if size else error


def row_cosines(one: Array, other: Array) -> NDArray[np.float64]:
    """Cosine between corresponding rows; 1 where both are zero."""
    a = one.reshape(-1, one.shape[-1]).astype(np.float64)
    b = other.reshape(-1, other.shape[-1]).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.where(norms > 0, np.sum(a * b, axis=1) / np.where(norms > 0, norms, 1), 1.0)


def random_tokens(vocabulary: int, count: int) -> list[int]:
    """Seeded token ids."""
    return [int(token) for token in np.random.default_rng(0).integers(0, vocabulary, count)]


def described(folder: Path) -> Mapping[str, Any]:
    """``config.json`` of the exported folder."""
    return read_json(folder / "config.json")


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
