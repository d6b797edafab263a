# SPDX-License-Identifier: Apache-2.0
"""Text generation with an exported decoder: numpy and onnxruntime; tokenizers only where text comes in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from bcq.adapters.tasks import BASE_KEY, Feeds, Task, Tasks, no_slots
from bcq.errors import UnsupportedError, UsageError
from bcq.files.checkpoint import read_json
from bcq.files.genai import CONFIG_FILE
from bcq.files.kinds import require_export
from bcq.generation.answer import Answer
from bcq.generation.cache import PAST, PRESENT, slots
from bcq.generation.decoder import Decoder
from bcq.generation.described import Described, read_described
from bcq.generation.pieces import Pieces
from bcq.generation.runner import Context, Runner
from bcq.generation.sampling import chooser, is_integer
from bcq.generation.stops import Stops
from bcq.generation.text import check_tokens, open_tokenizer, tokenize
from bcq.precisions.files import ENCODER_FILE, graph_file


class Model:
    """An exported decoder, ready to generate.

    Attributes:
        continues: whether an answer continues its prompt; that of an encoder-decoder does not.
        folder: where it lies.
        session: the ``onnxruntime.InferenceSession``.
        decoder: how the session is run.
        context_length: tokens that prompt and continuation may have together.
        vocabulary: how many tokens there are.
        end_tokens: ids that end a text.
    """

    continues = True
    description = CONFIG_FILE  # the file that says how it is run

    def __init__(self, folder: Path, session: Any, config: dict[str, Any]) -> None:
        described = read_described(folder / self.description, config, session)
        decoder = Decoder(session, described.context_length, described.shares_buffer)
        self._open(folder, session, described, decoder)

    def _open(self, folder: Path, session: Any, described: Described, decoder: Decoder) -> None:
        """Sets what every model has."""
        self.folder = folder
        self.session = session
        self.context_length = described.context_length
        self.vocabulary = described.vocabulary
        self.end_tokens = described.end_tokens
        self.decoder = decoder
        self._tokenizer: Any = None
        self._tasks: Tasks | None = None
        self._using: Feeds = {}

    @overload
    def generate(
        self, prompt: str, max_new_tokens: int | None = ..., adapter: Task = ..., **options: Any
    ) -> str: ...
    @overload
    def generate(
        self, prompt: Sequence[int], max_new_tokens: int | None = ..., adapter: Task = ..., **options: Any
    ) -> list[int]: ...
    def generate(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int | None = 20,
        adapter: Task = None,
        **options: Any,
    ) -> str | list[int]:
        """Continues a prompt, greedily unless told otherwise.

        Args:
            prompt: text, or token ids.
            max_new_tokens: at most so many, None for as many as there is room for; an end token ends it
                earlier and is not part of the answer.
            adapter: name of a task in the export, or an adapter (its folder) from elsewhere; None for what
                `use` has chosen, which is the base at first.
            **options: ``stop``, a string or several that end the text and are no part of it (token ids end
                with the one that completes it), and the fields of `bcq.generation.sampling.Sampling`:
                ``temperature``, ``top_k``, ``top_p``, ``min_p``, ``repetition_penalty``,
                ``presence_penalty``, ``frequency_penalty``, ``seed``.

        Returns:
            The continuation without the prompt: text for text, token ids for token ids. Prompt and text
            joined are what the tokens of both decode to.

        Raises:
            UsageError: E202 for an empty or too long prompt, an id outside the vocabulary, or a bad option.
            InputError: E101 for a text prompt when the folder has no ``tokenizer.json``; E301 to E303 for an
                adapter that this export cannot run.
            ResourceError: E603 for a text prompt when the package tokenizers is missing.
        """
        pieces: Iterator[Any] = self.stream(prompt, max_new_tokens, adapter, **options)
        return "".join(pieces) if isinstance(prompt, str) else list(pieces)

    @overload
    def stream(
        self, prompt: str, max_new_tokens: int | None = ..., adapter: Task = ..., **options: Any
    ) -> Iterator[str]: ...
    @overload
    def stream(
        self, prompt: Sequence[int], max_new_tokens: int | None = ..., adapter: Task = ..., **options: Any
    ) -> Iterator[int]: ...
    def stream(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int | None = 20,
        adapter: Task = None,
        **options: Any,
    ) -> Iterator[str] | Iterator[int]:
        """As `generate`, one piece at a time; text pieces are whole characters and join to its text."""
        runner = self.start(prompt, max_new_tokens, adapter, **options)
        return runner.texts() if isinstance(prompt, str) else runner.tokens()

    def start(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int | None = 20,
        adapter: Task = None,
        **options: Any,
    ) -> Runner:
        """An answer that has not begun: each step computes one token. As `generate` otherwise."""
        tokens, answer = self.answer(prompt, max_new_tokens, **options)
        task = self.values(adapter)  # refused now, not at the first token
        return self.runner(tokens, answer, task)

    def runner(self, tokens: Sequence[int], answer: Answer, task: Feeds) -> Runner:
        """What runs a prompt that is checked, as `answer` and `values` give it."""
        return Runner(self.decoder, tokens, answer, task, self.context(len(tokens), answer.most))

    def answer(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int | None,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> tuple[list[int], Answer]:
        """The tokens of a prompt and an answer without tokens, checked; nothing is run."""
        tokens = self.encode(prompt)
        most = self.check_prompt(tokens, max_new_tokens)
        wants_text = isinstance(prompt, str) or bool(Stops(stop))
        pieces = self.pieces(tokens) if wants_text else None
        return tokens, self.reply(tokens, most, pieces, stop, **sampling)

    def reply(
        self,
        tokens: Sequence[int],
        most: int,
        pieces: Pieces | None,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> Answer:
        """An answer without tokens to a prompt that is checked; `pieces` makes its text."""
        return Answer(chooser(self.first(tokens), **sampling), most, self.end_tokens, pieces, Stops(stop))

    def first(self, prompt: Sequence[int]) -> list[int]:
        """The tokens that the decoder runs before an answer, which penalties of sampling count, too."""
        return list(prompt)

    def pieces(self, prompt: Sequence[int]) -> Pieces:
        """What makes text of an answer to a prompt."""
        return Pieces(self.tokenizer, prompt)

    def memory(self, prompts: Sequence[Sequence[int]]) -> Feeds:
        """What the decoder is fed of prompts besides their tokens: nothing."""
        return {}

    def context(self, prompt: int = 0, max_new_tokens: int | None = None) -> Context:
        """An empty cache, for a prompt of so many tokens and its answer."""
        room = self.context_length if max_new_tokens is None else prompt + max_new_tokens
        return Context(self.decoder.cache(room))

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        adapters: Sequence[Task] | None = None,
        max_new_tokens: int | None = 20,
        **options: Any,
    ) -> list[str | list[int]]:
        """Continues many prompts, each with a task of its own; see `bcq.generation.batch`."""
        from bcq.generation.batch import generate_batch

        return generate_batch(self, prompts, adapters, max_new_tokens, **options)

    def use(self, adapter: Task) -> None:
        """Chooses the task of all calls that name none; None for the base. Nothing is loaded twice.

        Raises:
            InputError: E301 to E303 for an adapter that this export cannot run, and as `Adapter.open`.
        """
        self._using = {} if adapter is None else self.tasks.feeds(adapter)

    def adapters(self) -> list[str]:
        """Names of the tasks in the export, sorted; none in an export without slots."""
        return [] if self._base_hash() is None else self.tasks.names()

    @property
    def tasks(self) -> Tasks:
        """The adapters of the export, opened when first asked for.

        Raises:
            InputError: see `bcq.adapters.tasks.Tasks`.
        """
        if self._tasks is None:
            base_hash = self._base_hash()
            if base_hash is None:
                raise no_slots(self.folder)
            self._tasks = Tasks(self.folder, base_hash)
        return self._tasks

    def logits(
        self,
        tokens: NDArray[np.int64],
        past: dict[str, NDArray[Any]],
        mask: NDArray[np.int64],
        adapter: Task = None,
    ) -> Any:
        """One run.

        Args:
            tokens: int64 ``[batch, S]``, the tokens that are new.
            past: the cache, from `empty_cache` or an earlier run.
            mask: int64 ``[batch, P + S]``; 0 marks padding on the left.
            adapter: as in `generate`; one for all rows. `bcq.generation.batch` runs rows of several tasks.

        Returns:
            Logits ``[batch, S, vocabulary]`` and the cache for the next run.
        """
        feeds = {**self.decoder.feeds(tokens, mask), **past, **self._feeds(adapter)}
        outputs = [value.name for value in self.session.get_outputs()]
        results = dict(zip(outputs, self.session.run(None, feeds), strict=True))
        logits = results.pop("logits")
        return logits, {PAST + name.removeprefix(PRESENT): array for name, array in results.items()}

    def empty_cache(self, batch: int = 1) -> dict[str, NDArray[Any]]:
        """A cache that holds no token, for `logits`."""
        return {slot.name: slot.empty(batch) for slot in slots(self.session)}

    def values(self, adapter: Task) -> Feeds:
        """What every run of a task is fed beside tokens and cache.

        Raises:
            InputError: E301 to E303 for an adapter that this export cannot run.
        """
        return self.decoder.constant(self._feeds(adapter))

    def _base_hash(self) -> str | None:
        """The base of a model with slots; None without."""
        found: str | None = self.session.get_modelmeta().custom_metadata_map.get(BASE_KEY)
        return found

    def _feeds(self, adapter: Task) -> Feeds:
        return self._using if adapter is None else self.tasks.feeds(adapter)

    def check_prompt(self, prompt: Sequence[int], max_new_tokens: int | None) -> int:
        """How many new tokens there may be: so many, or all that there is room for.

        Raises:
            UsageError: E202 when prompt and continuation do not fit the context.
        """
        room = self.context_length - len(prompt)
        if max_new_tokens is None and room > 0:
            return room
        most = 1 if max_new_tokens is None else check_count(max_new_tokens)
        if most > room:
            raise UsageError(
                "E202",
                f"{len(prompt)} prompt tokens and {most} new ones are more than the model's"
                f" {self.context_length} positions.",
                f"At most {max(room, 0)} new tokens fit; or shorten the prompt.",
            )
        return most

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """The tokens of a prompt, as `generate` takes it.

        Raises:
            UsageError: E202 for an empty prompt or an id outside the vocabulary.
        """
        tokens = tokenize(self.tokenizer, prompt) if isinstance(prompt, str) else prompt
        return check_tokens(tokens, self.vocabulary)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return str(self.tokenizer.decode(tokens))

    @property
    def tokenizer(self) -> Any:
        """The folder's tokenizer, opened when first asked for."""
        if self._tokenizer is None:
            self._tokenizer = open_tokenizer(self.folder)
        return self._tokenizer


def check_count(max_new_tokens: int) -> int:
    """How many new tokens were asked for.

    Raises:
        UsageError: E202 unless it is an integer that is at least 0.
    """
    if not is_integer(max_new_tokens) or max_new_tokens < 0:
        raise UsageError("E202", f"max_new_tokens: got {max_new_tokens!r}, expected an integer, at least 0.")
    return max_new_tokens


def load(
    folder: str | Path,
    with_library: bool = True,
    *,
    weights: str | None = None,
    profile: str | Path | None = None,
    bits: int | None = None,
) -> Model:
    """Opens an exported decoder, or encoder-decoder; torch is not imported.

    Args:
        folder: what ``bcq export`` wrote.
        with_library: False runs the model-local functions instead of the op library: slow, for comparison.
        weights: how codes are held, see `bcq.session`.
        profile: a ``.jsonl`` file for what each node took, see `bcq.session`; of an encoder-decoder that of
            the decoder.
        bits: the precision, for an export that serves several; None for its highest one.

    Raises:
        InputError: E101 for a missing folder, E102 for one that is no export, E103 for a damaged one.
        UnsupportedError: E401 when the folder is the export of something that does not generate.
        UsageError: E202 for `weights`, `profile` or `bits` that are not known.
    """
    from bcq.generation.encoder_decoder import EncoderDecoder
    from bcq.runtime import session

    folder = Path(folder)
    found = next((kind for kind in (Model, EncoderDecoder) if (folder / kind.description).is_file()), None)
    if found is None:
        require_export(folder)
        raise UnsupportedError(
            "E401",
            f"{folder} holds no decoder (it has no {CONFIG_FILE}), so it cannot generate text.",
            "Run its model with bcq.session(folder).",
        )
    config = read_json(folder / found.description)
    opened = session(folder, with_library=with_library, weights=weights, profile=profile, bits=bits)
    if found is Model:
        return Model(folder, opened, config)
    encoder = session(graph_file(folder, bits, ENCODER_FILE), with_library=with_library, weights=weights)
    return EncoderDecoder(folder, opened, config, encoder)
