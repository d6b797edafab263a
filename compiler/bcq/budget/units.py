# SPDX-License-Identifier: Apache-2.0
"""Matrices that one operator multiplies with, because they read the same activations, are decided together.

`bcq.passes.fuse_shared_input` fuses products of one value only where bits, group size and offset are equal; a
budget that gave queries more planes than keys would make three operators of one.
"""

from __future__ import annotations

from collections.abc import Sequence

from bcq.budget.subjects import LINEAR, Subject

# Names of layers that read one value, in the families that are exported.
_TOGETHER = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("gate_proj", "up_proj"),
)
_FAMILY = {name: family for family in _TOGETHER for name in family}

Unit = tuple[Subject, ...]


def units(subjects: Sequence[Subject]) -> list[Unit]:
    """Subjects in the order of the model; those that are fused stand together where the first of them is."""
    found: dict[tuple[object, ...], list[Subject]] = {}
    for subject in subjects:
        found.setdefault(_key(subject), []).append(subject)
    return [tuple(unit) for unit in found.values()]


def _key(subject: Subject) -> tuple[object, ...]:
    """Equal for subjects that are decided together."""
    parent, _, layer = subject.name.removesuffix(".weight").rpartition(".")
    if subject.fixed is None and subject.kind == LINEAR and layer in _FAMILY:
        return (parent, _FAMILY[layer], subject.inputs)
    return (subject.name,)
