# SPDX-License-Identifier: Apache-2.0
"""GPTQ checkpoints as AutoGPTQ and GPTQModel write them: integer grids of 2, 3, 4 or 8 bits.

    qweight  int32   [K q / 32, N]   fields of q bits along K
    qzeros   int32   [G, N q / 32]   fields of q bits along N; absent in some symmetric ones
    scales   float   [G, N]
    g_idx    int32   [K]             group of each input

W[n, k] = (v[k, n] - z[g_idx[k], n]) scales[g_idx[k], n]. Format "gptq" (v1) stores z - 1, "gptq_v2" stores z.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bcq.bcq import Words, ceil_div
from bcq.errors import InputError, UnsupportedError
from bcq.files.checkpoint import Checkpoint
from bcq.importers.factors import Scales
from bcq.importers.fields import planes_of, unpack_fields
from bcq.importers.source import (
    Matrices,
    SourceMatrix,
    check_group_size,
    check_rank,
    check_shape,
    floats,
    numbers,
    setting,
    stems,
    words,
)

BITS = (2, 3, 4, 8)
V1, V2 = "gptq", "gptq_v2"
_WORD = 32
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_WHERE = "quantization_config of GPTQ"
_AGAIN = "Copy the checkpoint again."


@dataclass(frozen=True)
class GptqConfig:
    """What the description of a GPTQ checkpoint says.

    Attributes:
        bits: q of all matrices that `dynamic` does not name.
        group_size: g, or -1 for one group a row.
        version: ``"gptq"`` or ``"gptq_v2"``.
        dynamic: whether single matrices may differ.
        borrows: a v1 zero-point of 0 was stored by subtracting whole words, with a borrow (GPTQModel).
        ordered: whether inputs were quantized in another order (``desc_act``).
    """

    bits: int
    group_size: int
    version: str
    dynamic: bool
    borrows: bool
    ordered: bool

    @classmethod
    def read(cls, section: dict[str, Any]) -> GptqConfig:
        """Reads a ``quantization_config``.

        Raises:
            InputError: E102 for a value of the wrong type.
            UnsupportedError: E401 for bits, a packing or a format that is not handled.
        """
        bits = setting(section, "bits", 4, (int,), _WHERE)
        if bits not in BITS:
            raise UnsupportedError("E401", f"{_WHERE}: bits is {bits}, expected one of {list(BITS)}.")
        version = section.get("checkpoint_format") or section.get("format") or V1
        if section.get("is_marlin_format"):
            version = "marlin"
        if version not in (V1, V2):
            raise UnsupportedError(
                "E401",
                f"{_WHERE}: the format is {version!r}, expected '{V1}' or '{V2}'; others serve one kernel.",
                f"Save the checkpoint again as '{V2}'.",
            )
        if section.get("pack_dtype", "int32") != "int32":
            raise UnsupportedError(
                "E401", f"{_WHERE}: pack_dtype is {section['pack_dtype']!r}, expected 'int32'."
            )
        meta = section.get("meta")
        quantizer = str(meta.get("quantizer", "")) if isinstance(meta, dict) else ""
        return cls(
            bits=bits,
            group_size=setting(section, "group_size", 128, (int,), _WHERE),
            version=version,
            dynamic=bool(section.get("dynamic")),
            borrows="gptqmodel" in quantizer.lower(),
            ordered=bool(section.get("desc_act")),
        )


def read(checkpoint: Checkpoint, section: dict[str, Any]) -> Matrices:
    """All GPTQ matrices of a folder; only the order of inputs is read, the rest when it is asked for.

    Args:
        checkpoint: the opened folder.
        section: its ``quantization_config``.

    Raises:
        InputError: E102, E103 or E107 for a tensor of another type or shape, or that is missing.
        UnsupportedError: E401 for what `docs/importers.md` lists.
    """
    config = GptqConfig.read(section)
    found = (_matrix(checkpoint, stem, config) for stem in stems(checkpoint))
    return {matrix.name: matrix for matrix in found}


def _matrix(checkpoint: Checkpoint, stem: str, config: GptqConfig) -> SourceMatrix:
    packed, rows = check_rank(checkpoint, f"{stem}.qweight", 2)
    groups, _ = check_rank(checkpoint, f"{stem}.scales", 2)
    check_shape(checkpoint, f"{stem}.scales", (groups, rows))
    order = numbers(checkpoint, f"{stem}.g_idx") if f"{stem}.g_idx" in checkpoint.tensors else None
    bits, inputs = _bits_and_inputs(stem, packed, order, config)
    group_size = _group_size(stem, inputs, groups, order, config)
    check_group_size(stem, group_size, inputs)
    return SourceMatrix(
        name=f"{stem}.weight",
        rows=rows,
        inputs=inputs,
        bits=bits,
        group_size=group_size,
        tensors=tuple(f"{stem}.{part}" for part in _PARTS if f"{stem}.{part}" in checkpoint.tensors),
        read_scales=partial(_scales, checkpoint, stem, (groups, rows), bits, config),
        read_words=partial(_words, checkpoint, stem, bits, inputs),
    )


def _bits_and_inputs(
    stem: str, packed: int, order: NDArray[Any] | None, config: GptqConfig
) -> tuple[int, int]:
    """Bits and K; where single matrices may have bits of their own, ``g_idx`` tells K and so q."""
    inputs = packed * _WORD // config.bits if order is None else int(order.size)
    bits = packed * _WORD // inputs if inputs else 0
    same = bits == config.bits or (config.dynamic and bits in BITS)
    if not same or bits * inputs != packed * _WORD:
        raise InputError(
            "E103",
            f"{stem}.qweight: got {packed} rows of words for {inputs} inputs, expected "
            f"{inputs * config.bits / _WORD:g} for {config.bits} bits.",
            _AGAIN,
        )
    return bits, inputs


def _group_size(stem: str, inputs: int, groups: int, order: NDArray[Any] | None, config: GptqConfig) -> int:
    """The inputs of a group, which must follow each other."""
    group_size = inputs if config.group_size == -1 else config.group_size
    if config.dynamic and order is not None:
        group_size = inputs if groups == 1 else int((order == 0).sum())
    if group_size < 1 or groups != ceil_div(inputs, group_size):
        raise InputError(
            "E103",
            f"{stem}.scales: {groups} groups of {inputs} inputs, expected group_size {config.group_size}.",
            _AGAIN,
        )
    unknown = order is None and config.ordered and groups > 1
    if unknown or (order is not None and not np.array_equal(order.ravel(), np.arange(inputs) // group_size)):
        told = "has no g_idx to tell which" if unknown else "g_idx"
        raise UnsupportedError(
            "E401",
            f"'{stem}' has groups whose inputs are not neighbours (desc_act; {told}): the operators share "
            "factors among neighbours, and a model has no place for another order of inputs.",
            "Quantize again with desc_act=False, or with static_groups=True.",
        )
    return group_size


def _scales(
    checkpoint: Checkpoint, stem: str, shape: tuple[int, int], bits: int, config: GptqConfig
) -> Scales:
    scales = floats(checkpoint, f"{stem}.scales", shape)
    zeros = np.full(shape, 2 ** (bits - 1))
    if f"{stem}.qzeros" in checkpoint.tensors:
        zeros = _zeros(checkpoint, stem, shape, bits, config)
    return Scales.of_grid(scales.T, zeros.T, bits)


def _zeros(
    checkpoint: Checkpoint, stem: str, shape: tuple[int, int], bits: int, config: GptqConfig
) -> NDArray[Any]:
    """Zero-points ``[G, N]``."""
    groups, rows = shape
    packed = words(checkpoint, f"{stem}.qzeros", (groups, ceil_div(rows * bits, _WORD)))
    stored = unpack_fields(packed, bits, rows)
    if config.version == V2:
        return stored
    if (stored < 2**bits - 1).all():
        return stored.astype(np.int64) + 1
    if not config.borrows or _WORD % bits:
        raise UnsupportedError(
            "E401",
            f"{stem}.qzeros holds {2**bits - 1} in format '{V1}', which some programs read as a zero-point "
            f"of {2**bits} and some as 0.",
            f"Save the checkpoint again as '{V2}'.",
        )
    ones = np.uint32(sum(1 << place for place in range(0, _WORD, bits)))
    return unpack_fields(packed + ones, bits, rows)  # modulo 2^32: gives back what the borrow took


def _words(checkpoint: Checkpoint, stem: str, bits: int, inputs: int) -> Words:
    stored = words(checkpoint, f"{stem}.qweight")
    return planes_of(unpack_fields(np.ascontiguousarray(stored.T), bits, inputs), bits)
