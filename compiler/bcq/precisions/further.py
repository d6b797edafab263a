# SPDX-License-Identifier: Apache-2.0
"""Which precisions a matrix serves besides its own, and in groups of which size."""

from __future__ import annotations

from collections.abc import Sequence

from bcq import contract
from bcq.errors import UsageError

# Of the bytes of the highest precision, that the factors of all further ones may take. The file is to grow by
# a tenth at most; their graphs need the rest where a model is small (10 million weights: 3 %).
MOST_MORE = 0.08
_FACTOR_BITS = 16
_FLAG = "--also-bits"


def checked(also_bits: object, bits: int, method: str) -> tuple[int, ...]:
    """The further precisions of an option, ascending and each once.

    Args:
        also_bits: what the caller gave: integers.
        bits: of the highest precision.
        method: of solving the highest precision alone.

    Raises:
        UsageError: E202 for anything but integers from 1 to below ``bits``, E203 for another method.
    """
    if isinstance(also_bits, str | bytes) or not isinstance(also_bits, Sequence):
        raise UsageError("E202", f"{_FLAG}: got {also_bits!r}, expected a list such as [2, 3].")
    for wanted in also_bits:
        if type(wanted) is not int or not contract.MIN_BITS <= wanted < bits:
            expected = f"{contract.MIN_BITS} to {bits - 1}, fewer than --bits {bits}"
            raise UsageError("E202", f"{_FLAG}: got {wanted!r}, expected {expected}.")
    if also_bits and method != "multistart":
        raise UsageError(
            "E203",
            f"{_FLAG} does not go with --method {method}: it has a solver of its own.",
            "Leave it out.",
        )
    return tuple(sorted(set(also_bits)))


def parse(text: str) -> tuple[int, ...]:
    """Reads ``2,3``.

    Raises:
        UsageError: E202 when it is no list of integers.
    """
    words = text.split(",")
    if not all(word.strip().isascii() and word.strip().isdigit() and len(word) < 4 for word in words):
        raise UsageError("E202", f"{_FLAG}: got {text!r}, expected numbers such as 2,3.")
    return tuple(int(word) for word in words)


def refuse_with(also_bits: Sequence[int], what: str, advice: str) -> None:
    """Says that something does not go with several precisions, when there are any.

    Raises:
        UsageError: E203.
    """
    if also_bits:
        raise UsageError("E203", f"{_FLAG} does not go with {what}.", advice)


def sizes(
    bits: int, group_size: int, offset: bool, inputs: int, also_bits: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Planes and group size of each further precision of one matrix, ascending.

    The lowest one, which suffers most, has groups as small as ``MOST_MORE`` allows, of the highest one's size
    or a doubled one; all others have one group a row.

    Args:
        bits: q of the matrix; precisions that are not below it are left out.
        group_size: g at that precision.
        offset: whether groups have offsets, at every precision.
        inputs: K.
        also_bits: what was asked for.
    """
    wanted = sorted(below for below in also_bits if below < bits)
    if not wanted:
        return ()

    def cost(planes: int, size: int) -> float:
        return (planes + offset) * _FACTOR_BITS * -(-inputs // size) / inputs

    left = MOST_MORE * (bits + cost(bits, group_size)) - sum(cost(below, inputs) for below in wanted[1:])
    size = group_size
    while size < inputs and cost(wanted[0], size) > left:
        size *= 2
    lowest = (wanted[0], min(size, inputs))
    return (lowest, *((below, inputs) for below in wanted[1:]))
