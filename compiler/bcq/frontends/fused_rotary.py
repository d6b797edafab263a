# SPDX-License-Identifier: Apache-2.0
"""The rotation of queries and keys as one RotaryEmbedding node each, where a family's own function agrees.

A family computes cosines and sines of its positions in its own way (scaled frequencies, two bases), once a
step; that stays in the graph. What follows in every layer is one function of the modelling file. It is
replaced only after it was compared with the operator's formula on random values, so a family that rotates
otherwise keeps its own.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from bcq.frontends.fused_attention import DOMAIN, joined_heads

_FUNCTION = "apply_rotary_pos_emb"
_SIZES = (2, 3, 4)  # batch, heads, tokens of the comparison
Rotate = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@contextlib.contextmanager
def fused_rotary(model: nn.Module) -> Iterator[None]:
    """Within the block, the model's modelling file rotates by nodes, if it rotates as they do."""
    file: Any = sys.modules[type(model).__module__]
    own: Rotate | None = getattr(file, _FUNCTION, None)
    if own is None or not _agrees(own, size=16):
        yield
        return
    setattr(file, _FUNCTION, _rotated)
    try:
        yield
    finally:
        setattr(file, _FUNCTION, own)


def _rotated(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys ``[B, heads, S, size]`` by angles ``[B, S, rotated]`` whose halves are equal."""
    batch, length, width = cos.shape
    tables = [table[..., : width // 2].reshape(batch * length, width // 2) for table in (cos, sin)]
    places = torch.arange(batch * length).view(batch, length)
    return _node(q, places, tables, width), _node(k, places, tables, width)


def _node(states: torch.Tensor, places: torch.Tensor, tables: list[torch.Tensor], width: int) -> torch.Tensor:
    batch, heads, length, size = states.shape
    attributes: dict[str, Any] = {"interleaved": 0}
    if width < size:
        attributes |= {"num_heads": heads, "rotary_embedding_dim": width}
    result = torch.onnx.ops.symbolic(
        f"{DOMAIN}::RotaryEmbedding",
        [joined_heads(states), places, *tables],
        attributes,
        dtype=states.dtype,
        shape=(batch, length, heads * size),
        version=1,
    )
    return result.view(batch, length, heads, size).transpose(1, 2)


def _agrees(own: Rotate, size: int) -> bool:
    """Whether a family's function is the operator's formula, for whole and for partly rotated heads."""
    random = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, *_SIZES, size, generator=random)
    half = torch.rand(_SIZES[0], _SIZES[2], size // 2, generator=random)
    cos, sin = (torch.cat([table, table], dim=-1) for table in (half.cos(), half.sin()))
    try:
        got = own(q, k, cos, sin)
    except TypeError:  # its arguments are others
        return False
    expected = [_formula(states, half.cos()[:, None], half.sin()[:, None]) for states in (q, k)]
    return all(torch.allclose(one, other, atol=1e-5) for one, other in zip(got, expected, strict=True))


def _formula(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """What RotaryEmbedding computes with ``interleaved = 0``."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
