# SPDX-License-Identifier: Apache-2.0
"""Lets all contenders generate in turns, each in a process of its own, and checks what they say."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bcq.bench.end_to_end.engine import Logits, Turn
from bcq.bench.end_to_end.plan import FLOOR_ROUNDS, FLOOR_TOKENS, Entrant, Plan
from bcq.bench.end_to_end.prepare import Field, made, prepare
from bcq.bench.end_to_end.process import EngineFailure, Process
from bcq.bench.end_to_end.profile import Shares, profile_export
from bcq.bench.end_to_end.result import EndToEnd, Standing, standing
from bcq.bench.machine import machine
from bcq.bench.measure import SETTLE
from bcq.errors import ParityFailure
from bcq.files.checkpoint import read_config
from bcq.progress import SILENT, Progress

# The cosine of unrelated scores of V tokens is 0 with a standard deviation of 1 / sqrt(V). Five of these are
# no chance; ternary formats keep little more of weights that were not trained for them.
LEAST_LIKENESS = 0.2
DEVIATIONS = 5.0
SEED = 1
TORCH = "bcq.bench.end_to_end.engine_torch"


class _Player:
    """A contender at work, its turns, and whether they were the same."""

    def __init__(self, entrant: Entrant, plan: Plan, prompt: list[int]) -> None:
        self.entrant = entrant
        self._prompt = prompt
        floor = entrant.family == "torch"
        self._count = min(plan.tokens, FLOOR_TOKENS) if floor else plan.tokens
        self._rounds = min(plan.rounds, FLOOR_ROUNDS) if floor else plan.rounds
        self.process = Process(entrant.module, entrant.path, plan.threads)
        self.turns: list[Turn] = []

    def check(self, reference: Logits | None) -> float:
        """Cosine to the dense model's scores."""
        scores = self.process.logits(self._prompt)
        likeness = cosine(scores, reference)
        if likeness < min(LEAST_LIKENESS, DEVIATIONS / math.sqrt(scores.size)):
            raise EngineFailure(f"its scores have a cosine of {likeness:.2f} to those of the dense model")
        return likeness

    def take_turn(self, counts: bool) -> None:
        """One request; the first of all warms up."""
        if len(self.turns) >= self._rounds:
            return
        turn = self.process.generate(self._prompt, self._count)
        time.sleep(SETTLE)  # its threads may spin until then
        if self.turns and turn.tokens != self.turns[0].tokens:
            raise EngineFailure("it gave other tokens than in an earlier round")
        if counts:
            self.turns.append(turn)


def run(plan: Plan, progress: Progress = SILENT, profile: bool = False) -> EndToEnd:
    """Prepares and measures; see `Plan`.

    With `profile`, each export of ours then generates once more with onnxruntime's profiler on.

    Every contender loads its model in a process of its own and stays there. In each round each of them
    answers the same prompt greedily, each round beginning with another one, so that drifts of the machine
    meet all of them alike. A first round warms up and is not counted.

    Raises:
        BcqError: as `bcq.bench.end_to_end.prepare.prepare`.
        ParityFailure: E502 when one of our exports fails, or does not repeat itself.
    """
    found = prepare(plan, progress)
    result = measure(plan, found, progress)
    return replace(result, shares=_profiled(plan, found)) if profile else result


def _profiled(plan: Plan, found: Field) -> tuple[Shares, ...]:
    return tuple(
        profile_export(e.path, plan.threads, prompt_of(e.model, plan.prompt), plan.tokens, e.name)
        for e in found.entrants
        if e.ours
    )


def measure(plan: Plan, found: Field, progress: Progress = SILENT) -> EndToEnd:
    """The turns of contenders that are prepared."""
    where = machine()
    prompts = {e.model: prompt_of(e.model, plan.prompt) for e in found.entrants}
    players: list[_Player] = []
    try:
        for entrant in found.entrants:
            try:
                players.append(_Player(entrant, plan, prompts[entrant.model]))
            except EngineFailure as error:
                _leave_out(entrant, error, found.absent)
        likeness = _checked(players, found, prompts)
        progress.start("generate", 1 + plan.rounds)
        for index in range(1 + plan.rounds):
            _round(players, index, found.absent)
            progress.step("warm-up" if index == 0 else f"round {index}")
        progress.done()
        standings = tuple(_standing(player, plan, likeness) for player in players)
    finally:
        for player in players:
            player.process.close()
    return EndToEnd(found.name, plan.threads, plan.prompt, plan.tokens, where, standings, found.absent)


def prompt_of(model: Path, length: int) -> list[int]:
    """Seeded token ids of a model's vocabulary."""
    vocabulary = int(read_config(model)["vocab_size"])
    return [int(token) for token in np.random.default_rng(SEED).integers(3, vocabulary, length)]


def _leave_out(entrant: Entrant, error: EngineFailure, absent: dict[str, str]) -> None:
    """A peer that fails is listed with its reason; a fault of ours is not hidden."""
    if entrant.ours:
        raise ParityFailure("E502", f"{entrant.name}: {error}.", f"See `bcq verify {entrant.path}`.")
    absent[entrant.name] = str(error)


def _checked(players: list[_Player], found: Field, prompts: dict[Path, list[int]]) -> dict[str, float]:
    """Likeness of every contender by name; peers that compute something else leave."""
    references = {model: _reference(model, prompt, found.work) for model, prompt in prompts.items()}
    likeness: dict[str, float] = {}
    for player in list(players):
        try:
            likeness[player.entrant.name] = player.check(references[player.entrant.model])
        except EngineFailure as error:
            _dismiss(player, players, error, found.absent)
    return likeness


def _reference(model: Path, prompt: Sequence[int], work: Path) -> Logits | None:
    """Scores of the dense model in float32, computed once; None where only an export is there."""
    if not list(model.glob("*.safetensors")):
        return None

    def compute(path: Path) -> None:
        with Process(TORCH, model, 1) as process:
            process.logits(prompt).tofile(path)

    file = made(work / f"scores-{model.name}-{len(prompt)}", compute)
    return np.fromfile(file, np.float32)


def cosine(one: Logits, other: Logits | None) -> float:
    """Of two vectors of scores, each less its mean; nan where there is nothing to compare with."""
    if other is None or one.shape != other.shape:
        return float("nan")
    a, b = (values.astype(np.float64) - values.mean() for values in (one, other))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _dismiss(player: _Player, players: list[_Player], error: EngineFailure, absent: dict[str, str]) -> None:
    players.remove(player)
    player.process.close()
    _leave_out(player.entrant, error, absent)


def _round(players: list[_Player], index: int, absent: dict[str, str]) -> None:
    """A turn of everybody, beginning with another one each time."""
    start = index % max(len(players), 1)
    for player in [*players[start:], *players[:start]]:
        try:
            player.take_turn(counts=index > 0)
        except EngineFailure as error:
            _dismiss(player, players, error, absent)


def _standing(player: _Player, plan: Plan, likeness: dict[str, float]) -> Standing:
    return standing(
        player.entrant,
        player.turns,
        plan.prompt,
        player.process.load_seconds,
        player.process.memory(),
        likeness[player.entrant.name],
    )
