# SPDX-License-Identifier: Apache-2.0
"""Which numbers of a packed model are trained: alpha_1 of its linear layers, unless told otherwise."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from bcq.bcq import ceil_div
from bcq.errors import UsageError
from bcq.nn.convert import packed_matrices
from bcq.nn.packed import PackedMatrix

DEFAULT = ("alpha_1",)
CHOICES = ("alpha_1", "alpha_rest", "offset", "embeddings", "bias", "norm")


def train_only(model: nn.Module, parts: Collection[str] = DEFAULT) -> None:
    """Freezes everything but the named parts.

    Args:
        model: a model with packed matrices.
        parts: of `CHOICES`. ``alpha_1``, ``alpha_rest`` (the factors of all other planes) and ``offset`` are
            those of linear layers; ``embeddings`` adds the same of embeddings and of a head tied to them;
            ``bias`` and ``norm`` are the dense vectors.

    Raises:
        UsageError: E202 for an unknown part, or when nothing would be trained.
    """
    unknown = sorted(set(parts) - set(CHOICES))
    if unknown:
        raise UsageError("E202", f"train: got {unknown[0]!r}, expected some of {', '.join(CHOICES)}.")
    model.requires_grad_(False)
    for name, matrix in packed_matrices(model).items():
        layer = model.get_submodule(name.rpartition(".")[0])
        if "embeddings" in parts or not isinstance(layer, nn.Embedding):
            _train_factors(matrix, parts)
    for name, parameter in _vectors(model):
        kind = "bias" if name.endswith(".bias") and not _is_norm(model, name) else "norm"
        parameter.requires_grad_(kind in parts)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError("E202", f"nothing to train: the model has no {' and no '.join(parts)}.")


def trained_numbers(model: nn.Module) -> int:
    """How many numbers are trained, without the padding of packed matrices."""
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return count - sum(_trained_padding(matrix) for matrix in packed_matrices(model).values())


def model_numbers(model: nn.Module) -> int:
    """How many weights the dense model has: N x K for a packed matrix, tied ones once."""
    packed = packed_matrices(model)
    factors = {id(parameter) for matrix in packed.values() for parameter in matrix.parameters()}
    dense = sum(p.numel() for p in model.parameters() if id(p) not in factors)
    return dense + sum(matrix.layout.rows * matrix.layout.inputs for matrix in packed.values())


def _train_factors(matrix: PackedMatrix, parts: Collection[str]) -> None:
    for part in ("alpha_1", "alpha_rest", "offset"):
        parameter = getattr(matrix, part)
        parameter.requires_grad_(part in parts and parameter.numel() > 0)


def _trained_padding(matrix: PackedMatrix) -> int:
    parameters = [parameter for parameter in matrix.parameters() if parameter.requires_grad]
    held = ceil_div(matrix.layout.rows, 16) * 16
    return sum(parameter.numel() * (held - matrix.layout.rows) // held for parameter in parameters)


def _vectors(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and not name.endswith(".offset"):
            yield name, parameter


def _is_norm(model: nn.Module, name: str) -> bool:
    """Whether a vector belongs to a normalization: to a layer that has no matrix."""
    layer = model.get_submodule(name.rpartition(".")[0])
    weight = getattr(layer, "weight", None)
    return weight is not None and len(weight.shape) == 1
