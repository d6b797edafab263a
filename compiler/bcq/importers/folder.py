# SPDX-License-Identifier: Apache-2.0
"""Which format a folder is in, told by its description or, where it has none, by its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bcq.errors import InputError, UnsupportedError, UsageError
from bcq.files.checkpoint import Checkpoint, read_json
from bcq.importers import awq, bit_planes, gptq
from bcq.importers.source import Matrices

AUTO = "auto"
GPTQ, AWQ, LUT_GEMM, ANY_BCQ = "gptq", "awq", "lut-gemm", "anybcq"
FORMATS = (GPTQ, AWQ, LUT_GEMM, ANY_BCQ)
_OLD_GPTQ = "quantize_config.json"  # where AutoGPTQ described a checkpoint before config.json did


def read_folder(folder: Path, kind: str = AUTO, bits: int | None = None) -> tuple[Checkpoint, str, Matrices]:
    """Opens a folder and finds its quantized matrices.

    Args:
        folder: with ``config.json`` and safetensors.
        kind: one of `FORMATS`, or ``"auto"``.
        bits: the precision, for AnyBCQ.

    Returns:
        The opened folder, the format and the matrices by name.

    Raises:
        InputError: E101 to E108 as `Checkpoint.open`; E102, E103, E107 for tensors that do not fit.
        UnsupportedError: E401 for a format that is not known, or a variant that is not handled.
        UsageError: E202 for bits that the checkpoint does not have.
    """
    checkpoint = Checkpoint.open(folder)
    section = _section(checkpoint)
    found = _told(checkpoint, section) if kind == AUTO else kind
    if bits is not None and found != ANY_BCQ:
        raise UsageError(
            "E202", f"--bits: only a checkpoint of several precisions has a choice, not {found}."
        )
    if found == GPTQ:
        matrices = gptq.read(checkpoint, section)
    elif found == AWQ:
        matrices = awq.read(checkpoint, section)
    elif found == ANY_BCQ:
        matrices = bit_planes.read_any_bcq(checkpoint, bits)
    else:
        matrices = bit_planes.read_lut_gemm(checkpoint)
    if not matrices:
        raise InputError(
            "E107",
            f"{folder} has no tensor whose name ends in '.qweight': nothing in it is quantized as {found}.",
            "Give --format, or quantize the dense model with `bcq quantize`.",
        )
    return checkpoint, found, matrices


def _section(checkpoint: Checkpoint) -> dict[str, Any]:
    """The description of the quantization; empty when there is none."""
    section = checkpoint.config.get("quantization_config")
    if section is None and (checkpoint.folder / _OLD_GPTQ).is_file():
        section = {"quant_method": GPTQ, **read_json(checkpoint.folder / _OLD_GPTQ)}
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise InputError(
            "E102",
            f"{checkpoint.folder / 'config.json'}: quantization_config is {section!r}, expected an object.",
        )
    return section


def _told(checkpoint: Checkpoint, section: dict[str, Any]) -> str:
    method = section.get("quant_method")
    if method in FORMATS:
        return str(method)
    if method is None and "anybcq" in checkpoint.config:
        return ANY_BCQ
    if method is None and any(name.endswith(".alpha") for name in checkpoint.names()):
        return LUT_GEMM
    got = "is not quantized" if method is None else f"is quantized as {method!r}"
    raise UnsupportedError(
        "E401",
        f"{checkpoint.folder} {got}; read are {', '.join(FORMATS)} and MatMulNBits in an .onnx file.",
        "A dense model is for `bcq quantize`, a base for `bcq export`.",
    )
