# SPDX-License-Identifier: Apache-2.0
"""The training loop: Adam on a task's own numbers, a rate that falls linearly, checkpoints, no dropout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from bcq.errors import InputError
from bcq.progress import Progress
from bcq.tuning.checkpoint import TrainingState
from bcq.tuning.data import Example
from bcq.tuning.options import TuneOptions

POOL = 32


class Task(Protocol):
    """What the loop needs of a task; examples are those it was made with."""

    def __len__(self) -> int:
        """Training examples."""

    def sizes(self) -> list[int]:
        """How large each training example is, in tokens or letters: like ones make good batches."""

    def notes(self) -> dict[str, Any]:
        """What an adapter's metadata says about the task."""

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Numbers of its own that are trained with the model's, by name."""

    def loss(self, model: Any, indices: Sequence[int]) -> torch.Tensor:
        """Of some training examples, a scalar."""

    def evaluate(self, model: Any, examples: Sequence[Example]) -> dict[str, float]:
        """Figures on other examples."""


def train(
    model: torch.nn.Module,
    task: Task,
    options: TuneOptions,
    progress: Progress,
    checkpoint: Path | None = None,
    key: str = "",
    resume: bool = False,
    dev: Sequence[Example] = (),
) -> dict[str, float]:
    """Trains the parameters that ask for gradients, in place.

    Args:
        model: with packed matrices; it stays in evaluation mode, so that nothing is dropped.
        task: gives losses.
        options: updates, rate, seed.
        progress: told once an update.
        checkpoint: file that a stopped run leaves; None for none.
        key: identifies the run, so that another run's checkpoint is not taken for its own.
        resume: go on from the checkpoint if there is one.
        dev: evaluated at the end, and every ``options.evaluate_every`` updates.

    Returns:
        Figures on ``dev`` (``dev_nll`` and so on), and ``train_loss``, the mean of the last 50 updates.

    Raises:
        InputError: E106 when the loss is no longer finite; E103 or E109 for a checkpoint that is damaged or
            of another run.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad} | task.parameters()
    updates = options.updates(len(task))
    optimizer = torch.optim.Adam(trained.values(), lr=options.learning_rate)
    state = TrainingState(checkpoint, key, trained, optimizer)
    done = state.read() if resume else 0
    losses: list[float] = []
    progress.start("tune", updates - done)
    for step, indices in enumerate(batches(task.sizes(), options, updates), 1):
        if step <= done:
            continue
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * (1 - (step - 1) / updates)
        losses.append(_update(model, task, indices, optimizer))
        _check_finite(losses[-1], step, options)
        remark = f"loss {losses[-1]:.4f}"
        if dev and options.evaluate_every and step % options.evaluate_every == 0 and step < updates:
            remark += "".join(f", dev {k} {v:.4f}" for k, v in task.evaluate(model, dev).items())
        progress.step(f"update {done + len(losses)}", remark)
        if options.checkpoint_every and step % options.checkpoint_every == 0 and step < updates:
            state.write(step)
    progress.done()
    figures = {f"dev_{k}": v for k, v in task.evaluate(model, dev).items()} if dev else {}
    recent = losses[-50:]
    return {**figures, **({"train_loss": sum(recent) / len(recent)} if recent else {})}


def _update(model: Any, task: Task, indices: Sequence[int], optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = task.loss(model, indices)
    loss.backward()
    optimizer.step()
    return loss.item()


def batches(sizes: Sequence[int], options: TuneOptions, updates: int) -> Iterator[list[int]]:
    """Examples of each update, by the seed alone; every pass takes each example once.

    Within `POOL` batches, examples of like size come together, so that little of the work is padding; then
    the order of these batches is drawn again.
    """
    seeded = torch.Generator().manual_seed(options.seed)
    batch = min(options.batch_size, len(sizes))
    left: list[int] = []
    ready: list[list[int]] = []
    for _ in range(updates):
        if not ready:
            while len(left) < batch:
                left += torch.randperm(len(sizes), generator=seeded).tolist()
            pool = sorted(left[: POOL * batch], key=sizes.__getitem__)
            whole = [pool[i : i + batch] for i in range(0, len(pool) - batch + 1, batch)]
            left = pool[len(whole) * batch :] + left[POOL * batch :]
            order = torch.randperm(len(whole), generator=seeded).tolist()
            ready = [whole[i] for i in order]
        yield ready.pop()


def _check_finite(loss: float, step: int, options: TuneOptions) -> None:
    if loss != loss or abs(loss) == float("inf"):
        raise InputError(
            "E106",
            f"the loss of update {step} is {loss}: training diverged.",
            f"Try a learning rate below {options.learning_rate:g}.",
        )
