# SPDX-License-Identifier: Apache-2.0
"""Finds a model's parameters among the tensors of a file, whatever prefix they were saved with."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from bcq.errors import InputError

_OLD_NORM_NAMES = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))


def stored_names(module: Any, stored: Collection[str], folder: Path) -> dict[str, str]:
    """Maps each parameter of a model to the name of its tensor in a file.

    A file may leave out the base model's prefix (``transformer.`` of GPT-2) or add it, and stores tied
    parameters once, under any of their names.

    Args:
        module: a transformers model (``nn.Module`` with ``base_model_prefix``).
        stored: tensor names of the file.
        folder: where it lies, for errors.

    Raises:
        InputError: E107 when a parameter has no tensor.
    """
    found: dict[str, str] = {}
    for aliases in tied_names(module):
        names = (stored_name(module, alias, stored) for alias in aliases)
        match = next((name for name in names if name is not None), None)
        if match is None:
            raise InputError(
                "E107",
                f"{folder} has no tensor '{aliases[0]}', which {type(module).__name__} needs.",
                "Save the model again, with its head, and check `architectures` in config.json.",
            )
        found.update(dict.fromkeys(aliases, match))
    return found


def stored_name(module: Any, name: str, stored: Collection[str]) -> str | None:
    """The tensor that a file has for one name of a parameter; None when it has none of this name."""
    prefix = str(getattr(module, "base_model_prefix", ""))
    return next((form for form in _forms(name, prefix) if form in stored), None)


def tied_names(module: Any) -> list[list[str]]:
    """The names of each distinct parameter, in order; more than one when it is tied."""
    groups: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return list(groups.values())


def _forms(name: str, prefix: str) -> Iterator[str]:
    """The names under which a file may store a parameter."""
    dotted = f"{prefix}."
    plain = [name, name.removeprefix(dotted), dotted + name] if prefix else [name]
    for form in plain:
        yield form
        for new, old in _OLD_NORM_NAMES:
            if form.endswith(new):
                yield form.removesuffix(new) + old
