# SPDX-License-Identifier: Apache-2.0
"""The time of a matrix in one decode step, from a table that `bcq bench --cost-table` measured."""

from __future__ import annotations

from collections.abc import Callable

from bcq.bench.cost_table import CostTable, packed_bytes
from bcq.budget.formats import Format
from bcq.budget.subjects import EMBEDDING, Subject
from bcq.errors import UsageError

Clock = Callable[[Subject, Format], float]


def clock(table: CostTable) -> Clock:
    """Microseconds of a product with one row of activations, the table's most threads.

    An embedding whose rows are only looked up takes none. Offsets, which the table does not have, count by
    their bytes.
    """

    def microseconds(subject: Subject, form: Format) -> float:
        if subject.kind == EMBEDDING or form.bits is None:
            return 0.0
        time = table.microseconds(subject.rows, subject.inputs, form.bits, form.group_size)
        plain = packed_bytes(subject.rows, subject.inputs, form.bits, form.group_size)
        return time * form.nbytes(subject.rows, subject.inputs) / plain

    return microseconds


def measured_bits(table: CostTable) -> frozenset[int]:
    """The numbers of planes that the table has for one row of activations, near-exact.

    Raises:
        UsageError: E202 when it has none.
    """
    found = frozenset(cost.bits for cost in table.costs if (cost.tokens, cost.accuracy_level) == (1, 0))
    if not found:
        raise UsageError(
            "E202",
            "cost table: it has no times for one token at accuracy level 0.",
            "Make it again with 'bcq bench --cost-table FILE'.",
        )
    return found


def foreign(table: CostTable) -> str:
    """In what the table's machine is not this one; empty when it is the same."""
    from bcq import __version__
    from bcq.bench.machine import cpu_name

    here = {"cpu": cpu_name(), "library": __version__}
    other = [
        f"{name} {table.machine.get(name)!r}, not {value!r}"
        for name, value in here.items()
        if table.machine.get(name) != value
    ]
    return ", ".join(other)
