# SPDX-License-Identifier: Apache-2.0
"""A target in, bits, group size and offset of every matrix out: the whole story of a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bcq.budget.formats import DENSE, Format, formats
from bcq.budget.search import Offer, cheapest, spend
from bcq.budget.sensitivity import Table
from bcq.budget.subjects import LINEAR, Model, Subject
from bcq.budget.target import LATENCY, SIZE, Target
from bcq.budget.units import Unit, units
from bcq.errors import InputError, UsageError
from bcq.matrices.plan import QuantizeOptions, choice_for

Cost = Callable[[Subject, Format], float]
MEASURES = {
    "kl": "nats a token of KL divergence",
    "cosine": "1 - cosine of embeddings",
    "weights": "a weighted sum of relative weight errors",
}


@dataclass(frozen=True)
class Chosen:
    """What becomes of one matrix.

    Attributes:
        subject: the matrix.
        form: how it is packed, or that it stays dense.
        nbytes: bytes of its tensors.
        loss: what the outputs lose by it, in the unit of the table; 0 where the user has decided.
    """

    subject: Subject
    form: Format
    nbytes: int
    loss: float


@dataclass(frozen=True)
class Budget:
    """A plan that keeps within a target.

    Attributes:
        target: the limit.
        spent: what the plan takes of it, in its unit.
        matrices: in the order of the model.
        measure: what losses are: ``kl``, ``cosine`` or ``weights``.
        options: options of quantization with one ``--set`` for every matrix that the budget decided.
    """

    target: Target
    spent: float
    matrices: tuple[Chosen, ...]
    measure: str
    options: QuantizeOptions

    @property
    def loss(self) -> float:
        """The predicted sum of losses."""
        return sum(chosen.loss for chosen in self.matrices)

    def shares(self) -> dict[str, float]:
        """Part of the predicted loss of every matrix that the budget decided, by name."""
        free = [chosen for chosen in self.matrices if chosen.subject.fixed is None]
        return {chosen.subject.name: chosen.loss / self.loss if self.loss else 0.0 for chosen in free}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; amounts in bits a weight, bytes or microseconds."""
        target = {"kind": self.target.kind, "amount": self.target.amount, "spent": self.spent}
        sets = [str(override) for override in self.options.overrides]
        return {**target, "measure": self.measure, "predicted_loss": self.loss, "overrides": sets}

    def __str__(self) -> str:
        shown, limit = self.target.show(self.spent), self.target.show(self.target.amount)
        return f"budget: {shown} of {limit}; predicted loss {self.loss:.4g}, {MEASURES[self.measure]}"


def choose(
    model: Model,
    options: QuantizeOptions,
    target: Target,
    table: Table,
    microseconds: Cost | None = None,
    bits: frozenset[int] | None = None,
) -> Budget:
    """Spends a target.

    Args:
        model: the matrices.
        options: solver, seed and exceptions; those exceptions stay.
        target: the limit.
        table: sensitivities of the matrices that the user has not decided.
        microseconds: time of a product, for a latency.
        bits: numbers of planes to choose from; None for all.

    Raises:
        InputError: E102 when the table is of another model.
        UsageError: E204 when even the smallest choice is above the target, E402 without any matrix.
    """
    cost, fixed_cost = _costs(model, target, microseconds)
    together = units(model.subjects)
    forms = [_forms(unit[0], target, bits) for unit in together]
    offers = [
        [_offer(unit, form, cost, table) for form in known]
        for unit, known in zip(together, forms, strict=True)
    ]
    _check_reachable(target, fixed_cost + cheapest(offers))
    places = spend(offers, target.amount - fixed_cost)
    spent = fixed_cost + sum(offer[place].cost for offer, place in zip(offers, places, strict=True))
    form_of = {
        subject.name: known[place]
        for unit, known, place in zip(together, forms, places, strict=True)
        for subject in unit
    }
    chosen = tuple(_chosen(subject, form_of[subject.name], table) for subject in model.subjects)
    return Budget(target, spent, chosen, table.measure, with_choices(options, chosen))


def with_choices(options: QuantizeOptions, matrices: tuple[Chosen, ...]) -> QuantizeOptions:
    """The options with one exception more for every matrix, after those of the user.

    A name may be the end of another one, whose exception must come later to win: longer names do.
    """
    free = [chosen for chosen in matrices if chosen.subject.fixed is None]
    free.sort(key=lambda chosen: len(chosen.subject.name))
    added = [chosen.form.override(chosen.subject.name) for chosen in free]
    result = dataclasses.replace(options, overrides=(*options.overrides, *added))
    for chosen in matrices:  # what the user has decided stays, whatever its name ends in
        choice = choice_for(chosen.subject.name, result, chosen.subject.kind != LINEAR)
        if chosen.subject.fixed not in (None, Format(choice.bits, choice.group_size, choice.offset)):
            added.append(chosen.form.override(chosen.subject.name))
    return dataclasses.replace(options, overrides=(*options.overrides, *added))


def _costs(model: Model, target: Target, microseconds: Cost | None) -> tuple[Cost, float]:
    """What a choice costs in the unit of the target, and what is spent before any choice."""
    if target.kind == LATENCY:
        assert microseconds is not None
        return microseconds, 0.0
    if target.kind == SIZE:
        return _file_bytes, float(model.other_bytes)
    counted = sum(subject.weights for subject in model.subjects if subject.fixed != DENSE)

    def bits_of_all(subject: Subject, form: Format) -> float:
        return 0.0 if subject.fixed == DENSE else 8 * _nbytes(subject, form) / counted

    return bits_of_all, 0.0


def _forms(subject: Subject, target: Target, bits: frozenset[int] | None) -> list[Format]:
    if subject.fixed is not None:
        return [subject.fixed]
    packed = [form for form in formats(subject.inputs) if bits is None or form.bits in bits]
    return packed if target.kind == LATENCY else [*packed, DENSE]


def _offer(unit: Unit, form: Format, cost: Cost, table: Table) -> Offer:
    """The same format for all matrices of a unit."""
    losses = (_loss(subject, form, table) for subject in unit)
    return Offer(sum(cost(subject, form) for subject in unit), sum(losses))


def _chosen(subject: Subject, form: Format, table: Table) -> Chosen:
    return Chosen(subject, form, _nbytes(subject, form), _loss(subject, form, table))


def _check_reachable(target: Target, least: float) -> None:
    if least > target.amount:
        raise UsageError(
            "E204",
            f"{target.flag}: {target.show(target.amount)} cannot be reached;"
            f" the smallest that can is {target.show(least)}.",
            "Give at least that, or keep fewer matrices dense.",
        )


def _loss(subject: Subject, form: Format, table: Table) -> float:
    if subject.fixed is not None:
        return 0.0
    entry = table.matrices.get(subject.name)
    if entry is None or (entry.rows, entry.inputs) != (subject.rows, subject.inputs):
        got = "is missing" if entry is None else f"is {entry.rows} x {entry.inputs}"
        raise InputError(
            "E102",
            f"sensitivity table: {subject.name}, {subject.rows} x {subject.inputs}, {got} in it.",
            "It was made for another model: remove it, and it is measured again.",
        )
    if form.bits is not None and form not in entry.errors:
        raise InputError(
            "E102",
            f"sensitivity table: {subject.name} has no error for {form.label}.",
            "It was made by another version: remove it, and it is measured again.",
        )
    return entry.loss(form)


def _nbytes(subject: Subject, form: Format) -> int:
    return 4 * subject.weights if form.bits is None else form.nbytes(subject.rows, subject.inputs)


def _file_bytes(subject: Subject, form: Format) -> float:
    return subject.dense_bytes if form.bits is None else form.file_bytes(subject.rows, subject.inputs)
