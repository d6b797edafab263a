# SPDX-License-Identifier: Apache-2.0
"""PyTorch's cache with the values that a cache of int8 stands for: what such an export is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import DynamicCache

_LARGEST = 127


class RoundedCache(DynamicCache):
    """Keys and values are rounded as they come in.

    Args:
        scales: of keys and of values of each layer, ``[1]`` or ``[1, heads, 1, size]``.
    """

    def __init__(self, scales: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> None:
        super().__init__()
        self.scales = [(torch.tensor(keys), torch.tensor(values)) for keys, values in scales]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values, the new ones rounded."""
        keys, values = self.scales[layer_idx]
        return super().update(
            rounded(key_states, keys), rounded(value_states, values), layer_idx, *args, **kwargs
        )


def rounded(states: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``[B, heads, S, size]``, each value the nearest multiple of its scale that int8 holds."""
    return (states / scale).round().clamp(-_LARGEST - 1, _LARGEST) * scale
