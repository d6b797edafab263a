# SPDX-License-Identifier: Apache-2.0
"""Whether a file is the operator library of this package: whole, and built with the same contract.

The system's loader ends the process on a file that is cut short, so it must be found before it is opened.
"""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

from bcq import contract
from bcq.errors import ResourceError

_REINSTALL = "Reinstall the package on this machine, or unset BCQ_LIBRARY."
_MAGIC = b"\x7fELF"
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")  # Elf64_Ehdr of the System V ABI, little-endian
_SEGMENT = struct.Struct("<IIQQQQQQ")  # Elf64_Phdr
_LITTLE_64 = b"\x02\x01"  # class and byte order
_MOST_SEGMENTS = 1000


def check_whole(path: Path) -> None:
    """Refuses a library file that the system's loader would not survive, and one of another format.

    Raises:
        ResourceError: E603 when the file cannot be read, is no shared library of 64 bits, or is cut short.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
            if len(head) < _HEADER.size or head[:4] != _MAGIC or head[4:6] != _LITTLE_64:
                raise _refused(
                    path, f"{size} bytes that begin with {head[:4]!r}", "a shared library of 64 bits"
                )
            (_, _, _, _, _, segments_at, sections_at, _, _, _, count, section_size, sections, _) = (
                _HEADER.unpack(head)
            )
            file.seek(min(segments_at, size))
            table = file.read(_SEGMENT.size * min(count, _MOST_SEGMENTS))
    except OSError as fault:
        raise ResourceError(
            "E603", f"{path}: this library cannot be read: {fault.strerror}.", _REINSTALL
        ) from fault
    ends = [segments_at + _SEGMENT.size * count, sections_at + section_size * sections]
    whole = len(table) - len(table) % _SEGMENT.size
    ends += [offset + length for _, _, offset, _, _, length, _, _ in _SEGMENT.iter_unpack(table[:whole])]
    if max(ends) > size:
        raise _refused(path, f"{size} bytes", f"{max(ends)}: it is cut short")


def check_contract(path: Path) -> None:
    """Refuses a library that was built with another operator contract than this package reads.

    Args:
        path: a library that ONNX Runtime has loaded already.

    Raises:
        ResourceError: E603 when the contract differs or the library tells none.
    """
    try:
        tell = ctypes.CDLL(str(path)).bcq_contract
    except (OSError, AttributeError):
        raise _refused(
            path, "a library without bcq_contract", "the operator library of this package"
        ) from None
    tell.restype = ctypes.c_char_p
    told = (tell() or b"").decode("utf-8", "replace").splitlines()
    for got, expected in zip([*told, "nothing"], _contract_lines(), strict=False):
        if got != expected:
            raise _refused(path, f"the contract '{got[:200]}'", f"'{expected}'")


def _refused(path: Path, got: str, expected: str) -> ResourceError:
    return ResourceError("E603", f"{path}: library: got {got}, expected {expected}.", _REINSTALL)


def _contract_lines() -> list[str]:
    """The contract as ``bcq_contract`` prints it, one line for the constants and one an operator."""
    constants = (
        f"{contract.DOMAIN} opset={contract.OPSET_VERSION} format={contract.FORMAT_VERSION}"
        f" layout={contract.LAYOUT} tile_rows={contract.TILE_ROWS} word_bits={contract.WORD_BITS}"
        f" bits={contract.MIN_BITS}..{contract.MAX_BITS} group_size_multiple={contract.GROUP_SIZE_MULTIPLE}"
        f" ort_api={contract.ORT_API_VERSION}"
    )
    return [constants, *(_op_line(op) for op in contract.OPS.values())]


def _op_line(op: contract.Op) -> str:
    attributes = " ".join(f"{name}:{kind}" for name, kind in sorted(op.attributes.items()))
    return f"{op.name}({_ports(op.inputs)})->({_ports(op.outputs)}){{{attributes}}}"


def _ports(ports: tuple[contract.Port, ...]) -> str:
    return " ".join(f"{port.name}:{'|'.join(port.types)}[{','.join(port.shape)}]" for port in ports)
