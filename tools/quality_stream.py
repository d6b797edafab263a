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

from bcq.bcq import BcqWeight
from bcq.calibration.refine import Lesson, refine
from bcq.packing import PackedWeight, pack, unpack

Batch = tuple[
    Tensor, dict[str, Any], Tensor
]  # hidden states, the block's other arguments, mask of real tokens
Pack = Callable[[Tensor, Tensor], BcqWeight]  # the same to binary codes
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


def refined(model: Any, batches: list[dict[str, Tensor]], solve: Pack, passes: int) -> Any:
    """The same with binary codes under the second moments, their factors trained together block by block."""
    result = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        streams, targets = first_inputs(result, batches), first_inputs(model, batches)
    for block, dense in zip(blocks_of(result), blocks_of(model), strict=True):
        with torch.no_grad():
            targets = [(run(dense, batch)[1], *batch[1:]) for batch in targets]
            layers = solved_layers(block, second_moments(block, streams), solve)
        better = refine(layers, lesson_of(block, streams, targets), passes)
        with torch.no_grad():
            for name, weight in better.weights.items():
                put(layers[name][0], torch.from_numpy(unpack(weight).dequantize()))
            streams = [(run(block, batch)[1], *batch[1:]) for batch in streams]
    return result


def solved_layers(block: Any, moments: dict[str, Tensor], solve: Pack) -> dict[str, tuple[Any, PackedWeight]]:
    """The linear layers of a block and their binary codes."""
    return {
        name: (module, pack(solve(rows_of(module), moments[name])))
        for name, module in linears_of(block).items()
    }


def lesson_of(block: Any, streams: list[Batch], targets: list[Batch]) -> Lesson:
    """What a block is to make of these streams: its real tokens as in the dense model."""

    def output(batch: int) -> Tensor:
        return run(block, streams[batch])[1][streams[batch][2]]

    return Lesson(len(streams), output, lambda batch: targets[batch][0][targets[batch][2]])


def replace(module: Any, solve: Solve, moments: Tensor | None) -> None:
    """Puts what ``solve`` returns in the place of a layer's weights."""
    put(module, solve(rows_of(module), moments))


def rows_of(module: Any) -> Tensor:
    """The weights of a layer, ``[N, K]``."""
    weights: Tensor = module.weight.T if isinstance(module, Conv1D) else module.weight
    return weights.contiguous()


def put(module: Any, dense: Tensor) -> None:
    """Gives a layer other weights, ``[N, K]``."""
    module.weight.copy_(dense.T if isinstance(module, Conv1D) else dense)


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
