# SPDX-License-Identifier: Apache-2.0
"""External data that is missing, short, elsewhere or not a number: what a session says about each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from hostile.case import Case, Mutation
from hostile.subjects import Subject
from hostile.tensors import initializer

FAMILY = "external data"
DATA = "model.onnx.data"
Prepare = Callable[[Path], None]


def _external(name: str, prepare: Prepare | None = None, **entries: str) -> Mutation:
    """Moves a tensor into a data file, then changes what the model says about it."""

    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        tensor = initializer(model, name)
        (folder / DATA).write_bytes(bytes(4096) + tensor.raw_data)
        right = {"location": DATA, "offset": "4096", "length": str(len(tensor.raw_data))}
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {**right, **entries}.items():
            if value != "absent":
                tensor.external_data.add(key=key, value=value)
        if prepare is not None:
            prepare(folder)

    return mutate


def _truncate(folder: Path) -> None:
    os.truncate(folder / DATA, (folder / DATA).stat().st_size - 1)


def _remove(folder: Path) -> None:
    (folder / DATA).unlink()


def _empty(folder: Path) -> None:
    os.truncate(folder / DATA, 0)


def _directory(folder: Path) -> None:
    (folder / "sub").mkdir()


def _link_out(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/passwd")


def _endless_link(folder: Path) -> None:
    (folder / "link").symlink_to("link")


def _both_ways(name: str) -> Mutation:
    """External by its mark, and with bytes inside the model as well."""

    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        inside = initializer(model, name).raw_data
        _external(name, length="8")(model, folder)
        initializer(model, name).raw_data = inside

    return mutate


def _attacks(name: str, size: int) -> dict[str, Mutation]:
    numbers = (
        "-1",
        "-4096",
        str(2**63 - 1),
        str(2**64),
        str(2**62),
        "x",
        "1e3",
        "",
        "0x10",
        "4096 ",
        "9" * 400,
    )
    attacks = {
        f"offset={value[:20]!r}": _external(name, offset=value) for value in numbers if value != "4096 "
    }
    attacks |= {
        f"length={value[:20]!r}": _external(name, length=value) for value in numbers if value != "4096 "
    }
    attacks |= {
        "offset past the end": _external(name, offset="1000000"),
        "offset near the end": _external(name, offset="4100"),
        "length short": _external(name, length=str(size - 4)),
        "length long": _external(name, length=str(size + 4)),
        "length 0": _external(name, length="0"),
        "file cut": _external(name, _truncate),
        "file empty": _external(name, _empty),
        "file missing": _external(name, _remove),
        "no location": _external(name, location="absent"),
        "location empty": _external(name, location=""),
        "location absolute": _external(name, location="/etc/passwd"),
        "location above": _external(name, location="../../../../etc/passwd"),
        "location a folder": _external(name, _directory, location="sub"),
        "location a device": _external(name, location="/dev/zero"),
        "location a link out": _external(name, _link_out, location="link"),
        "location a link to itself": _external(name, _endless_link, location="link"),
        "location in memory": _external(name, location="*/_ORT_MEM_ADDR_/*", offset="4096"),
        "location too long": _external(name, location="x" * 5000),
        "location with a zero": _external(name, location=DATA + "\0x"),
        "in both places": _both_ways(name),
    }
    return attacks


def cases(subject: Subject) -> Iterator[Case]:
    """Attacks on the largest tensor, and a healthy external file for comparison."""
    name = next(iter(subject.tensors))
    size = subject.tensors[name].nbytes
    yield Case(subject, FAMILY, "healthy", _external(name), legal=True)
    yield Case(subject, FAMILY, "no offset", _without_offset(name), legal=True)
    for what, mutate in _attacks(name, size).items():
        yield Case(subject, FAMILY, what, mutate, (name,), (name,))
    if subject.domain == "bcq":
        yield Case(subject, FAMILY, "odd address", _odd(name), (f"{name} address",))


def _without_offset(name: str) -> Mutation:
    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        data = initializer(model, name).raw_data
        _external(name, offset="absent", length="absent")(model, folder)
        (folder / DATA).write_bytes(data)

    return mutate


def _odd(name: str) -> Mutation:
    def mutate(model: onnx.ModelProto, folder: Path) -> None:
        data = initializer(model, name).raw_data
        _external(name, offset="1")(model, folder)
        (folder / DATA).write_bytes(b"\0" + data)

    return mutate
