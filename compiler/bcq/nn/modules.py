# SPDX-License-Identifier: Apache-2.0
"""Linear, Conv1D (GPT-2) and embedding layers on packed codes, each a drop-in for the layer it replaces."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bcq.errors import UnsupportedError
from bcq.nn.packed import PackedMatrix


class BcqLinear(nn.Linear):
    """``nn.Linear`` whose ``weight`` is a `PackedMatrix`; bias and sizes are those of the layer it was."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  the name torch has
        """``[..., K]`` to ``[..., N]``."""
        return _affine(self, input)


class BcqConv1D(Conv1D):
    """GPT-2's linear layer, whose dense weight is stored ``[K, N]``; packed rows are outputs all the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., K]`` to ``[..., N]``."""
        return _affine(self, x)


class BcqEmbedding(nn.Embedding):
    """``nn.Embedding`` whose ``weight`` is a `PackedMatrix`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  the name torch has
        """Indices ``[...]`` to rows ``[..., K]``."""
        return _matrix(self).rows(input)


_PACKED: dict[type[nn.Module], Any] = {
    nn.Linear: BcqLinear,
    Conv1D: BcqConv1D,
    nn.Embedding: BcqEmbedding,
}


def packed_layer(module: nn.Module, matrix: PackedMatrix, owner: bool = True) -> None:
    """Turns a layer into its packed form, in place; whatever else the layer holds or does stays.

    A subclass with a forward of its own (positions counted from 2, scaled embeddings) keeps it: the packed
    form takes the place of the torch class behind it.

    Args:
        module: a Linear, Conv1D or Embedding.
        matrix: its weight.
        owner: False when another layer holds the same matrix, as with a tied head: it is then read but not
            listed among this layer's parameters, so that it is saved and trained once.

    Raises:
        UnsupportedError: E401 for another kind of layer.
    """
    module.__class__ = _PACKED.get(type(module)) or _packed_class(type(module))
    module._parameters.pop("weight", None)
    if owner:
        module.weight = matrix
    else:
        object.__setattr__(module, "weight", matrix)


def _packed_class(layer: type[nn.Module]) -> Any:
    """The packed form of a subclass, made when it is first met."""
    for dense in (nn.Linear, Conv1D, nn.Embedding):
        if issubclass(layer, dense):
            made = type(f"Bcq{layer.__name__}", (layer, _PACKED[dense]), {"__module__": __name__})
            return _PACKED.setdefault(layer, made)
    raise UnsupportedError("E401", f"a layer of the class {layer.__name__} cannot hold a packed matrix.")


def _affine(layer: Any, x: torch.Tensor) -> torch.Tensor:
    y = _matrix(layer).product(x)
    return y if layer.bias is None else y + layer.bias.to(y.dtype)


def _matrix(layer: Any) -> PackedMatrix:
    matrix: PackedMatrix = layer.weight
    return matrix
