# SPDX-License-Identifier: Apache-2.0
"""Puts packed matrices into a transformers model, in the places that a quantized base describes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from bcq.files.base import BaseMatrix, QuantizedBase
from bcq.nn.decode import Shape
from bcq.nn.modules import packed_layer
from bcq.nn.packed import PackedMatrix

IGNORED_BY_DDP = "_ddp_params_and_buffers_to_ignore"


def put_packed(
    model: nn.Module, base: QuantizedBase, dtype: torch.dtype, device: str | None = "meta"
) -> None:
    """Replaces every layer whose matrix the base holds packed; the new tensors are empty and wait for values.

    Args:
        model: a transformers model of the base's class.
        base: what describes its matrices.
        dtype: type of the activations.
        device: where the new tensors lie.

    Raises:
        UnsupportedError: E401 for a matrix in a layer of another kind.
    """
    for matrix in base.matrices.values():
        shape = Shape(matrix.rows, matrix.inputs, matrix.bits, matrix.group_size)
        module = PackedMatrix(shape, matrix.offset, dtype, device)
        for place, name in enumerate((matrix.name, *matrix.tied)):
            packed_layer(model.get_submodule(name.removesuffix(".weight")), module, owner=place == 0)
    _untie(model)
    ignored = [name for name, _ in model.named_buffers() if name.endswith(".codes")]
    setattr(model, IGNORED_BY_DDP, ignored)  # frozen and equal everywhere: nothing to send


def packed_matrices(model: nn.Module) -> dict[str, PackedMatrix]:
    """The packed matrices of a model by their parameter names (``transformer.wte.weight``), each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedMatrix)}


def describe(model: nn.Module) -> list[BaseMatrix]:
    """What the metadata of a base says about each packed matrix of a model, in the order of the model."""
    readers = _readers(model)
    return [
        BaseMatrix(
            stored=name,
            name=name,
            kind=_kind(model.get_submodule(name.rpartition(".")[0])),
            rows=matrix.layout.rows,
            inputs=matrix.layout.inputs,
            bits=matrix.layout.bits,
            group_size=matrix.layout.group_size,
            offset=matrix.offset.numel() > 0,
            transposed=_kind(model.get_submodule(name.rpartition(".")[0])) == "conv1d",
            tied=tuple(reader for reader in readers[id(matrix)] if reader != name),
            code_hash=matrix.code_hash(),
        )
        for name, matrix in packed_matrices(model).items()
    ]


def _readers(model: nn.Module) -> dict[int, list[str]]:
    """Parameter names under which each packed matrix is read, the owner's and those of tied layers."""
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, PackedMatrix):
            found.setdefault(id(weight), []).append(f"{name}.weight")
    return found


def _kind(layer: Any) -> str:
    if isinstance(layer, nn.Embedding):
        return "embedding"
    return "linear" if isinstance(layer, nn.Linear) else "conv1d"


def _untie(model: nn.Module) -> None:
    """Takes packed matrices out of what transformers ties by itself: they are one object already."""
    for module in model.modules():
        for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
            keys = getattr(module, attribute, None)
            if isinstance(keys, dict):
                setattr(module, attribute, dict(_dense_keys(module, keys)))


def _dense_keys(module: nn.Module, keys: dict[str, str]) -> Iterator[tuple[str, str]]:
    for target, source in keys.items():
        layer = module.get_submodule(target.rpartition(".")[0]) if "." in target else module
        if not isinstance(getattr(layer, "weight", None), PackedMatrix):
            yield target, source
