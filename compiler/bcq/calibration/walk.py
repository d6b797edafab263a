# SPDX-License-Identifier: Apache-2.0
"""The way through a model, block by block: states move, second moments are summed, matrices are solved.

One block is in memory at a time. Its inputs come from the blocks before it as they were packed.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
import transformers

from bcq import __version__, contract
from bcq.calibration.blocks import Blocks, Call
from bcq.calibration.hidden import HiddenStates
from bcq.calibration.moments import Moments, Reading, Readings
from bcq.calibration.refine import Lesson, refine
from bcq.calibration.settings import CalibrationOptions
from bcq.calibration.task import SolveTask, Workers
from bcq.calibration.tokens import TokenBatches
from bcq.calibration.weights import ModelWeights, holders
from bcq.frontends.names import stored_names

if TYPE_CHECKING:
    from torch import nn

    from bcq.files.base import BaseMatrix
    from bcq.files.checkpoint import Checkpoint
    from bcq.matrices.solver import MatrixSolver
    from bcq.packing import PackedWeight

LOOKUPS = 1.0  # share of a tied table's rows being read as they are, where all inputs count alike
Result = TypeVar("Result")


class Walk:
    """The way through the model; ``digest`` names everything that the present hidden states depend on."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        packed: Mapping[str, BaseMatrix],
        model: nn.Module,
        solver: MatrixSolver,
        tokens: TokenBatches,
        scratch: Path,
        workers: Workers,
        threads: ThreadPoolExecutor,
        options: CalibrationOptions,
    ) -> None:
        names = stored_names(model, checkpoint.tensors, checkpoint.folder)
        self._checkpoint, self._packed, self._solver, self._options = checkpoint, packed, solver, options
        self._scratch, self._workers, self._threads = scratch, workers, threads
        self._batches = [torch.from_numpy(batch) for batch in tokens.batches]
        self._blocks = Blocks(model)
        self._layers = {  # matrices that are layers, by the names of their modules
            matrix.name.removesuffix(".weight"): matrix
            for matrix in packed.values()
            if matrix.kind in ("linear", "conv1d")
        }
        self._tied = self._tied_head()
        self._layers |= self._tied
        self._weights = ModelWeights(checkpoint, names, self._as_packed, scratch)
        inside = f"{self._blocks.name}."
        self._outside = {
            name: module
            for name, module in holders(model).items()
            if not name.startswith(inside) and module is not self._blocks.head
        }
        self._outer_layers = [name for name in self._layers if not name.startswith(inside)]
        shapes = [(len(batch), batch.shape[1]) for batch in self._batches]
        self._states = HiddenStates(scratch / "states", shapes)  # of the blocks as they were packed
        self._dense = HiddenStates(scratch / "dense", shapes)  # of the dense model
        self._calls: dict[tuple[int, ...], list[Call]] = {}
        self._digest = self._begin(tokens.digest)

    def run(self) -> None:
        """From the token ids to the output embeddings."""
        for head in self._tied:
            self._solve_table(head)
        for matrix in self._packed.values():
            if matrix.kind == "embedding":
                self._solver(matrix)
        self._follow(self._outside)
        self._front()
        for number in range(len(self._blocks.items)):
            self._block(number)
        self._tail()

    def close(self) -> None:
        """Closes files."""
        self._states.close()
        self._dense.close()

    def _tied_head(self) -> dict[str, BaseMatrix]:
        """The table of embeddings that is also the head, by the name of the head's module; or nothing."""
        modules = self._blocks.model.named_modules()
        names = [name for name, module in modules if module is self._blocks.head]
        tables = [matrix for matrix in self._packed.values() if matrix.kind == "embedding"]
        return {name: table for name in names for table in tables if f"{name}.weight" in table.tied}

    def _solve_table(self, head: str) -> None:
        """Solves it under what the head reads in the dense model, since the blocks read it packed."""
        before = self._digest
        self._follow(holders(self._blocks.model))
        missing = self._missing([head])
        self._digest = before
        if missing:
            moments = self._moments_of_head(head)
            moments.finish()
            if head in moments.names():
                moments.spread(head, LOOKUPS)
            self._solve(missing, moments)
            moments.remove()

    def _moments_of_head(self, head: str) -> Moments:
        """Second moments of the last hidden states of the dense model."""
        self._dense_front()
        for number, block in enumerate(self._blocks.items):
            with self._weights.loaded(holders(block, f"{self._blocks.name}.{number}"), packed=False):
                self._move(number, self._dense)
        return self._moments_of_tail([head], self._dense, packed=False)

    def _dense_front(self) -> None:
        """Hidden states of the first block in the dense model."""
        with self._weights.loaded(self._outside, packed=False):
            for number, ids in enumerate(self._batches):
                states, calls = self._blocks.front(ids)
                self._dense.write(number, states)
                self._calls[tuple(ids.shape)] = calls

    def _front(self) -> None:
        """Hidden states of the first block; a layer before it is solved, and they are made again."""
        moments = self._moments_of_front()
        if moments.names():
            self._solve(self._missing(moments.names()), moments)
            self._follow({name: self._outside[name] for name in moments.names()})
            self._moments_of_front().remove()
        moments.remove()
        if self._options.refine:
            self._dense_front()

    def _moments_of_front(self) -> Moments:
        moments, readings = Moments(self._scratch), self._readings(self._outer_layers)
        with self._weights.loaded(self._outside, packed=True), readings.hooked():
            for number, ids in enumerate(self._batches):
                readings.begin()
                states, calls = self._blocks.front(ids)
                moments.add(readings.end(), self._threads)
                self._states.write(number, states)
                self._calls[tuple(ids.shape)] = calls
        return moments

    def _block(self, number: int) -> None:
        """Solves one block under what it reads while it is dense, and moves the hidden states behind it."""
        block, name = self._blocks.items[number], f"{self._blocks.name}.{number}"
        held = holders(block, name)
        layers = [layer for layer in self._layers if layer.startswith(f"{name}.")]
        if self._options.refine:
            self._refined_block(number, held, layers)
        elif missing := self._missing(layers):
            self._solve_block(number, held, layers=missing, missing=missing).remove()
        with self._weights.loaded(held, packed=True):
            self._move(number, self._states)
        self._follow(held)

    def _refined_block(self, number: int, held: Mapping[str, nn.Module], layers: list[str]) -> None:
        """The same, then the factors of its matrices are trained together."""
        with self._weights.loaded(held, packed=False):
            self._move(number, self._dense)
        inputs = f"{self._digest} refined in {self._options.refine} passes"
        keys = {layer: self._solver.key(self._layers[layer], inputs) for layer in layers}
        if self._solver.recall_all([(self._layers[layer], key) for layer, key in keys.items()]):
            return
        moments = self._solve_block(number, held, layers, self._missing(layers))
        solved = {layer: self._layers[layer] for layer in layers if self._is_solved(layer)}
        if solved:
            with self._weights.loaded(held, packed=True):
                refined = self._refine(number, solved)
            for layer, weight in refined.items():
                self._solver.refine(solved[layer], keys[layer], weight, moments.path(layer))
        moments.remove()

    def _refine(self, number: int, layers: Mapping[str, BaseMatrix]) -> Mapping[str, PackedWeight]:
        """Trains the factors of these layers of a block, from packed states to the dense ones behind it."""
        calls = {shape: calls[number].for_training() for shape, calls in self._calls.items()}

        def output(batch: int) -> torch.Tensor:
            call = calls[tuple(self._batches[batch].shape)]
            return self._blocks.output(number, self._states.read(batch), call)

        weights = {
            name: (self._blocks.model.get_submodule(name), self._solver.weight(matrix.stored))
            for name, matrix in layers.items()
        }
        lesson = Lesson(len(self._batches), output, self._dense.read)
        return refine(weights, lesson, self._options.refine, self._solver.seed).weights

    def _solve_block(
        self, number: int, held: Mapping[str, nn.Module], layers: Iterable[str], missing: Mapping[str, str]
    ) -> Moments:
        """Solves what is missing of a block; the second moments of these layers, in files."""
        moments, readings = Moments(self._scratch), self._readings(layers)

        def read(batch: int) -> list[Reading]:
            readings.begin()
            self._run_block(number, batch, self._states)
            return readings.end()

        with self._weights.loaded(held, packed=False), readings.hooked():
            for noted in self._each_batch(read):
                moments.add(noted, self._threads)
        self._solve(missing, moments)
        return moments

    def _move(self, number: int, states: HiddenStates) -> None:
        """Hidden states go through a block."""

        def move(batch: int) -> None:
            states.write(batch, self._run_block(number, batch, states))

        for _ in self._each_batch(move):
            pass

    def _run_block(self, number: int, batch: int, states: HiddenStates) -> torch.Tensor:
        return self._blocks.run(number, states.read(batch), self._call(number, batch))

    def _call(self, number: int, batch: int) -> Call:
        return self._calls[tuple(self._batches[batch].shape)][number]

    def _tail(self) -> None:
        """Solves what reads the last hidden states: heads and the layers before them."""
        missing = self._missing([name for name in self._outer_layers if not self._is_solved(name)])
        if not missing:
            return
        moments = self._moments_of_tail(missing, self._states, packed=True)
        self._solve(missing, moments)
        moments.remove()

    def _moments_of_tail(self, layers: Iterable[str], states: HiddenStates, packed: bool) -> Moments:
        """Second moments of what layers behind the last block read."""
        moments, readings = Moments(self._scratch), self._readings(layers)
        with self._weights.loaded(self._outside, packed=packed), readings.hooked():
            for number, ids in enumerate(self._batches):
                self._blocks.tail(ids, states.read(number), readings.begin)
                moments.add(readings.end(), self._threads)
        return moments

    def _readings(self, names: Iterable[str]) -> Readings:
        return Readings({name: self._blocks.model.get_submodule(name) for name in names})

    def _missing(self, names: Iterable[str]) -> dict[str, str]:
        """Layers that a stopped run has not solved, and the keys under which they will be found."""
        keys = {name: self._solver.key(self._layers[name], self._digest) for name in names}
        return {name: key for name, key in keys.items() if not self._solver.recall(self._layers[name], key)}

    def _is_solved(self, name: str) -> bool:
        return self._layers[name].stored in self._solver.outcomes

    def _solve(self, keys: Mapping[str, str], moments: Moments) -> None:
        """Solves the layers that have read something; the others stay for the data-free solver."""
        moments.finish()
        reached = [name for name in keys if name in moments.names()]
        key_of = {self._layers[name].stored: keys[name] for name in reached}
        tasks = [self._task(self._layers[name], moments, name) for name in reached]
        for solved in self._workers.solve(tasks):
            self._solver.keep(self._packed[solved.name], key_of[solved.name], solved)

    def _task(self, matrix: BaseMatrix, moments: Moments, name: str) -> SolveTask:
        return SolveTask(
            name=matrix.stored,
            weights=self._checkpoint.entry(matrix.stored),
            transposed=matrix.transposed,
            moments=moments.path(name),
            bits=matrix.bits,
            group_size=matrix.group_size,
            offset=matrix.offset,
            seed=self._solver.seed,
            also=matrix.also,
        )

    def _as_packed(self, stored: str) -> tuple[PackedWeight, bool] | None:
        if stored not in self._solver.outcomes:
            return None
        return self._solver.weight(stored), self._packed[stored].transposed

    def _each_batch(self, work: Callable[[int], Result]) -> Iterator[Result]:
        """Results in order; as many batches as there are threads are under way."""
        waiting: deque[Future[Result]] = deque()
        for batch in range(len(self._batches)):
            waiting.append(self._threads.submit(work, batch))
            if len(waiting) >= self._options.parallel:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _begin(self, tokens: str) -> str:
        """Names what everything depends on: text, configuration, programs."""
        versions = [__version__, np.__version__, torch.__version__, transformers.__version__]
        start = [tokens, self._checkpoint.config, *versions, contract.FORMAT_VERSION]
        return hashlib.sha256(json.dumps(start, sort_keys=True).encode()).hexdigest()

    def _follow(self, modules: Mapping[str, nn.Module]) -> None:
        """Adds weights, as they now are, to what the hidden states depend on."""
        digest = hashlib.sha256(self._digest.encode())
        for stored in self._weights.stored(modules):
            outcome = self._solver.outcomes.get(stored)
            digest.update(outcome.key.encode() if outcome else self._weights.digest(stored))
        self._digest = digest.hexdigest()
