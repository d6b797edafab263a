# SPDX-License-Identifier: Apache-2.0
"""Torch layers that compute and train on packed codes. ``import bcq.nn`` teaches transformers to load a base.

    import bcq.nn
    model = transformers.AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)

gives a model whose alpha_1 is trained by any optimizer, `transformers.Trainer` and accelerate included.
"""

from __future__ import annotations

from bcq.nn import quantizer as _quantizer  # registers the method with transformers
from bcq.nn import torch_op as _torch_op  # noqa: F401  registers torch.ops.bcq.matmul
from bcq.nn.convert import packed_matrices
from bcq.nn.decode import Shape
from bcq.nn.modules import BcqConv1D, BcqEmbedding, BcqLinear
from bcq.nn.packed import PackedMatrix
from bcq.nn.product import Rule
from bcq.nn.trainable import model_numbers, train_only, trained_numbers

METHOD = _quantizer.METHOD

__all__ = [
    "METHOD",
    "BcqConv1D",
    "BcqEmbedding",
    "BcqLinear",
    "PackedMatrix",
    "Rule",
    "Shape",
    "model_numbers",
    "packed_matrices",
    "train_only",
    "trained_numbers",
]
