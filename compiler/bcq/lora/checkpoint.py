# SPDX-License-Identifier: Apache-2.0
"""A LoRA checkpoint of PEFT: low-rank changes of matrices, new biases, and whole tensors that it trained.

Source: Hu et al. 2021 (arXiv 2106.09685), W + alpha / r * B A; Kalajdzievski 2023 (arXiv 2312.03732) divides
by the root of r. The folder is read as something that an attacker may have made; nothing in it is executed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bcq.adapters.folder import CONFIG_FILE, open_weights
from bcq.bcq import Float32
from bcq.errors import InputError, UnsupportedError
from bcq.files.checkpoint import Checkpoint, read_json
from bcq.files.inside import inner_file

PEFT_TYPE = "LORA"
_PREFIX = "base_model.model."
_ORIGINAL = ".original_module."  # what a module was before: PEFT repeats its bias where all biases are saved
_WRAPPED = re.compile(r"\.(base_layer|modules_to_save(\.\w+)?)(?=\.)")
_ROLES = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")
_LITERAL = re.compile(r"[\w.-]+")  # PEFT takes regular expressions, of which some never end
# Fields whose value, other than these, means a change that is more than W + B A.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None), "lora_bias": (False, None), "use_qalora": (False, None),
    "layer_replication": (None, []), "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}), "alora_invocation_tokens": (None, []),
    "use_bdlora": (None, False), "arrow_config": (None,), "corda_config": (None, {}),
    "lora_ga_config": (None, {}), "megatron_config": (None, {}),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    "bias": ("none", "all", "lora_only"),
}  # fmt: skip


@dataclass(frozen=True)
class LowRank:
    """One matrix's change, ``scale * B A``.

    Attributes:
        a: float32 ``[r, K]``; of an embedding ``[r, N]``.
        b: float32 ``[N, r]``; of an embedding ``[K, r]``.
        scale: alpha / r, or alpha / sqrt(r).
        embedding: whether it was made for a look-up table.
    """

    a: Float32
    b: Float32
    scale: float
    embedding: bool

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        shape = (self.b.shape[0], self.a.shape[1])
        return shape[::-1] if self.embedding else shape

    def delta(self) -> Float32:
        """The change as float32 ``[N, K]``."""
        product = (self.b @ self.a) * np.float32(self.scale)
        return np.ascontiguousarray(product.T if self.embedding else product)


@dataclass(frozen=True)
class Lora:
    """An opened LoRA checkpoint.

    Attributes:
        folder: where it lies.
        changes: by the parameter that they change, such as ``transformer.h.0.attn.c_attn.weight``.
        replaced: tensors that take the place of the model's: biases, and modules that were trained whole.
        fan_in_fan_out: what its configuration says of matrices that are stored ``[K, N]``.
    """

    folder: Path
    changes: dict[str, LowRank]
    replaced: dict[str, Float32]
    fan_in_fan_out: bool

    @classmethod
    def open(cls, folder: str | Path) -> Lora:
        """Reads a folder that PEFT's ``save_pretrained`` wrote.

        Raises:
            InputError: E101 no such folder, E102 not a LoRA checkpoint or a field that is wrong, E103
                damaged, E104 pickle, E106 NaN or infinite, E107 half of a pair is missing, E302 shapes that
                do not go together.
            UnsupportedError: E401 for a variant that is more than a product of two matrices.
        """
        folder = Path(folder)
        config = _config(folder)
        header = open_weights(folder)
        tensors = Checkpoint(folder, {}, header.tensors, header.metadata)
        changes: dict[str, dict[str, Float32]] = {}
        replaced: dict[str, Float32] = {}
        tables = set()
        for stored in tensors.names():
            if _ORIGINAL in stored:
                continue
            array = _read(tensors, stored)
            role = _ROLES.fullmatch(_plain_name(stored))
            if role is None:
                replaced[_replaced_name(folder, stored)] = array
                continue
            name = f"{role['module']}.weight"
            changes.setdefault(name, {})[role["side"]] = array
            tables |= {name} if role["embedding"] else set()
        if not changes and not replaced:
            raise InputError("E304", f"{folder} changes nothing: it holds no tensor.", "Train it again.")
        pairs = {name: _pair(folder, name, sides, config, name in tables) for name, sides in changes.items()}
        return cls(folder, pairs, replaced, config.get("fan_in_fan_out") is True)


def find_name(wanted: str, names: Collection[str]) -> str | None:
    """The name under which a parameter is known elsewhere: the same, or with more or fewer leading parts."""
    if wanted in names:
        return wanted
    close = [name for name in names if name.endswith(f".{wanted}") or wanted.endswith(f".{name}")]
    return close[0] if len(close) == 1 else None


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise InputError("E101", f"the LoRA checkpoint {folder} {problem}.", "Give the path of its folder.")
    if not (folder / CONFIG_FILE).exists():
        raise InputError("E102", f"{folder} is no LoRA checkpoint: it has no {CONFIG_FILE}.")
    inner_file(folder / CONFIG_FILE, folder, "it describes the LoRA")
    config = read_json(folder / CONFIG_FILE)
    if config.get("peft_type") != PEFT_TYPE:
        raise _wrong(folder, "peft_type", config.get("peft_type"), f"'{PEFT_TYPE}'")
    if not _is_number(config.get("lora_alpha")):
        raise _wrong(folder, "lora_alpha", config.get("lora_alpha"), "a number")
    for name, allowed in _PLAIN.items():
        if name in config and config[name] not in allowed:
            raise UnsupportedError(
                "E401",
                f"{folder / CONFIG_FILE}: {name} is {str(config[name])[:100]!r}: more than W + B A.",
                "Merge it with PEFT (merge_and_unload) and quantize the result.",
            )
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(map(_is_number, patterns.values())):
        raise _wrong(folder, "alpha_pattern", patterns, "numbers by module names")
    if not all(_LITERAL.fullmatch(pattern) for pattern in patterns):
        raise UnsupportedError(
            "E401",
            f"{folder / CONFIG_FILE}: alpha_pattern holds a regular expression, expected names of modules.",
            "Merge it with PEFT (merge_and_unload) and quantize the result.",
        )
    return config


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _read(tensors: Checkpoint, stored: str) -> Float32:
    array = tensors.read(stored)
    if not np.isfinite(array).all():
        raise InputError(
            "E106", f"{tensors.folder}: '{stored}' holds NaN or infinite values.", "Train it again."
        )
    return array


def _plain_name(stored: str) -> str:
    """The name of a tensor in the model that PEFT wrapped."""
    return _WRAPPED.sub("", stored.removeprefix(_PREFIX))


def _replaced_name(folder: Path, stored: str) -> str:
    """The parameter that a whole tensor replaces.

    Raises:
        UnsupportedError: E401 for a tensor that belongs to another method.
    """
    name = _plain_name(stored)
    if not stored.startswith(_PREFIX) or "lora_" in name or not name.endswith((".weight", ".bias")):
        raise UnsupportedError(
            "E401",
            f"{folder}: '{stored}' is neither half of B A nor a weight or bias of the model.",
            "Merge it with PEFT (merge_and_unload) and quantize the result.",
        )
    return name


def _pair(
    folder: Path, name: str, sides: Mapping[str, Float32], config: Mapping[str, Any], embedding: bool
) -> LowRank:
    if set(sides) != {"A", "B"}:
        raise InputError(
            "E107", f"{folder}: of '{name}' only lora_{next(iter(sides))} is there.", "Copy it again."
        )
    a, b = sides["A"], sides["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.size or not b.size:
        raise InputError(
            "E302", f"{folder}: '{name}': A {list(a.shape)} and B {list(b.shape)} do not go together."
        )
    rank = a.shape[0]
    alpha = _alpha_of(name.removesuffix(".weight"), config)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") is True else rank)
    return LowRank(a, b, scale, embedding)


def _alpha_of(module: str, config: Mapping[str, Any]) -> float:
    """A module's alpha: the first pattern that its name is, or ends with after a dot, wins, as in PEFT."""
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if f".{module}".endswith(f".{pattern}"):
            return float(alpha)
    return float(config["lora_alpha"])


def _wrong(folder: Path, field: str, got: object, expected: str) -> InputError:
    return InputError(
        "E102", f"{folder / CONFIG_FILE}: {field}: got {str(got)[:200]!r}, expected {expected}."
    )
