# SPDX-License-Identifier: Apache-2.0
"""A transformers model of any size whose parameters hold no memory: one shared zero behind every shape."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

from bcq.errors import InputError, UnsupportedError, is_out_of_memory, out_of_memory
from bcq.files import checkpoint as checkpoints
from bcq.files.checkpoint import Checkpoint
from bcq.frontends.architectures import Architecture, architecture_of, class_name_of
from bcq.frontends.names import stored_name, tied_names

MOST_LAYERS = 1000  # the deepest models have 126
MOST = 2**31 - 1  # of any size or token id
_VERSION = f"transformers {transformers.__version__}"
_NOISY_LOGGERS = ("torch.onnx", "torch.export", "transformers", "onnxscript", "onnx_ir")


def weightless_model(folder: Path, half: bool = False) -> tuple[Any, Architecture]:
    """Builds the model of a folder without its weights, if it is one that is exported.

    Buffers (rotary frequencies and the like) are real; parameters are zeros expanded to their shapes, and
    tied parameters stay one object.

    Args:
        folder: Hugging Face folder; only ``config.json`` is read.
        half: parameters are float16, not float32.

    Returns:
        The model in evaluation mode, and its architecture.

    Raises:
        InputError: E102 when transformers cannot read the config.
        UnsupportedError: E401, see `architecture_of`.
    """
    with quiet():
        config = read_config(folder)
        architecture = architecture_of({**config.to_dict(), "architectures": config.architectures})
        return _build(architecture.class_name, config, torch.float16 if half else torch.float32), architecture


def any_weightless_model(checkpoint: Checkpoint) -> Any:
    """The same for any architecture that transformers has, exported or not, tied as its file is (`untie`).

    Raises:
        InputError: E102 when transformers cannot read the config, or it names no architecture.
        UnsupportedError: E401 when transformers does not have the architecture.
    """
    with quiet():
        config = read_config(checkpoint.folder)
        model = _build(class_name_of({"architectures": config.architectures}), config)
    untie(model, checkpoint.tensors, checkpoint.read)
    return model


def untie(model: Any, stored: Collection[str], read: Callable[[str], NDArray[Any]]) -> None:
    """Parts tied parameters for which a file has different values, as transformers does.

    T5 1.1 is the case: by its configuration the head is tied to the embedding, its files hold both.

    Args:
        model: tied as its configuration says.
        stored: tensor names of the file.
        read: a tensor by its name; asked only where the file has several for one parameter.
    """
    for aliases in tied_names(model):
        names = {alias: stored_name(model, alias, stored) for alias in aliases}
        first = next((name for name in names.values() if name is not None), None)
        for alias, name in names.items():
            if first is None or name in (first, None) or np.array_equal(read(first), read(name)):
                continue
            path, _, leaf = alias.rpartition(".")
            old = model.get_parameter(alias)
            zero = torch.zeros(1, dtype=old.dtype).expand(old.shape)
            model.get_submodule(path)._parameters[leaf] = nn.Parameter(zero, requires_grad=False)


def read_config(folder: Path) -> Any:
    """The transformers configuration of a local folder; nothing is fetched and no code of the folder runs.

    Raises:
        InputError: E101, E102 or E105 as `bcq.files.checkpoint.read_config`, E102 when transformers cannot
            read it.
        UnsupportedError: E401 when transformers does not have its model type.
    """
    written = checkpoints.read_config(folder)
    _check_sizes(written, folder)
    kind = written.get("model_type")
    if not isinstance(kind, str):
        raise InputError("E102", f"{folder / 'config.json'}: model_type: got {kind!r}, expected a name.")
    if kind not in transformers.CONFIG_MAPPING:
        raise UnsupportedError("E401", f"{folder}: {_VERSION} has no model type {kind!r}.")
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, attn_implementation="sdpa"
        )
    except Exception as fault:  # transformers checks the fields of each model in its own ways
        reason = " ".join(str(fault).split())[:200]
        raise InputError("E102", f"{folder / 'config.json'}: {reason}", "Check the config.") from fault
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # ours (bcq); the graph is built as if dense
    return config


def _check_sizes(config: dict[str, Any], folder: Path) -> None:
    """Refuses numbers with which building the model would never end, or take all memory."""
    for name, value in config.items():
        if not isinstance(value, int):
            continue
        most = MOST_LAYERS if "layer" in name else MOST
        if abs(value) > most:
            raise InputError(
                "E102",
                f"{folder / 'config.json'}: {name} is {value}, expected at most {most:,}.",
                "Check it.",
            )


_SPELT_OUT = (
    "vocab_size", "hidden_size", "head_dim", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "n_positions", "bos_token_id", "eos_token_id",
    "pad_token_id", "decoder_start_token_id",
)  # fmt: skip


def spelt_out(folder: Path) -> dict[str, Any]:
    """Sizes and token ids of what generates under their common names, whatever its family calls them."""
    with quiet():
        config = read_config(folder)
    return {name: getattr(config, name) for name in _SPELT_OUT if hasattr(config, name)}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the libraries' warnings and log lines below an error for the time of a block."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _build(class_name: str, config: Any, dtype: torch.dtype = torch.float32) -> Any:
    found = getattr(transformers, class_name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise UnsupportedError("E401", f"{_VERSION} has no architecture {class_name!r}.")
    if not found._supports_sdpa or config.is_encoder_decoder:  # scores with a cap (Gemma 2) or a bias (T5)
        config._attn_implementation = "eager"
    try:
        with _parameters_on_meta():
            model = found(config, **without_pooler(class_name))
    except (TypeError, ValueError, KeyError, ArithmeticError, RuntimeError) as fault:
        if is_out_of_memory(fault):
            raise out_of_memory(f"for the {class_name} that config.json describes") from fault
        reason = " ".join(str(fault).split())[:200]
        raise InputError("E102", f"config.json does not make a {class_name}: {reason}") from fault
    _give_shared_zero(model, dtype)
    return model.eval()


def without_pooler(class_name: str) -> dict[str, Any]:
    """BertModel and RobertaModel carry a pooling head, which `last_hidden_state` does not pass through."""
    return {"add_pooling_layer": False} if class_name in ("BertModel", "RobertaModel") else {}


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Every parameter registered inside the block goes to the meta device; buffers stay real."""
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:  # one that is meta already may be tied: keep it
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _give_shared_zero(model: nn.Module, dtype: torch.dtype) -> None:
    """Replaces each meta parameter by a zero of the same shape that occupies at most four bytes."""
    replaced: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in replaced:
                zero = torch.zeros(1, dtype=dtype).expand(parameter.shape)
                replaced[id(parameter)] = nn.Parameter(zero, requires_grad=False)
            module._parameters[name] = replaced[id(parameter)]
