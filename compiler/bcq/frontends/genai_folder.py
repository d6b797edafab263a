# SPDX-License-Identifier: Apache-2.0
"""The folder of onnxruntime-genai's model builder around an ``.onnx`` file: the export keeps it usable."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from bcq.files.checkpoint import read_json
from bcq.files.genai import CONFIG_FILE

_PAST, _RANK = "past_key_values.", 4


@dataclass(frozen=True)
class GenaiFolder:
    """A folder whose ``genai_config.json`` describes one ``.onnx`` file of it, a decoder.

    Attributes:
        path: the folder.
        config: contents of its ``genai_config.json``.
    """

    path: Path
    config: dict[str, Any]

    @classmethod
    def around(cls, file: Path) -> GenaiFolder | None:
        """The folder of an ``.onnx`` file; None when no configuration there describes it.

        Raises:
            InputError: E102 or E103 for a configuration that is no JSON object, E105 and E108 for files
                beside it that must not be copied.
        """
        from bcq.quantize import check_side_files

        if not (file.parent / CONFIG_FILE).is_file():
            return None
        config = read_json(file.parent / CONFIG_FILE)
        decoder = _decoder(config)
        if decoder is None or decoder.get("filename") != file.name:
            return None
        check_side_files(file.parent)
        return cls(file.parent, config)

    def name_sizes(self, model: ir.Model) -> None:
        """Notes the size of heads, which the builder leaves open, at the inputs that hold the cache."""
        size = (_decoder(self.config) or {}).get("head_size")
        for value in model.graph.inputs:
            shape = value.shape
            if not str(value.name).startswith(_PAST) or shape is None or len(shape) != _RANK:
                continue
            if isinstance(size, int) and size > 0 and not isinstance(shape[-1], int):
                value.shape = ir.Shape([*list(shape)[:-1], size])

    def write(self, target: Path, library: Path, model_file: str) -> None:
        """Configuration with the operator library, that library, tokenizer and the like."""
        from bcq.quantize import copy_side_files

        config = copy.deepcopy(self.config)
        decoder = config["model"]["decoder"]
        decoder["filename"] = model_file
        options = decoder.get("session_options")
        decoder["session_options"] = {
            **(options if isinstance(options, dict) else {}),
            "custom_ops_library": library.name,
        }
        copy_side_files(self.path, target)
        shutil.copyfile(library, target / library.name)
        (target / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _decoder(config: dict[str, Any]) -> dict[str, Any] | None:
    described = config.get("model")
    decoder = described.get("decoder") if isinstance(described, dict) else None
    return decoder if isinstance(decoder, dict) else None
