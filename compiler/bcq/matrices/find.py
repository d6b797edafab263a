# SPDX-License-Identifier: Apache-2.0
"""Which parameters of a Hugging Face model are matrices, found from its class and not from names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bcq import contract
from bcq.errors import InputError
from bcq.files.checkpoint import Checkpoint
from bcq.frontends.names import stored_names

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MatrixInfo:
    """One parameter with at least two dimensions.

    Attributes:
        name: of the parameter in the model's class.
        stored: name of the tensor in the checkpoint; for a tied matrix that of the tensor it shares.
        kind: ``linear``, ``conv1d`` (stored ``[K, N]``), ``embedding``, ``tied`` or ``other``.
        rows: N.
        inputs: K.
        transposed: whether the checkpoint holds ``[K, N]``.
        tied_to: parameter that holds the values of a tied matrix, else empty.
        reason: why it cannot be packed, else empty.
    """

    name: str
    stored: str
    kind: str
    rows: int
    inputs: int
    transposed: bool = False
    tied_to: str = ""
    reason: str = ""


def find_matrices(checkpoint: Checkpoint) -> list[MatrixInfo]:
    """All matrices of a model folder, in the order of its modules; a tied one follows under its own name.

    Raises:
        InputError: E102 for a configuration that transformers refuses, E107 for a parameter that the
            checkpoint lacks, E103 for one with another shape.
        UnsupportedError: E401 for an architecture that transformers does not have.
    """
    from bcq.frontends.weightless import any_weightless_model

    model = any_weightless_model(checkpoint)
    names = stored_names(model, checkpoint.tensors, checkpoint.folder)
    _check_shapes(checkpoint, model, names)
    found: list[MatrixInfo] = []
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.ndim < 2:
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        info = _describe(name, names[name], parameter, module)
        tied_to = first.setdefault(id(parameter), name)
        if tied_to != name:
            info = MatrixInfo(name, info.stored, "tied", info.rows, info.inputs, info.transposed, tied_to)
        found.append(info)
    return found


def _check_shapes(checkpoint: Checkpoint, model: torch.nn.Module, names: dict[str, str]) -> None:
    for name, stored in names.items():
        got, expected = list(checkpoint.shape(stored)), list(model.get_parameter(name).shape)
        if got != expected:
            raise InputError("E103", f"{stored}: got the shape {got}, expected {expected} from config.json.")
        if not (len(got) > 1 or checkpoint.is_float(stored)):  # a matrix of another type stays as it is
            raise InputError("E102", f"{stored}: got dtype {checkpoint.dtype(stored)}, expected floats.")


def _describe(name: str, stored: str, parameter: Any, module: Any) -> MatrixInfo:
    import torch
    from transformers.pytorch_utils import Conv1D

    shape = tuple(parameter.shape)
    if len(shape) != 2:
        reason = f"it has {len(shape)} dimensions {list(shape)}; only matrices are packed"
        return MatrixInfo(name, stored, "other", shape[0], parameter.numel() // shape[0], reason=reason)
    if isinstance(module, Conv1D):
        return MatrixInfo(name, stored, "conv1d", shape[1], shape[0], transposed=True)
    if isinstance(module, torch.nn.Linear):
        return MatrixInfo(name, stored, "linear", *shape)
    if isinstance(module, torch.nn.Embedding):
        short = shape[1] < contract.WORD_BITS  # as T5's of relative positions, with a number for each head
        reason = f"its rows of {shape[1]} numbers are shorter than a word of codes" if short else ""
        return MatrixInfo(name, stored, "embedding", *shape, reason=reason)
    reason = f"it is a plain parameter of {type(module).__name__}, not the weight of a known layer"
    return MatrixInfo(name, stored, "other", *shape, reason=reason)
