# SPDX-License-Identifier: Apache-2.0
"""Tasks of an encoder: similarity of two texts, the embeddings of a teacher, or a label by a linear head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bcq.errors import UsageError
from bcq.files.checkpoint import read_json
from bcq.tuning.data import Example
from bcq.tuning.options import TuneOptions

POOLING = "1_Pooling/config.json"
_BATCH = 32


class Embedder:
    """Texts to embeddings of length 1.

    Pooling is that of the folder's ``1_Pooling/config.json``: the mean over tokens, or the first token.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``.
        folder: where the base lies.
        context: longer texts are cut to so many tokens.
    """

    def __init__(self, tokenizer: Any, folder: Path, context: int) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(context)
        self._first = False
        if (folder / POOLING).is_file():
            self._first = bool(read_json(folder / POOLING).get("pooling_mode_cls_token"))

    def __call__(self, model: Any, texts: Sequence[str]) -> torch.Tensor:
        """``[len(texts), hidden]``."""
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        hidden = getattr(model, "base_model", model)(input_ids=ids, attention_mask=mask)[0].float()
        weights = mask[:, :, None].float()
        pooled = hidden[:, 0] if self._first else (hidden * weights).sum(1) / weights.sum(1)
        return torch.nn.functional.normalize(pooled, dim=1)

    @torch.no_grad()
    def all(self, model: Any, texts: Sequence[str]) -> torch.Tensor:
        """The same for any number of texts, a batch at a time."""
        parts = [self(model, texts[i : i + _BATCH]) for i in range(0, len(texts), _BATCH)]
        return torch.cat(parts)


class SimilarityTask:
    """The cosine of two embeddings becomes the score, which is scaled to 0 .. 1; squared error."""

    def __init__(self, embed: Embedder, examples: Sequence[Example]) -> None:
        self._embed, self._examples = embed, list(examples)

    def __len__(self) -> int:
        return len(self._examples)

    def sizes(self) -> list[int]:
        """Letters of each training example."""
        return [len(e.text) + len(e.answers[0]) for e in self._examples]

    def notes(self) -> dict[str, Any]:
        """Nothing that a user of the adapter has to know."""
        return {}

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """None of its own."""
        return {}

    def loss(self, model: Any, indices: Sequence[int]) -> torch.Tensor:
        """Mean squared error of the cosines."""
        chosen = [self._examples[i] for i in indices]
        both = self._embed(model, [e.text for e in chosen] + [e.answers[0] for e in chosen])
        cosines = (both[: len(chosen)] * both[len(chosen) :]).sum(1)
        return torch.nn.functional.mse_loss(cosines, torch.tensor([e.score for e in chosen]))

    def evaluate(self, model: Any, examples: Sequence[Example]) -> dict[str, float]:
        """``pearson``, ``spearman`` and the mean squared error."""
        first = self._embed.all(model, [e.text for e in examples])
        second = self._embed.all(model, [e.answers[0] for e in examples])
        cosines = (first * second).sum(1).numpy().astype(np.float64)
        scores = np.array([e.score for e in examples])
        ranks = correlation(_ranks(cosines), _ranks(scores))
        error = float(np.square(cosines - scores).mean())
        return {"spearman": ranks, "pearson": correlation(cosines, scores), "error": error}


class DistillTask:
    """Embeddings become those of a teacher, an unpacked model with the same tokenizer and width."""

    def __init__(self, embed: Embedder, teacher: Any, examples: Sequence[Example]) -> None:
        self._embed, self._teacher = embed, teacher
        self._texts = [example.text for example in examples]
        self._targets = embed.all(teacher, self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def sizes(self) -> list[int]:
        """Letters of each training example."""
        return list(map(len, self._texts))

    def notes(self) -> dict[str, Any]:
        """Nothing that a user of the adapter has to know."""
        return {}

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """None of its own."""
        return {}

    def loss(self, model: Any, indices: Sequence[int]) -> torch.Tensor:
        """Mean of 1 - cosine to the teacher."""
        got = self._embed(model, [self._texts[i] for i in indices])
        return 1 - (got * self._targets[list(indices)]).sum(1).mean()

    def evaluate(self, model: Any, examples: Sequence[Example]) -> dict[str, float]:
        """``cosine``: mean to the teacher, and its first percentile."""
        texts = [example.text for example in examples]
        cosines = (self._embed.all(model, texts) * self._embed.all(self._teacher, texts)).sum(1).numpy()
        return {"cosine": float(cosines.mean()), "cosine_1st_percentile": float(np.percentile(cosines, 1))}


class LabelTask:
    """A label from a linear head on the embedding; the head is trained too and stands in the metadata."""

    def __init__(
        self, embed: Embedder, width: int, options: TuneOptions, examples: Sequence[Example]
    ) -> None:
        self._embed, self._examples = embed, list(examples)
        self.labels = sorted({example.answers[0] for example in examples})
        if len(self.labels) < 2:
            raise UsageError("E202", f"classification: got the label {self.labels[0]!r} alone, expected two.")
        seeded = torch.Generator().manual_seed(options.seed)
        self._weight = torch.nn.Parameter(torch.randn(len(self.labels), width, generator=seeded))
        self._bias = torch.nn.Parameter(torch.zeros(len(self.labels)))

    def __len__(self) -> int:
        return len(self._examples)

    def sizes(self) -> list[int]:
        """Letters of each training example."""
        return [len(e.text) for e in self._examples]

    def notes(self) -> dict[str, Any]:
        """Labels and head: label = argmax of ``weight @ embedding + bias``."""
        return {
            "labels": self.labels,
            "head": {"weight": self._weight.tolist(), "bias": self._bias.tolist()},
        }

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The head."""
        return {"head.weight": self._weight, "head.bias": self._bias}

    def loss(self, model: Any, indices: Sequence[int]) -> torch.Tensor:
        """Cross entropy."""
        chosen = [self._examples[i] for i in indices]
        return torch.nn.functional.cross_entropy(self._scores(model, chosen), self._targets(chosen))

    @torch.no_grad()
    def evaluate(self, model: Any, examples: Sequence[Example]) -> dict[str, float]:
        """``accuracy`` and mean negative log-likelihood."""
        embedded = self._embed.all(model, [e.text for e in examples])
        scores = embedded @ self._weight.T + self._bias
        known = [i for i, e in enumerate(examples) if e.answers[0] in self.labels]
        targets = self._targets([examples[i] for i in known])
        right = int((scores[known].argmax(1) == targets).sum())
        nll = float(torch.nn.functional.cross_entropy(scores[known], targets)) if known else float("inf")
        return {"accuracy": right / len(examples), "nll": nll}

    def _scores(self, model: Any, examples: Sequence[Example]) -> torch.Tensor:
        return self._embed(model, [e.text for e in examples]) @ self._weight.T + self._bias

    def _targets(self, examples: Sequence[Example]) -> torch.Tensor:
        return torch.tensor([self.labels.index(e.answers[0]) for e in examples])


def correlation(one: Any, other: Any) -> float:
    """Pearson's coefficient; 0 when either side is constant."""
    one, other = one - one.mean(), other - other.mean()
    size = float(np.sqrt(np.square(one).sum() * np.square(other).sum()))
    return float((one * other).sum()) / size if size else 0.0


def _ranks(values: Any) -> Any:
    """Ranks from 0, the mean rank for equal values."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    return (first + (counts - 1) / 2)[place]
