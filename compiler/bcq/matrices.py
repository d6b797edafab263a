# SPDX-License-Identifier: Apache-2.0
"""Which parameters of a Hugging Face model are matrices, found from its class and not from names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bcq.checkpoint import Checkpoint
from bcq.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MatrixInfo:
    """One parameter with at least two dimensions.

    Attributes:
        name: of the parameter in the model's class.
        stored: name of the tensor in the checkpoint; for a tied matrix that of the tensor it shares.
        kind: ``linear``, ``conv1d`` (stored ``[K, N]``), ``embedding``, ``tied`` or ``other``.
        rows: N.
        inputs: K.
        transposed: whether the checkpoint holds ``[K, N]``.
        tied_to: parameter that holds the values of a tied matrix, else empty.
        reason: why it cannot be packed, else empty.
    """

    name: str
    stored: str
    kind: str
    rows: int
    inputs: int
    transposed: bool = False
    tied_to: str = ""
    reason: str = ""


def find_matrices(checkpoint: Checkpoint) -> list[MatrixInfo]:
    """All matrices of a model folder, in the order of its modules; a tied one follows under its own name.

    Raises:
        InputError: E102 for a configuration that transformers refuses, E107 for a parameter that the
            checkpoint lacks, E103 for one with another shape.
        UnsupportedError: E401 for an architecture that transformers does not have.
    """
    model = meta_model(checkpoint)
    names = stored_names(checkpoint, model)
    found: list[MatrixInfo] = []
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.ndim < 2:
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        info = _describe(name, names[name], parameter, module)
        tied_to = first.setdefault(id(parameter), name)
        if tied_to != name:
            info = MatrixInfo(name, info.stored, "tied", info.rows, info.inputs, info.transposed, tied_to)
        found.append(info)
    return found


def meta_model(checkpoint: Checkpoint) -> torch.nn.Module:
    """The model's class from ``config.json`` with parameters that have shapes and no memory."""
    import torch

    config = transformers_config(checkpoint)
    with torch.device("meta"):
        return model_class(config)(config)  # type: ignore[no-any-return]


def transformers_config(checkpoint: Checkpoint) -> Any:
    """``config.json`` as the transformers object of its model type; no code of the folder is run."""
    import transformers

    kind = checkpoint.config.get("model_type")
    if not isinstance(kind, str):
        raise InputError("E102", f"{checkpoint.folder / 'config.json'} has no model_type.")
    if kind not in transformers.CONFIG_MAPPING:
        raise UnsupportedError(
            "E401",
            f"{checkpoint.folder}: transformers {transformers.__version__} has no model type {kind!r}.",
        )
    try:
        return transformers.AutoConfig.for_model(**checkpoint.config)
    except Exception as fault:  # transformers checks the fields of each model in its own ways
        raise InputError(
            "E102", f"{checkpoint.folder / 'config.json'} is not valid: {_line(fault)}"
        ) from fault


def model_class(config: Any) -> Any:
    """The class that ``architectures`` names, or the usual one of the model type."""
    import transformers

    for name in config.architectures or ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    if config.architectures:
        raise UnsupportedError(
            "E401",
            f"transformers {transformers.__version__} has no architecture {config.architectures[0]!r}.",
        )
    for mapping in (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_MAPPING):
        if type(config) in mapping:
            return mapping[type(config)]
    raise UnsupportedError("E401", f"no model class is known for model type {config.model_type!r}.")


def stored_names(checkpoint: Checkpoint, model: Any) -> dict[str, str]:
    """Checkpoint name of each parameter; a base model's checkpoint may lack the prefix, or have one too many.

    Raises:
        InputError: E107 when the checkpoint lacks a parameter, E103 when its shape differs.
    """
    prefix = str(getattr(model, "base_model_prefix", "") or "")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    aliases: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        aliases.setdefault(id(parameter), []).append(name)
    result = {}
    for name, parameter in parameters.items():
        stored = _lookup(checkpoint, aliases[id(parameter)], prefix)
        if stored is None:
            raise InputError(
                "E107", f"{checkpoint.folder} has no tensor {name!r}, which {type(model).__name__} needs."
            )
        if checkpoint.shape(stored) != tuple(parameter.shape):
            got, expected = list(checkpoint.shape(stored)), list(parameter.shape)
            raise InputError("E103", f"{stored}: got the shape {got}, expected {expected} from config.json.")
        result[name] = stored
    return result


def _lookup(checkpoint: Checkpoint, names: Iterable[str], prefix: str) -> str | None:
    for name in names:
        for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
            if candidate in checkpoint.tensors:
                return candidate
    return None


def _describe(name: str, stored: str, parameter: Any, module: Any) -> MatrixInfo:
    import torch
    from transformers.pytorch_utils import Conv1D

    shape = tuple(parameter.shape)
    if len(shape) != 2:
        reason = f"it has {len(shape)} dimensions {list(shape)}; only matrices are packed"
        return MatrixInfo(name, stored, "other", shape[0], parameter.numel() // shape[0], reason=reason)
    if isinstance(module, Conv1D):
        return MatrixInfo(name, stored, "conv1d", shape[1], shape[0], transposed=True)
    if isinstance(module, torch.nn.Linear):
        return MatrixInfo(name, stored, "linear", *shape)
    if isinstance(module, torch.nn.Embedding):
        return MatrixInfo(name, stored, "embedding", *shape)
    reason = f"it is a plain parameter of {type(module).__name__}, not the weight of a known layer"
    return MatrixInfo(name, stored, "other", *shape, reason=reason)


def _line(fault: Exception) -> str:
    return " ".join(str(fault).split())[:300]
