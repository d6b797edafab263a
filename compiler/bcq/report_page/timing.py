# SPDX-License-Identifier: Apache-2.0
"""Adds to the contents of a page what has to be measured: time by operator and matrix, perplexity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bcq.bench.end_to_end.measure import prompt_of
from bcq.bench.end_to_end.profile import Shares, profile_export
from bcq.errors import UnsupportedError
from bcq.files.genai import CONFIG_FILE
from bcq.report_page.contents import Contents

PROMPT = 32
TOKENS = 33  # 32 of them are single steps


def with_times(contents: Contents, folder: Path, threads: int) -> Contents:
    """Generates with onnxruntime's profiler on.

    Raises:
        UnsupportedError: E401 for the export of something else than a decoder.
        BcqError: as `bcq.load`.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise UnsupportedError(
            "E401", f"{folder} holds no decoder, so it generates nothing.", "Leave out --time."
        )
    found = profile_export(folder, threads, prompt_of(folder, PROMPT), TOKENS)
    times = matrix_times(folder, found)
    return replace(contents, operators=found.operators, times=times, threads=threads)


def matrix_times(folder: Path, found: Shares) -> dict[str, float]:
    """Microseconds of a token by matrix; a product of several gives each its part by rows."""
    from bcq import contract, fused
    from bcq.frontends import onnx_file

    times: dict[str, float] = {}
    for node in onnx_file.load(folder / "model.onnx").graph:
        tensor = node.inputs[1] if node.domain == contract.DOMAIN else None
        if tensor is None or node.name not in found.nodes:
            continue
        time = found.nodes[node.name]
        parts = fused.read_note(node.metadata_props)
        whole = sum(part.rows for part in parts)
        shares = {part.name: part.rows / whole for part in parts}
        for name, share in (shares or {str(tensor.name).removesuffix(".codes"): 1.0}).items():
            times[name] = times.get(name, 0.0) + time * share
    return times
