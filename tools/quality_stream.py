# SPDX-License-Identifier: Apache-2.0
"""Quantizes the linear layers of a torch model block by block, each for what the blocks before give it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

Batch = tuple[
    Tensor, dict[str, Any], Tensor
]  # hidden states, the block's other arguments, mask of real tokens
Solve = Callable[[Tensor, "Tensor | None"], Tensor]  # weights [N, K], second moments [K, K] -> dense


def blocks_of(model: Any) -> list[Any]:
    """The repeated blocks: the longest list of modules."""
    lists = [list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=len)


def linears_of(block: Any) -> dict[str, Any]:
    """Linear layers of a block by name."""
    return {name: m for name, m in block.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D))}


@torch.inference_mode()
def quantized(model: Any, batches: list[dict[str, Tensor]], solve: Solve, calibrate: bool) -> Any:
    """A copy of the model with the linear layers of its blocks replaced by what ``solve`` returns."""
    result = copy.deepcopy(model)
    streams = first_inputs(result, batches) if calibrate else []
    for block in blocks_of(result):
        moments = second_moments(block, streams) if calibrate else {}
        for name, module in linears_of(block).items():
            replace(module, solve, moments.get(name))
        if block is not blocks_of(result)[-1]:
            streams = [(run(block, batch)[1], *batch[1:]) for batch in streams]
    return result


def replace(module: Any, solve: Solve, moments: Tensor | None) -> None:
    """Puts what ``solve`` returns in the place of a layer's weights."""
    turned = isinstance(module, Conv1D)
    weights = module.weight.T if turned else module.weight
    dense = solve(weights.contiguous(), moments)
    module.weight.copy_(dense.T if turned else dense)


class _Caught(Exception):
    """The first block was reached."""


def first_inputs(model: Any, batches: list[dict[str, Tensor]]) -> list[Batch]:
    """What the first block is given for each batch."""
    caught: list[Any] = []

    def catch(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((args, kwargs))
        raise _Caught

    handle = blocks_of(model)[0].register_forward_pre_hook(catch, with_kwargs=True)
    result = []
    for batch in batches:
        with contextlib.suppress(_Caught):
            model(**batch, use_cache=False)
        args, kwargs = caught.pop()
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        result.append((args[0], {"args": args[1:], **kwargs}, mask.bool()))
    handle.remove()
    return result


def second_moments(block: Any, streams: list[Batch]) -> dict[str, Tensor]:
    """Mean of x x^T over all real tokens, for the inputs x of each linear layer."""
    sums: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    for batch in streams:
        first: dict[int, str] = {}
        for name, given in run(block, batch)[0].items():
            same[name] = first.setdefault(id(given), name)
            if same[name] == name:  # layers with the same input share its moments
                rows = given.reshape(*batch[2].shape, -1)[batch[2]]
                sums[name] = sums[name] + rows.T @ rows if name in sums else rows.T @ rows
    tokens = sum(int(batch[2].sum()) for batch in streams)
    means = {name: total / tokens for name, total in sums.items()}
    return {name: means[first] for name, first in same.items()}


def run(block: Any, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """What each linear layer of a block is given, and what the block returns."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[Any, tuple[Tensor, ...]], None]:
        return lambda module, args: found.__setitem__(name, args[0])

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in linears_of(block).items()]
    hidden, rest, _ = batch
    rest = dict(rest)
    output = block(hidden, *rest.pop("args"), **rest)
    for handle in handles:
        handle.remove()
    return found, output[0] if isinstance(output, tuple) else output
