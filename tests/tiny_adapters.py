# SPDX-License-Identifier: Apache-2.0
"""Seeded bases and tasks for them, small enough to make in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bcq.adapters.adapter import Adapter, Alphas
from bcq.files.base import QuantizedBase
from bcq.matrices.plan import QuantizeOptions
from bcq.packing import unpack
from bcq.quantize import quantize
from tiny_models import save


def tiny_base(folder: Path, kind: str = "gpt2", **options: Any) -> QuantizedBase:
    """A quantized base of a tiny model, in ``folder / "base"``."""
    save(kind, folder / "model")
    chosen = QuantizeOptions(**{"bits": 2, "group_size": 32, "embeddings": "keep", **options})
    quantize(folder / "model", folder / "base", chosen)
    return QuantizedBase.open(folder / "base")


def task(base: QuantizedBase, name: str, seed: int, parts: tuple[str, ...] = ("alpha_1",)) -> Adapter:
    """A task whose factors are those of the base, each changed by up to half."""
    rng = np.random.default_rng(seed)
    alphas = {}
    for stored in base.names():
        weight = unpack(base.packed(stored))
        plain = {"alpha_1": weight.alpha[0], "alpha_rest": weight.alpha[1:], "offset": weight.offset}
        scaled = {
            part: (plain[part] * rng.uniform(0.5, 1.5, plain[part].shape)).astype(np.float16)
            for part in parts
            if plain[part] is not None
        }
        alphas[stored] = Alphas(**scaled)
    return Adapter(name, base.base_hash, alphas, metadata={"task": name, "steps": 1})
