# SPDX-License-Identifier: Apache-2.0
"""PyTorch as the reference: the model class with the weights of an export, or with the original ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bcq.files.checkpoint import Checkpoint
from bcq.files.exported import ExportedWeights
from bcq.frontends.names import stored_names, tied_names
from bcq.frontends.weightless import untie, weightless_model

Reader = Callable[[str, bool], NDArray[Any]]  # name, whether the model holds it as [K, N] -> values


def dequantized_model(folder: Path, weights: ExportedWeights) -> Any:
    """The model of an export folder with the values that its file holds, packed matrices dequantized.

    Raises:
        InputError: E107 when the file lacks a parameter.
    """

    def read(name: str, transposed: bool) -> NDArray[Any]:
        if name not in weights.packed:
            return np.array(weights.dense[name].numpy())
        matrix = weights.dequantized(name)
        return np.ascontiguousarray(matrix.T) if transposed else matrix

    return _filled(folder, weights.names(), read)


def original_model(folder: Path) -> Any:
    """The model of a Hugging Face folder with its own weights, in float32."""
    checkpoint = Checkpoint.open(folder)

    def read(name: str, transposed: bool) -> NDArray[Any]:
        return np.array(checkpoint.read(name))

    return _filled(folder, checkpoint.names(), read)


def decode(
    model: Any, prompt: Sequence[int], steps: int, forced: Sequence[int] | None = None, cache: Any = None
) -> Decoded:
    """Prompt, then `steps` tokens one at a time with cache; greedy unless the tokens are given.

    Args:
        model: causal language model of transformers.
        prompt: token ids.
        steps: decode steps.
        forced: the tokens to feed instead of the model's own choices.
        cache: of transformers, empty; None for an ordinary one.
    """
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache() if cache is None else cache

    def run(new: torch.Tensor) -> Any:
        return model(input_ids=new, past_key_values=cache, use_cache=True)

    return _stepped(run, cache, prompt, steps, forced)


def answer(
    model: Any, source: Sequence[int], begin: int, steps: int, forced: Sequence[int] | None = None
) -> Decoded:
    """An encoder-decoder's answer to a source, one token at a time with cache; otherwise as `decode`.

    Args:
        model: encoder-decoder of transformers.
        source: token ids that the encoder reads.
        begin: the token that the answer begins with.
        steps: decode steps.
        forced: the tokens to feed instead of the model's own choices.
    """
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with torch.no_grad():
        encoded = model.get_encoder()(input_ids=torch.tensor([source]))

    def run(new: torch.Tensor) -> Any:
        return model(encoder_outputs=encoded, decoder_input_ids=new, past_key_values=cache, use_cache=True)

    return _stepped(run, cache.self_attention_cache, [begin], steps, forced)


def _stepped(
    run: Callable[[torch.Tensor], Any],
    cache: Any,
    first: Sequence[int],
    steps: int,
    forced: Sequence[int] | None,
) -> Decoded:
    """Runs the first tokens, then `steps` tokens one at a time; `cache` is what `run` fills."""
    rows, tokens, new = [], [], list(first)
    with torch.no_grad():
        for step in range(steps + 1):
            rows.append(run(torch.tensor([new])).logits[0].numpy())
            token = int(rows[-1][-1].argmax()) if forced is None or step >= len(forced) else forced[step]
            tokens.append(token)
            new = [token]
    filled: list[Any] = list(cache.layers)
    layers = [(layer.keys.numpy(), layer.values.numpy()) for layer in filled]
    return Decoded(np.concatenate(rows), tokens, layers)


class Decoded:
    """What a decoder answered.

    Attributes:
        logits: float32 ``[prompt + steps, vocabulary]``.
        tokens: the tokens chosen (or forced) after the prompt and after each step.
        layers: key and value cache of each layer at the end, ``[1, heads, tokens, head_size]``.
    """

    def __init__(
        self,
        logits: NDArray[np.float32],
        tokens: list[int],
        layers: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    ) -> None:
        self.logits = logits
        self.tokens = tokens
        self.layers = layers


def encode(model: Any, feeds: Mapping[str, NDArray[np.int64]], outputs: Sequence[str]) -> list[NDArray[Any]]:
    """An encoder's outputs by name."""
    with torch.no_grad():
        result = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    return [result[name].numpy() for name in outputs]


def _filled(folder: Path, stored: Collection[str], read: Reader) -> Any:
    """The model of a folder with real parameters."""
    from transformers.pytorch_utils import Conv1D

    model: Any
    model, _ = weightless_model(folder)
    untie(model, stored, lambda name: read(name, False))
    names = stored_names(model, stored, folder)
    for aliases in tied_names(model):
        shape = tuple(model.get_parameter(aliases[0]).shape)
        owner = model.get_submodule(aliases[0].rpartition(".")[0])
        values = read(names[aliases[0]], isinstance(owner, Conv1D))
        parameter = torch.nn.Parameter(torch.from_numpy(values).float(), requires_grad=False)
        assert tuple(parameter.shape) == shape, (aliases[0], shape)
        for alias in aliases:
            path, _, leaf = alias.rpartition(".")
            setattr(model.get_submodule(path), leaf, parameter)
    return model
