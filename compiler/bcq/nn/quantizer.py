# SPDX-License-Identifier: Apache-2.0
"""``quant_method: "bcq"`` for transformers: `from_pretrained` and `save_pretrained` of a quantized base.

Importing this module registers the method; ``import bcq.nn`` does it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bcq import contract
from bcq.errors import UnsupportedError
from bcq.files.base import QuantizedBase, metadata
from bcq.nn.convert import describe, packed_matrices, put_packed
from bcq.nn.packed import PARTS
from bcq.nn.trainable import train_only

METHOD = "bcq"


@register_quantization_config(METHOD)
class BcqConfig(QuantizationConfigMixin):
    """The section ``quantization_config`` of a base's ``config.json``; it is written back as it was.

    Bits and groups of each matrix stand with the tensors, in the metadata of ``model.safetensors``.
    """

    def __init__(self, **section: Any) -> None:
        self.__dict__.update({"quant_method": METHOD, **section})


@register_quantizer(METHOD)
class BcqQuantizer(HfQuantizer):
    """Gives a model packed layers before its tensors are loaded, and a base's metadata when it is saved.

    Factors are float32 in memory, so that small steps of an optimizer add up, and float16 in a file. After
    loading only alpha_1 of the linear layers is trained; `bcq.nn.train_only` chooses otherwise.
    """

    requires_calibration = True

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Refuses a format of another version.

        Raises:
            UnsupportedError: E401 with both versions.
        """
        version = getattr(self.quantization_config, "format_version", contract.FORMAT_VERSION)
        layout = getattr(self.quantization_config, "layout", contract.LAYOUT)
        if (version, layout) != (contract.FORMAT_VERSION, contract.LAYOUT):
            raise UnsupportedError(
                "E401",
                f"config.json: quantization_config is format {version!r}, layout {layout!r},"
                f" expected {contract.FORMAT_VERSION}, '{contract.LAYOUT}'.",
            )

    def _process_model_before_weight_loading(self, model: Any, **loading: Any) -> None:
        files = loading.get("checkpoint_files") or []
        if not files:
            raise UnsupportedError("E401", "a BCQ model is loaded from the folder of a quantized base only.")
        base = QuantizedBase.open(Path(files[0]).parent)
        put_packed(model, base, _dtype(model.config))
        others = [rf"\.{bits}bit\." for bits in base.further_bits()]  # the model has the highest precision
        known = model._keys_to_ignore_on_load_unexpected
        model._keys_to_ignore_on_load_unexpected = {*(known or ()), *others}

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        train_only(model)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """Tensors and metadata of a base: `QuantizedBase.open` reads what `save_pretrained` writes."""
        state = model.state_dict()
        for name, matrix in packed_matrices(model).items():
            for part in PARTS:
                state[f"{name}.{part}"] = getattr(matrix, part).detach().to(torch.float16)
        return state, metadata(describe(model))

    def is_serializable(self) -> bool:
        """Yes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Yes: by its scaling factors."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Yes: without adapters on top."""
        return True


def _dtype(config: Any) -> torch.dtype:
    """Type of the activations: what the caller of `from_pretrained` asked for, or the base was saved with."""
    found = getattr(torch, config.dtype) if isinstance(config.dtype, str) else config.dtype
    return found if isinstance(found, torch.dtype) else torch.float32
