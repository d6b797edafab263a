# SPDX-License-Identifier: Apache-2.0
"""What the user asked for: the options of quantization, and which bits they mean for one matrix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from bcq import contract
from bcq.errors import UsageError

METHODS = ("multistart", "alternating", "greedy", "uniform")
KEEP = "keep"


@dataclass(frozen=True)
class Override:
    """One ``--set``: matrices that match ``pattern`` get ``bits`` planes, or stay dense when it is None."""

    pattern: str
    bits: int | None

    def matches(self, name: str) -> bool:
        """True when the pattern fits the full name or a dotted suffix, with or without a last ``.weight``."""
        return any(fnmatchcase(form, self.pattern) for form in _forms(name))

    def __str__(self) -> str:
        return f"{self.pattern}={KEEP if self.bits is None else self.bits}"


@dataclass(frozen=True)
class QuantizeOptions:
    """Options of ``bcq quantize``.

    Attributes:
        bits: q, planes per matrix, 1 to 8.
        group_size: g, inputs that share an alpha: a multiple of 32, or 0 for one group a row.
        offset: whether each group also has an offset.
        method: one of ``METHODS``; see ``docs/decisions/0002-solver.md``.
        embeddings: whether embeddings (and a head tied to one) are packed too.
        overrides: exceptions by name; the last one that matches wins. Strings are parsed.
        seed: seed of every random choice.

    Raises:
        UsageError: E202 when a value is outside its range.
    """

    bits: int = 3
    group_size: int = 128
    offset: bool = False
    method: str = "multistart"
    embeddings: bool = True
    overrides: Sequence[Override | str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.overrides, str):
            raise UsageError("E202", f"overrides: got {self.overrides!r}, expected a list of such texts.")
        object.__setattr__(self, "overrides", tuple(_parsed(entry) for entry in self.overrides))
        _check_bits("--bits", self.bits)
        multiple = contract.GROUP_SIZE_MULTIPLE
        if not _is_int(self.group_size) or self.group_size < 0 or self.group_size % multiple:
            raise UsageError(
                "E202",
                f"--group-size: got {self.group_size!r}, expected 0 or a multiple of {multiple}.",
                f"Try {multiple}, 64, 128 or 0.",
            )
        if self.method not in METHODS:
            raise UsageError("E202", f"--method: got {self.method!r}, expected one of {', '.join(METHODS)}.")
        if not _is_int(self.seed) or self.seed < 0:
            raise UsageError("E202", f"--seed: got {self.seed!r}, expected an integer that is at least 0.")


@dataclass(frozen=True)
class Choice:
    """What happens to one matrix: ``bits`` planes, or None with the reason; ``requested`` by the user."""

    bits: int | None
    reason: str = ""
    requested: bool = False


def parse_override(text: str) -> Override:
    """Reads ``pattern=bits`` or ``pattern=keep``.

    Raises:
        UsageError: E202 when the text has another form or bits are out of range.
    """
    pattern, separator, value = text.rpartition("=")
    if not separator or not pattern or not value:
        raise UsageError("E202", f"--set {text!r}: expected 'pattern=bits' or 'pattern=keep'.")
    if value == KEEP:
        return Override(pattern, None)
    if not (value.isascii() and value.isdigit()):
        raise UsageError("E202", f"--set {text!r}: got {value!r}, expected 1 to 8 bits or 'keep'.")
    _check_bits(f"--set {text!r}", int(value))
    return Override(pattern, int(value))


def choice_for(name: str, options: QuantizeOptions, embedding: bool = False) -> Choice:
    """The bits for one matrix.

    Args:
        name: parameter or initializer name.
        options: what the user asked for.
        embedding: the matrix is an embedding, or a head tied to one.
    """
    for override in reversed(options.overrides):
        assert isinstance(override, Override)  # __post_init__ has parsed the strings
        if override.matches(name):
            reason = f"kept by --set '{override}'" if override.bits is None else ""
            return Choice(override.bits, reason, requested=True)
    if embedding and not options.embeddings:
        return Choice(None, "kept by --no-embeddings", requested=True)
    return Choice(options.bits)


def check_overrides(options: QuantizeOptions, names: Iterable[str]) -> None:
    """Refuses a pattern that fits none of ``names``.

    Raises:
        UsageError: E201 with the closest name that the model has.
    """
    known = list(names)
    for override in options.overrides:
        assert isinstance(override, Override)
        if not any(override.matches(name) for name in known):
            closest = _closest(override.pattern, known)
            hint = f"Closest: '{closest}'." if closest else "Run `bcq inspect` to see the names."
            raise UsageError("E201", f"--set '{override}' matches no matrix.", hint)


def group_size_for(options: QuantizeOptions, inputs: int) -> int:
    """The g that a weight of ``inputs`` features stores: 0 (row-wise) becomes K."""
    return options.group_size or inputs


def _closest(pattern: str, names: Sequence[str]) -> str:
    """The name most like the pattern; layer numbers become ``*`` where the pattern has stars."""
    candidates: dict[str, None] = {}
    for name in names:
        for form in _forms(name):
            candidates[_starred(form) if "*" in pattern else form] = None
    found = difflib.get_close_matches(pattern, list(candidates), n=1, cutoff=0.4)
    return found[0] if found else ""


def _starred(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _forms(name: str) -> list[str]:
    """The name, its dotted suffixes, and all of these without a last ``.weight``."""
    parts = name.split(".")
    suffixes = [".".join(parts[start:]) for start in range(len(parts))]
    return suffixes + [suffix.removesuffix(".weight") for suffix in suffixes if suffix.endswith(".weight")]


def _parsed(entry: object) -> Override:
    if isinstance(entry, Override):
        return entry
    if isinstance(entry, str):
        return parse_override(entry)
    raise UsageError("E202", f"overrides: got {entry!r}, expected text such as 'h.*.mlp.*=4'.")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_bits(where: str, bits: object) -> None:
    low, high = contract.MIN_BITS, contract.MAX_BITS
    if not _is_int(bits) or not low <= bits <= high:  # type: ignore[operator]  # narrowed by _is_int
        raise UsageError("E202", f"{where}: got {bits!r} bits, expected {low} to {high}.")
