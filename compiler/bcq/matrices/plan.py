# SPDX-License-Identifier: Apache-2.0
"""What the user asked for: the options of quantization, and what they mean for one matrix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from bcq import contract
from bcq.errors import UsageError
from bcq.precisions import further

METHODS = ("multistart", "alternating", "greedy", "uniform")
KEEP = "keep"
_OFFSETS = {"offset": True, "no-offset": False}
_FORMS_OF_SET = "Forms: 'h.*=3', 'h.*=3:g64', 'h.*=2:g0:offset', 'h.*=keep'."


@dataclass(frozen=True)
class Override:
    """One ``--set``: how matrices that match ``pattern`` are packed.

    Attributes:
        pattern: of names, as :meth:`matches` reads it.
        bits: q, or None when they stay dense.
        group_size: g, 0 for one group a row; None for that of the options.
        offset: whether each group has an offset; None as the options say.
    """

    pattern: str
    bits: int | None
    group_size: int | None = None
    offset: bool | None = None

    def matches(self, name: str) -> bool:
        """True when the pattern fits the full name or a dotted suffix, with or without a last ``.weight``."""
        return any(fnmatchcase(form, self.pattern) for form in _forms(name))

    def __str__(self) -> str:
        if self.bits is None:
            return f"{self.pattern}={KEEP}"
        group = "" if self.group_size is None else f":g{self.group_size}"
        offset = "" if self.offset is None else ":offset" if self.offset else ":no-offset"
        return f"{self.pattern}={self.bits}{group}{offset}"


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
        also_bits: further precisions, fewer than ``bits``, that read the first planes of the same codes with
            factors of their own (``docs/decisions/0017-nested-precision.md``).

    Raises:
        UsageError: E202 when a value is outside its range, E203 for a method with ``also_bits``.
    """

    bits: int = 3
    group_size: int = 128
    offset: bool = False
    method: str = "multistart"
    embeddings: bool = True
    overrides: Sequence[Override | str] = ()
    seed: int = 0
    also_bits: Sequence[int] = ()

    def __post_init__(self) -> None:
        if isinstance(self.overrides, str):
            raise UsageError("E202", f"overrides: got {self.overrides!r}, expected a list of such texts.")
        object.__setattr__(self, "overrides", tuple(_parsed(entry) for entry in self.overrides))
        _check_bits("--bits", self.bits)
        _check_group_size("--group-size", self.group_size)
        if self.method not in METHODS:
            raise UsageError("E202", f"--method: got {self.method!r}, expected one of {', '.join(METHODS)}.")
        if not _is_int(self.seed) or self.seed < 0:
            raise UsageError("E202", f"--seed: got {self.seed!r}, expected an integer that is at least 0.")
        object.__setattr__(self, "also_bits", further.checked(self.also_bits, self.bits, self.method))


@dataclass(frozen=True)
class Choice:
    """What happens to one matrix.

    Attributes:
        bits: q, or None when it stays dense.
        reason: why it stays dense.
        requested: whether the user named it.
        group_size: g as asked for: 0 is one group a row.
        offset: whether each group has an offset.
    """

    bits: int | None
    reason: str = ""
    requested: bool = False
    group_size: int = 0
    offset: bool = False


def parse_override(text: str) -> Override:
    """Reads ``pattern=keep`` or ``pattern=bits``, the latter with ``:g64``, ``:offset`` or ``:no-offset``.

    Raises:
        UsageError: E202 when the text has another form, or bits or group size are out of range.
    """
    pattern, separator, value = text.rpartition("=")
    where = f"--set {text!r}"
    if not separator or not pattern or not value:
        raise UsageError("E202", f"{where}: expected 'pattern=bits' or 'pattern=keep'.", _FORMS_OF_SET)
    if value == KEEP:
        return Override(pattern, None)
    bits, *extras = value.split(":")
    if not _is_number(bits):
        raise UsageError("E202", f"{where}: got {bits!r}, expected 1 to 8 bits or 'keep'.", _FORMS_OF_SET)
    _check_bits(where, int(bits))
    return Override(pattern, int(bits), *_extras(where, extras))


def _extras(where: str, extras: Sequence[str]) -> tuple[int | None, bool | None]:
    """Group size and offset of what follows the bits; each may stand once."""
    group_size: int | None = None
    offset: bool | None = None
    for extra in extras:
        if extra in _OFFSETS and offset is None:
            offset = _OFFSETS[extra]
        elif extra[:1] == "g" and _is_number(extra[1:]) and group_size is None:
            group_size = int(extra[1:])
            _check_group_size(where, group_size)
        else:
            expected = "a group size such as 'g64' and 'offset' or 'no-offset', each at most once"
            raise UsageError(
                "E202", f"{where}: got {extra!r} after the bits, expected {expected}.", _FORMS_OF_SET
            )
    return group_size, offset


def choice_for(name: str, options: QuantizeOptions, embedding: bool = False) -> Choice:
    """How one matrix is packed.

    Args:
        name: parameter or initializer name.
        options: what the user asked for.
        embedding: the matrix is an embedding, or a head tied to one.
    """
    for override in reversed(options.overrides):
        assert isinstance(override, Override)  # __post_init__ has parsed the strings
        if override.matches(name):
            return _overridden(override, options)
    if embedding and not options.embeddings:
        return Choice(None, "kept by --no-embeddings", requested=True)
    return Choice(options.bits, group_size=options.group_size, offset=options.offset)


def _overridden(override: Override, options: QuantizeOptions) -> Choice:
    if override.bits is None:
        return Choice(None, f"kept by --set '{override}'", requested=True)
    group_size = options.group_size if override.group_size is None else override.group_size
    offset = options.offset if override.offset is None else override.offset
    return Choice(override.bits, requested=True, group_size=group_size, offset=offset)


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


def group_size_for(chosen: QuantizeOptions | Choice, inputs: int) -> int:
    """The g that a weight of ``inputs`` features stores: 0 (row-wise) becomes K."""
    return chosen.group_size or inputs


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


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _check_group_size(where: str, group_size: object) -> None:
    multiple = contract.GROUP_SIZE_MULTIPLE
    if not _is_int(group_size) or group_size < 0 or group_size % multiple:  # type: ignore[operator]  # an int
        raise UsageError(
            "E202",
            f"{where}: got the group size {group_size!r}, expected 0 or a multiple of {multiple}.",
            f"Try {multiple}, 64, 128 or 0.",
        )


def _check_bits(where: str, bits: object) -> None:
    low, high = contract.MIN_BITS, contract.MAX_BITS
    if not _is_int(bits) or not low <= bits <= high:  # type: ignore[operator]  # narrowed by _is_int
        raise UsageError("E202", f"{where}: got {bits!r} bits, expected {low} to {high}.")
