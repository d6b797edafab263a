# SPDX-License-Identifier: Apache-2.0
"""What an end-to-end bench measures: model, exports, peers, prompt and answer, threads, rounds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BITS = (2, 3, 4)
GGUF = ("Q4_0", "Q4_K_M", "Q3_K_M", "Q2_K", "TQ2_0")
BLOCKS = (32, 128)  # of the int4 folders of onnxruntime-genai
FLOOR_ROUNDS = 2  # of PyTorch in float32, which takes longer than all others together
FLOOR_TOKENS = 8


@dataclass(frozen=True)
class Variant:
    """How an export of ours computes.

    Attributes:
        suffix: of its name.
        accuracy_level: of its products.
        kv_cache: what keys and values are kept as.
    """

    suffix: str
    accuracy_level: int
    kv_cache: str = "float"


VARIANTS = (
    Variant("", 0),  # near-exact
    Variant(" int8", 4),  # int8 activations, as most peers have
    Variant(" int8 kv8", 4, "int8"),
)


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        source: a key of `bcq.bench.end_to_end.shapes.SHAPES`, a model folder, or the folder of an export.
        work: where models are made and kept.
        bits: planes of our exports.
        group_size: inputs that share a scale, of ours.
        variants: how ours compute.
        peers: whether others take part.
        prompt: tokens of the prompt.
        tokens: generated tokens.
        threads: of every contender.
        rounds: turns that every contender takes after a warm-up.
        vocabulary: tokens of a shape, instead of its own number.
        fresh: export again what an earlier run of the same work folder has exported.
    """

    source: str
    work: Path
    bits: tuple[int, ...] = BITS
    group_size: int = 128
    variants: tuple[Variant, ...] = VARIANTS
    peers: bool = True
    prompt: int = 128
    tokens: int = 64
    threads: int = 2
    rounds: int = 7
    vocabulary: int | None = None
    fresh: bool = False


@dataclass(frozen=True)
class Entrant:
    """Who takes part.

    Attributes:
        name: as tables show it.
        family: ``bcq``, ``genai``, ``llama.cpp`` or ``torch``.
        bits: of its class; 32 for float32.
        path: folder or file that it opens.
        model: the model folder that it was made of; tokens and logits are compared with that.
        file_bytes: what one has to ship: graph and weights.
    """

    name: str
    family: str
    bits: int
    path: Path
    model: Path
    file_bytes: int

    @property
    def module(self) -> str:
        """Where its engine is."""
        short = {"llama.cpp": "llama"}.get(self.family, self.family)
        return f"bcq.bench.end_to_end.engine_{short}"

    @property
    def ours(self) -> bool:
        """Whether it is one of our exports."""
        return self.family == "bcq"
