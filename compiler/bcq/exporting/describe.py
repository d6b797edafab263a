# SPDX-License-Identifier: Apache-2.0
"""The files that say how an export generates: those of onnxruntime-genai, or ours for an encoder-decoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bcq.files.checkpoint import read_json

if TYPE_CHECKING:
    from bcq.files.base import QuantizedBase
    from bcq.frontends.hf import Skeleton


def write_description(base: QuantizedBase, skeleton: Skeleton, folder: Path) -> None:
    """How the graphs of something that generates are run, and what onnxruntime-genai wants beside them."""
    from bcq.files.genai import write_genai
    from bcq.files.library import library_path
    from bcq.frontends.weightless import spelt_out
    from bcq.generation.described import write_encoder_decoder

    if skeleton.architecture.kind == "encoder":
        return
    file = folder / "generation_config.json"
    config, generation = spelt_out(base.folder), read_json(file) if file.is_file() else {}
    if skeleton.encoder is not None:
        write_encoder_decoder(folder, config, generation)
        return
    write_genai(
        folder,
        library=library_path(),
        config=config,
        generation=generation,
        with_positions=any(value.name == "position_ids" for value in skeleton.model.graph.inputs),
        share_buffer=any(node.op_type == "GroupQueryAttention" for node in skeleton.model.graph),
    )
