# SPDX-License-Identifier: Apache-2.0
"""BcqMatMul, and what onnxruntime itself offers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq import contract
from bcq.bcq import ceil_div
from bcq.bench.contender import Contender, Weights
from bcq.bench.nodes import Node
from bcq.kernels.core import Core
from bcq.packing import PackedWeight, unpack

MICROSOFT = "com.microsoft"
LUT = {"mlas.use_lut_gemm": "1"}  # onnxruntime's session option for its 2-bit look-up kernel
WEIGHTS = "bcq.weights"  # our session option: mapped or resident

LEVELS = {"near-exact": 0, "int8": 4, "float32": 1}  # accuracy_level of each class of arithmetic
SUFFIXES = {"near-exact": "", "int8": " int8", "float32": " exact"}


def bcq(
    rows: int,
    inputs: int,
    bits: int,
    group_size: int,
    arithmetic: str = "near-exact",
    weights: str = "",
) -> Contender:
    """BcqMatMul at q = ``bits``.

    Args:
        rows: N.
        inputs: K.
        bits: q.
        group_size: inputs that share a scaling factor; 0 is row-wise.
        arithmetic: ``near-exact`` (accuracy_level 0), ``int8`` (4) or ``float32`` (1).
        weights: ``mapped`` or ``resident`` sets the session option of that name, empty leaves it alone.
    """
    group = group_size or inputs
    level = LEVELS[arithmetic]

    def draw(random: np.random.Generator) -> Weights:
        packed = random_packed(random, rows, inputs, bits, group)
        return Weights(dict(packed.tensors()), lambda: unpack(packed).dequantize())

    def attributes(weights: Weights) -> dict[str, Any]:
        packed = PackedWeight(**weights.tensors, inputs=inputs, rows=rows, group_size=group)
        return {
            "format_version": contract.FORMAT_VERSION,
            "layout": contract.LAYOUT,
            "bits": bits,
            "K": inputs,
            "N": rows,
            "group_size": group,
            "code_hash": packed.code_hash(),
            "accuracy_level": level,
        }

    name = f"BcqMatMul q={bits} g={group_size or 'row'}{SUFFIXES[arithmetic]}{weights and ' ' + weights}"
    config = {WEIGHTS: weights} if weights else {}
    node = Node(contract.MATMUL.name, contract.DOMAIN, rows, inputs, attributes, config)
    kernel = kernel_name(rows, inputs, bits, group, level)
    return Contender(name, "bcq", bits, arithmetic, draw, node.prepare, kernel, group)


def kernel_name(rows: int, inputs: int, bits: int, group_size: int, level: int, tokens: int = 1) -> str:
    """The kernel that runs here for a problem of these sizes."""
    core = Core.load()
    sizes = {"M": tokens, "K": inputs, "N": rows, "group_size": group_size}
    return core.select_matmul(bits=bits, flags=core.flags(), accuracy_level=level, **sizes)


def random_packed(random: np.random.Generator, rows: int, inputs: int, bits: int, group: int) -> PackedWeight:
    """Random planes with alphas that halve from plane to plane, about as solved ones do; padding is zero."""
    tiles, chunks = ceil_div(rows, contract.TILE_ROWS), ceil_div(inputs, contract.WORD_BITS)
    groups = ceil_div(inputs, group)
    codes = random.integers(0, 2**32, (tiles, chunks, bits, contract.TILE_ROWS), dtype=np.uint32)
    codes[:, -1] &= np.uint32(2 ** (inputs - (chunks - 1) * contract.WORD_BITS) - 1)
    alpha = random.uniform(0.5, 1.0, (tiles, groups, bits, contract.TILE_ROWS)).astype(np.float32)
    alpha *= np.float32(0.02) * np.float32(0.5) ** np.arange(bits, dtype=np.float32)[:, None]
    padding = np.arange(tiles * contract.TILE_ROWS).reshape(tiles, contract.TILE_ROWS) >= rows
    codes[np.broadcast_to(padding[:, None, None], codes.shape)] = 0
    alpha[np.broadcast_to(padding[:, None, None], alpha.shape)] = 0
    half = alpha.astype(np.float16)
    return PackedWeight(
        codes=codes,
        alpha_1=np.ascontiguousarray(half[:, :, 0]),
        alpha_rest=np.ascontiguousarray(half[:, :, 1:]),
        offset=np.zeros((0,), np.float16),
        inputs=inputs,
        rows=rows,
        group_size=group,
    )


def dense(rows: int, inputs: int) -> Contender:
    """MatMul on float32 weights."""

    def draw(random: np.random.Generator) -> Weights:
        weight = random.standard_normal((inputs, rows), dtype=np.float32)
        return Weights({"B": weight}, lambda: weight.T)

    node = Node("MatMul", "", rows, inputs, lambda _: {})
    return Contender("MatMul fp32", "onnxruntime", 32, "float32", draw, node.prepare)


def nbits(
    rows: int, inputs: int, bits: int, block: int = 128, arithmetic: str = "int8", lut: bool = False
) -> Contender:
    """MatMulNBits of onnxruntime.

    Args:
        rows: N.
        inputs: K.
        bits: 2, 4 or 8.
        block: inputs that share a scale.
        arithmetic: ``int8`` activations (accuracy_level 4) or ``float32`` ones (1, as 0).
        lut: whether the session asks for onnxruntime's look-up kernel.
    """
    blocks = ceil_div(inputs, block)

    def draw(random: np.random.Generator) -> Weights:
        codes = np.frombuffer(random.bytes(rows * blocks * block * bits // 8), np.uint8)
        codes = codes.reshape(rows, blocks, block * bits // 8)
        scales = random.uniform(0.5, 1.0, (rows, blocks)).astype(np.float32) * np.float32(0.02)
        tensors = {"B": codes, "scales": scales.reshape(-1)}
        return Weights(tensors, lambda: _dequantize(codes, scales, bits)[:, :inputs])

    level = LEVELS[arithmetic]
    values = {"K": inputs, "N": rows, "bits": bits, "block_size": block, "accuracy_level": level}
    node = Node("MatMulNBits", MICROSOFT, rows, inputs, lambda _: values, LUT if lut else {})
    suffix = " lut" if lut else " fp32" if arithmetic == "float32" else ""
    name = f"MatMulNBits {bits}-bit b={block}{suffix}"
    slow = bits == 2 and arithmetic == "float32"  # it decodes at every run, and takes 40 times as long
    return Contender(name, "onnxruntime", bits, arithmetic, draw, node.prepare, slow=slow)


def _dequantize(codes: NDArray[np.uint8], scales: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """(code - 2^(bits - 1)) * scale; the first code of a byte is in its low bits; ``[N, K]``."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    levels = (codes[..., None] >> shifts) & np.uint8(2**bits - 1)
    centred = levels.reshape(*codes.shape[:2], -1).astype(np.float32) - np.float32(2 ** (bits - 1))
    return np.asarray((centred * scales[..., None]).reshape(codes.shape[0], -1))
