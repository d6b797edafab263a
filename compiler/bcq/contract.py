# SPDX-License-Identifier: Apache-2.0
"""Reads ``ops/contract.json``, the only declaration of the operators, as typed constants."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Port:
    """One input or output: its name, the element types it may have, its symbolic shape."""

    name: str
    types: tuple[str, ...]
    shape: tuple[str, ...]


@dataclass(frozen=True)
class Op:
    """One operator: its ports and the type (``int`` or ``string``) of each required attribute."""

    name: str
    doc: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    attributes: dict[str, str]


def _contract_text() -> str:
    """The installed copy beside this module, or the checkout's own file when nothing is installed yet."""
    installed = files("bcq") / "contract.json"
    if installed.is_file():
        return installed.read_text(encoding="utf-8")
    checkout = Path(__file__).resolve().parents[2] / "ops" / "contract.json"
    return checkout.read_text(encoding="utf-8")


def _port(declared: dict[str, Any]) -> Port:
    return Port(declared["name"], tuple(declared["types"]), tuple(declared["shape"]))


def _op(name: str, declared: dict[str, Any]) -> Op:
    return Op(
        name=name,
        doc=declared["doc"],
        inputs=tuple(_port(port) for port in declared["inputs"]),
        outputs=tuple(_port(port) for port in declared["outputs"]),
        attributes=dict(declared["attributes"]),
    )


_CONTRACT: dict[str, Any] = json.loads(_contract_text())

DOMAIN: str = _CONTRACT["domain"]
OPSET_VERSION: int = _CONTRACT["opset_version"]
FORMAT_VERSION: int = _CONTRACT["format_version"]
NESTED_FORMAT_VERSION: int = _CONTRACT["nested_format_version"]
LAYOUT: str = _CONTRACT["layout"]
TILE_ROWS: int = _CONTRACT["tile_rows"]
WORD_BITS: int = _CONTRACT["word_bits"]
MIN_BITS: int = _CONTRACT["min_bits"]
MAX_BITS: int = _CONTRACT["max_bits"]
FAST_BITS: int = _CONTRACT["fast_bits"]
GROUP_SIZE_MULTIPLE: int = _CONTRACT["group_size_multiple"]
ORT_API_VERSION: int = _CONTRACT["ort_api_version"]
OPS: dict[str, Op] = {name: _op(name, declared) for name, declared in _CONTRACT["ops"].items()}
MATMUL: Op = OPS["BcqMatMul"]
GATHER: Op = OPS["BcqGather"]
