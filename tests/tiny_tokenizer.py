# SPDX-License-Identifier: Apache-2.0
"""A tokenizer of one hundred words, and texts of them, for the models of `tiny_models`."""

from __future__ import annotations

import random
from pathlib import Path

from tiny_models import VOCABULARY

WORDS = ["<bos>", "<eos>", *(f"w{number}" for number in range(VOCABULARY - 2))]


def save_tokenizer(folder: Path, context: int = 64) -> Path:
    """Writes a tokenizer into a model folder, which is returned."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, WORDS[2]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=WORDS[0], eos_token=WORDS[1], model_max_length=context
    ).save_pretrained(folder)
    return folder


def text(words: int, seed: int = 0, line: int = 12) -> str:
    """Lines of random words; every fifth line is empty, so that there are documents."""
    chosen = random.Random(seed).choices(WORDS[2:], weights=range(len(WORDS) - 2, 0, -1), k=words)
    lines = [" ".join(chosen[begin : begin + line]) for begin in range(0, words, line)]
    return "\n".join(lines[at] + ("\n" if at % 5 == 4 else "") for at in range(len(lines))) + "\n"
