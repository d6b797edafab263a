# SPDX-License-Identifier: Apache-2.0
"""One packed matrix as a torch module: the codes are a frozen buffer, the scaling factors are parameters."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from bcq.bcq import check_group_size
from bcq.nn.decode import TILE, Factors, Shape, blocks, dense
from bcq.nn.lookup import lookup
from bcq.nn.product import Rule, product, rounded

if TYPE_CHECKING:
    from bcq.packing import PackedWeight

PARTS = ("alpha_1", "alpha_rest", "offset")


class PackedMatrix(nn.Module):
    """A matrix ``[N, K]`` in the layout ``tile16`` of ``ops/README.md``, as a base stores it.

    It stands where a dense layer has its parameter ``weight``, so that its tensors have the names that a base
    gives them: ``X.weight.codes``, ``X.weight.alpha_1`` and so on. alpha_1 is trained, the others are frozen
    until somebody asks for them. Factors are float32 while they are trained, and rounded to float16 where
    they are used, so what is trained is what an adapter will hold.

    Args:
        shape: N, K, q, g.
        offset: whether its groups have offsets.
        dtype: type of the rows that `rows` gives.
        device: where its tensors lie, ``meta`` to fill them later.

    Raises:
        ValueError: when the group size does not fit.
    """

    codes: torch.Tensor
    _is_hf_initialized = True  # transformers must not fill it with random numbers

    def __init__(
        self,
        shape: Shape,
        offset: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_group_size(shape.group_size, shape.inputs)
        self.layout, self.rule, self.compute_dtype = shape, Rule(), dtype
        tiles, groups, bits = shape.tiles, shape.groups, shape.bits
        codes = torch.zeros(tiles, shape.chunks, bits, TILE, dtype=torch.int32, device=device)
        self.register_buffer("codes", codes.view(torch.uint32))

        def factors(*sizes: int, trained: bool = False) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*sizes, dtype=torch.float32, device=device), trained)

        self.alpha_1 = factors(tiles, groups, TILE, trained=True)
        self.alpha_rest = factors(tiles, groups, bits - 1, TILE)
        self.offset = factors(tiles, groups, TILE) if offset else factors(0)

    @classmethod
    def of(cls, weight: PackedWeight, dtype: torch.dtype = torch.float32) -> PackedMatrix:
        """A packed matrix of this package as a module; its codes are copied.

        Args:
            weight: the matrix.
            dtype: type of the rows that `rows` gives.
        """
        shape = Shape(weight.rows, weight.inputs, weight.bits, weight.group_size)
        module = cls(shape, weight.offset.size > 0, dtype)
        module.codes = torch.from_numpy(np.array(weight.codes).view(np.int32)).view(torch.uint32)
        for part in PARTS:
            values = np.array(getattr(weight, part)).astype(np.float32)
            getattr(module, part).data = torch.from_numpy(values)
        return module

    def factors(self) -> Factors:
        """The scaling factors as they are trained."""
        return Factors(self.alpha_1, self.alpha_rest, self.offset if self.offset.numel() else None)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., K]`` to ``[..., N]``, see `bcq.nn.product.product`."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and x.dtype is not torch.float64:
            x = x.to(torch.get_autocast_dtype(kind))
        return product(x, self.codes, self.factors(), self.layout, self.rule)

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """``[...]`` to ``[..., K]``, see `bcq.nn.lookup.lookup`."""
        return lookup(indices, self.codes, self.factors(), self.layout, self.rule, self.compute_dtype)

    def dense(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The whole matrix ``[N, K]``, for tests and for whoever needs it; nothing here keeps it."""
        shape, parts = self.layout, []
        factors = self.factors()
        for first, last, rows in blocks(shape):
            part = Shape(rows, shape.inputs, shape.bits, shape.group_size)
            chosen = rounded(factors.between(first, last), dtype)
            parts.append(dense(self.codes[first:last], chosen, part, dtype))
        return torch.cat(parts).detach()

    def code_hash(self) -> str:
        """As `bcq.packing.PackedWeight.code_hash`."""
        words = self.codes.cpu().contiguous().view(torch.int32).numpy()
        return hashlib.sha256(np.ascontiguousarray(words, "<i4").data).hexdigest()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations; code that asks a weight for its type finds it here."""
        return self.compute_dtype

    @property
    def device(self) -> torch.device:
        """Where its codes lie."""
        return self.codes.device

    @property
    def shape(self) -> torch.Size:
        """``[N, K]``."""
        return torch.Size((self.layout.rows, self.layout.inputs))

    def extra_repr(self) -> str:
        """The sizes, for ``print(model)``."""
        s = self.layout
        offset = bool(self.offset.numel())
        return f"N={s.rows}, K={s.inputs}, bits={s.bits}, group_size={s.group_size}, offset={offset}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same as `product`."""
        return self.product(x)
