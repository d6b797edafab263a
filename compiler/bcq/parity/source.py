# SPDX-License-Identifier: Apache-2.0
"""Whether an export was made from a given model folder: same class and sizes, same tensors, like matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.files.checkpoint import Checkpoint
from bcq.files.exported import ExportedWeights
from bcq.frontends.names import stored_names, tied_names
from bcq.frontends.weightless import untie, weightless_model

# Squared error of a matrix over its squared size. A matrix of zeros has 1. One that has nothing to do with
# the original has 1 plus its own squared size over the original's, about 2. One binary plane, the worst that
# is made, has 1 - mean(|w|)^2 / mean(w^2): 1 - 2 / pi = 0.36 for normal weights, 0.5 for Laplace's.
MOST_ERROR = 0.8
# Half a unit in the last place, relative, and half the smallest step, absolute, of the stored type.
_ROUNDING = {"float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}
# Entries of a config that say nothing of what a model computes on given tokens.
_NOTES = frozenset({"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"})


def difference(folder: Path, weights: ExportedWeights, against: Path) -> str | None:
    """Why an export cannot have been made from a folder, or None when nothing speaks against it.

    Args:
        folder: the export.
        weights: its weights.
        against: the Hugging Face folder.

    Returns:
        One clause that names the first config entry or tensor that differs.

    Raises:
        InputError: E101 to E107 when `against` is no readable model folder.
    """
    checkpoint = Checkpoint.open(against)
    ours, theirs = (weightless_model(place)[0] for place in (folder, against))
    untie(ours, weights.names(), weights.read)
    untie(theirs, checkpoint.tensors, checkpoint.read)
    reason = _other_config(ours, theirs) or _other_shapes(ours, theirs)
    if reason is None:
        reason = _other_values(folder, ours, weights, checkpoint)
    return None if reason is None else f"not made from {against}: {reason}"


def _other_config(ours: Any, theirs: Any) -> str | None:
    if type(ours) is not type(theirs):
        return f"the export is a {type(ours).__name__}, the original a {type(theirs).__name__}"
    exported, original = _computing(ours.config), _computing(theirs.config)
    for key in sorted({*exported, *original}):
        if exported.get(key) != original.get(key):
            return f"{key} of config.json is {exported.get(key)!r}, the original's {original.get(key)!r}"
    return None


def _computing(config: Any) -> dict[str, Any]:
    """The entries that can change what a model computes: neither notes nor special tokens."""
    return {
        key: value
        for key, value in config.to_dict().items()
        if key not in _NOTES and not key.startswith("_") and "token_id" not in key
    }


def _other_shapes(ours: Any, theirs: Any) -> str | None:
    exported, original = ({n: tuple(p.shape) for n, p in m.named_parameters()} for m in (ours, theirs))
    for name in sorted({*exported, *original}):
        if exported.get(name) != original.get(name):
            return f"tensor '{name}' has shape {exported.get(name)}, the original's {original.get(name)}"
    return None


def _other_values(folder: Path, model: Any, weights: ExportedWeights, checkpoint: Checkpoint) -> str | None:
    exported = stored_names(model, weights.names(), folder)
    original = stored_names(model, checkpoint.names(), checkpoint.folder)
    for aliases in tied_names(model):
        name, values = exported[aliases[0]], checkpoint.read(original[aliases[0]])
        if name in weights.packed:
            reason = _unlike(name, weights.dequantized(name), values)
        else:
            task = name in weights.replaced  # only its shape can be asked for
            reason = None if task else _unequal(name, weights.dense[name].numpy(), values)
        if reason is not None:
            return reason
    return None


def _unlike(name: str, matrix: NDArray[Any], original: NDArray[Any]) -> str | None:
    """A packed matrix ``[N, K]`` against its original, which may be stored ``[K, N]``."""
    shapes = (original.shape, original.T.shape)
    if matrix.shape not in shapes:
        return f"matrix '{name}' has shape {matrix.shape}, the original's {original.shape}"
    straight = [values for values in (original, original.T) if values.shape == matrix.shape]
    error = min(_error(matrix, values) for values in straight)
    if error <= MOST_ERROR:
        return None
    return f"matrix '{name}' has a relative squared error of {error:.2f}, expected at most {MOST_ERROR}"


def _error(matrix: NDArray[Any], original: NDArray[Any]) -> float:
    """Squared size of the difference over that of the original; infinite when only the original is zero."""
    missed = float(np.square(matrix - original, dtype=np.float64).sum())
    size = float(np.square(original, dtype=np.float64).sum())
    return missed / size if size else (np.inf if missed else 0.0)


def _unequal(name: str, values: NDArray[Any], original: NDArray[Any]) -> str | None:
    """A dense tensor against its original, up to the rounding of the type that stores it."""
    if values.shape != original.shape:
        return f"tensor '{name}' has shape {values.shape}, the original's {original.shape}"
    relative, absolute = _ROUNDING.get(values.dtype.name, (0.0, 0.0))
    off = np.abs(values.astype(np.float64) - original)
    wrong = int(np.count_nonzero(~(off <= relative * np.abs(original.astype(np.float64)) + absolute)))
    return f"tensor '{name}' differs from the original's in {wrong} of {off.size} values" if wrong else None
