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
Inputs = list[dict[str, Tensor]]  # of the linear layers of one block by name, for each batch
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
def original_inputs(model: Any, batches: list[dict[str, Tensor]]) -> list[Inputs]:
    """What the linear layers of each block of the float32 model are given, batch by batch."""
    streams = first_inputs(model, batches)
    result = []
    for block in blocks_of(model):
        runs = [run(block, batch) for batch in streams]
        result.append([given for given, _ in runs])
        streams = [(after, *batch[1:]) for (_, after), batch in zip(runs, streams, strict=True)]
    return result


@torch.inference_mode()
def quantized(
    model: Any, batches: list[dict[str, Tensor]], solve: Solve, originals: list[Inputs] | None
) -> Any:
    """A copy of the model with the linear layers of its blocks replaced by what ``solve`` returns.

    ``originals``, from :func:`original_inputs`, make it calibrate; without, ``solve`` is given no moments.
    """
    result = copy.deepcopy(model)
    streams = first_inputs(result, batches) if originals else []
    for number, block in enumerate(blocks_of(result)):
        moments = second_moments(block, streams, originals[number]) if originals else {}
        for name, module in linears_of(block).items():
            turned = isinstance(module, Conv1D)
            weights = module.weight.T if turned else module.weight
            dense = solve(weights.contiguous(), moments.get(name))
            module.weight.copy_(dense.T if turned else dense)
        if block is not blocks_of(result)[-1]:
            streams = [(run(block, batch)[1], *batch[1:]) for batch in streams]
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


def second_moments(block: Any, streams: list[Batch], originals: Inputs) -> dict[str, Moments]:
    """H and drift of each linear layer, over all real tokens."""
    sums: dict[str, list[Tensor]] = {}
    same: dict[str, str] = {}
    tokens = 0
    for batch, meant in zip(streams, originals, strict=True):
        mask = batch[2]
        first: dict[int, str] = {}
        for name, given in run(block, batch)[0].items():
            same[name] = first.setdefault(id(given), name)
            if same[name] != name:
                continue  # layers with the same input share its moments
            rows, aims = (x.reshape(*mask.shape, -1)[mask] for x in (given, meant[name]))
            part = [rows.T @ rows, (aims - rows).T @ rows]
            sums[name] = (
                [old + new for old, new in zip(sums[name], part, strict=True)] if name in sums else part
            )
        tokens += int(mask.sum())
    means = {name: (both[0] / tokens, both[1] / tokens) for name, both in sums.items()}
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
