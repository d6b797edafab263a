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
Moments = tuple[Tensor, Tensor]  # mean of y y^T and of (x - y) y^T, x: inputs in float32, y: those that come
Solve = Callable[[Tensor, "Moments | None"], Tensor]  # weights [N, K] -> dense


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
    before = streams  # what the same blocks of the float32 model are given
    for block, original in zip(blocks_of(result), blocks_of(model), strict=True):
        linears = linears_of(block)
        moments = second_moments(block, original, streams, before) if calibrate else {}
        for name, module in linears.items():
            turned = isinstance(module, Conv1D)
            weights = module.weight.T if turned else module.weight
            dense = solve(weights.contiguous(), moments.get(name))
            module.weight.copy_(dense.T if turned else dense)
        streams = [(_run(block, batch), *batch[1:]) for batch in streams]
        before = [(_run(original, batch), *batch[1:]) for batch in before]
    return result


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


def second_moments(
    block: Any, original: Any, streams: list[Batch], before: list[Batch]
) -> dict[str, Moments]:
    """H and drift of each linear layer, over all real tokens."""
    sums: dict[str, list[Tensor]] = {}
    same: dict[str, str] = {}
    tokens = 0
    for batch, batch_before in zip(streams, before, strict=True):
        mask = batch[2]
        came, meant = inputs_of(block, batch), inputs_of(original, batch_before)
        first: dict[int, str] = {}
        for name, given in came.items():
            same[name] = first.setdefault(id(given), name)
            if same[name] != name:
                continue  # layers with the same input share its moments
            rows, aims = (x.reshape(*mask.shape, -1)[mask] for x in (given, meant[name]))
            part = [(rows.T @ rows).double(), ((aims - rows).T @ rows).double()]
            sums[name] = (
                [old + new for old, new in zip(sums[name], part, strict=True)] if name in sums else part
            )
        tokens += int(mask.sum())
    means = {name: (both[0] / tokens, both[1] / tokens) for name, both in sums.items()}
    return {name: (means[first][0].float(), means[first][1].float()) for name, first in same.items()}


def inputs_of(block: Any, batch: Batch) -> dict[str, Tensor]:
    """What each linear layer of a block is given in one run."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[Any, tuple[Tensor, ...]], None]:
        return lambda module, args: found.__setitem__(name, args[0])

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in linears_of(block).items()]
    _run(block, batch)
    for handle in handles:
        handle.remove()
    return found


def _run(block: Any, batch: Batch) -> Tensor:
    hidden, rest, _ = batch
    rest = dict(rest)
    output = block(hidden, *rest.pop("args"), **rest)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result
