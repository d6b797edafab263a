# SPDX-License-Identifier: Apache-2.0
"""Text generation with an exported decoder: numpy and onnxruntime; tokenizers only where text comes in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from bcq.checkpoint import read_json
from bcq.errors import InputError, ResourceError, UnsupportedError, UsageError
from bcq.genai import CONFIG_FILE
from bcq.kinds import require_export
from bcq.sampling import Chooser, chooser, is_integer
from bcq.tasks import BASE_KEY, Feeds, Task, Tasks, no_slots

TOKENIZER_FILE = "tokenizer.json"
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_PAST, _PRESENT = "past_key_values.", "present."


class Model:
    """An exported decoder, ready to generate.

    Attributes:
        folder: where it lies.
        session: the ``onnxruntime.InferenceSession``.
        context_length: tokens that prompt and continuation may have together.
        end_tokens: ids that end a text.
    """

    def __init__(self, folder: Path, session: Any, config: dict[str, Any]) -> None:
        described = _described(folder / CONFIG_FILE, config)
        self.folder = folder
        self.session = session
        self.context_length: int = described["context_length"]
        self.vocabulary: int = described["vocab_size"]
        end = described.get("eos_token_id", [])
        self.end_tokens = frozenset(end if isinstance(end, list) else [end])
        self._inputs = {value.name: value for value in session.get_inputs()}
        self._outputs = [value.name for value in session.get_outputs()]
        _check_vocabulary(folder / CONFIG_FILE, self.vocabulary, session)
        self._tokenizer: Any = None
        self._tasks: Tasks | None = None
        self._using: Feeds = {}

    @overload
    def generate(
        self, prompt: str, max_new_tokens: int = ..., adapter: Task = ..., **sampling: Any
    ) -> str: ...
    @overload
    def generate(
        self, prompt: Sequence[int], max_new_tokens: int = ..., adapter: Task = ..., **sampling: Any
    ) -> list[int]: ...
    def generate(
        self, prompt: str | Sequence[int], max_new_tokens: int = 20, adapter: Task = None, **sampling: Any
    ) -> str | list[int]:
        """Continues a prompt, greedily unless told otherwise.

        Args:
            prompt: text, or token ids.
            max_new_tokens: at most so many; an end token ends it earlier and is not part of the answer.
            adapter: name of a task in the export, or an adapter (its folder) from elsewhere; None for what
                `use` has chosen, which is the base at first.
            **sampling: ``temperature``, ``top_k``, ``top_p``, ``seed`` of `bcq.sampling.chooser`.

        Returns:
            The continuation without the prompt: text for text, token ids for token ids.

        Raises:
            UsageError: E202 for an empty or too long prompt, an id outside the vocabulary, or a bad option.
            InputError: E101 for a text prompt when the folder has no ``tokenizer.json``; E301 to E303 for an
                adapter that this export cannot run.
            ResourceError: E603 for a text prompt when the package tokenizers is missing.
        """
        tokens = list(self._new_tokens(self.encode(prompt), max_new_tokens, adapter, chooser(**sampling)))
        return self.decode(tokens) if isinstance(prompt, str) else tokens

    @overload
    def stream(
        self, prompt: str, max_new_tokens: int = ..., adapter: Task = ..., **sampling: Any
    ) -> Iterator[str]: ...
    @overload
    def stream(
        self, prompt: Sequence[int], max_new_tokens: int = ..., adapter: Task = ..., **sampling: Any
    ) -> Iterator[int]: ...
    def stream(
        self, prompt: str | Sequence[int], max_new_tokens: int = 20, adapter: Task = None, **sampling: Any
    ) -> Iterator[str] | Iterator[int]:
        """As `generate`, one piece at a time; text pieces join to what `generate` returns."""
        tokens = self._new_tokens(self.encode(prompt), max_new_tokens, adapter, chooser(**sampling))
        return self._pieces(tokens) if isinstance(prompt, str) else tokens

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        adapters: Sequence[Task] | None = None,
        max_new_tokens: int = 20,
        **sampling: Any,
    ) -> list[str | list[int]]:
        """Continues many prompts, each with a task of its own; see `bcq.batch.generate_batch`."""
        from bcq.batch import generate_batch

        return generate_batch(self, prompts, adapters, max_new_tokens, **sampling)

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
            InputError: see `bcq.tasks.Tasks`.
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
            adapter: as in `generate`; one for all rows. `bcq.batch` runs rows of several tasks.

        Returns:
            Logits ``[batch, S, vocabulary]`` and the cache for the next run.
        """
        feeds: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask, **past, **self._feeds(adapter)}
        if "position_ids" in self._inputs:
            positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
            feeds["position_ids"] = positions[:, -tokens.shape[1] :]
        results = dict(zip(self._outputs, self.session.run(None, feeds), strict=True))
        logits = results.pop("logits")
        return logits, {_PAST + name.removeprefix(_PRESENT): array for name, array in results.items()}

    def empty_cache(self, batch: int = 1) -> dict[str, NDArray[Any]]:
        """A cache that holds no token, for `logits`."""
        return {
            name: np.zeros((batch, value.shape[1], 0, value.shape[3]), _FLOATS[value.type])
            for name, value in self._inputs.items()
            if name.startswith(_PAST)
        }

    def _base_hash(self) -> str | None:
        """The base of a model with slots; None without."""
        found: str | None = self.session.get_modelmeta().custom_metadata_map.get(BASE_KEY)
        return found

    def _feeds(self, adapter: Task) -> Feeds:
        return self._using if adapter is None else self.tasks.feeds(adapter)

    def _new_tokens(
        self, prompt: list[int], max_new_tokens: int, adapter: Task, choose: Chooser
    ) -> Iterator[int]:
        self.check_prompt(prompt, max_new_tokens)
        self._feeds(adapter)  # refused now, not at the first token
        return self._run(prompt, max_new_tokens, adapter, choose)

    def _run(self, prompt: list[int], max_new_tokens: int, adapter: Task, choose: Chooser) -> Iterator[int]:
        past, new, length = self.empty_cache(), prompt, len(prompt)
        for _ in range(max_new_tokens):
            mask = np.ones((1, length), np.int64)
            logits, past = self.logits(np.array([new], np.int64), past, mask, adapter)
            token = choose(logits[0, -1])
            if token in self.end_tokens:
                return
            yield token
            new, length = [token], length + 1

    def _pieces(self, tokens: Iterator[int]) -> Iterator[str]:
        """Text as soon as it is sure: a character may be spread over several tokens."""
        seen: list[int] = []
        told = ""
        for token in tokens:
            seen.append(token)
            text = self.decode(seen)
            if not text.endswith("\N{REPLACEMENT CHARACTER}") and text.startswith(told):
                yield text[len(told) :]
                told = text
        rest = self.decode(seen)[len(told) :]
        if rest:
            yield rest

    def check_prompt(self, prompt: list[int], max_new_tokens: int) -> None:
        """Raises UsageError E202 when prompt and continuation do not fit the context."""
        if not is_integer(max_new_tokens) or max_new_tokens < 0:
            raise UsageError(
                "E202", f"max_new_tokens: got {max_new_tokens!r}, expected an integer, at least 0."
            )
        if len(prompt) + max_new_tokens > self.context_length:
            raise UsageError(
                "E202",
                f"{len(prompt)} prompt tokens and {max_new_tokens} new ones are more than the model's"
                f" {self.context_length} positions.",
                f"At most {max(self.context_length - len(prompt), 0)} new tokens fit; or shorten the prompt.",
            )

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


def load(
    folder: str | Path,
    with_library: bool = True,
    *,
    weights: str | None = None,
    profile: str | Path | None = None,
) -> Model:
    """Opens an exported decoder; torch is not imported.

    Args:
        folder: what ``bcq export`` wrote.
        with_library: False runs the model-local functions instead of the op library: slow, for comparison.
        weights: how codes are held, see `bcq.session`.
        profile: a ``.jsonl`` file for what each node took, see `bcq.session`.

    Raises:
        InputError: E101 for a missing folder, E102 for one that is no export, E103 for a damaged one.
        UnsupportedError: E401 when the folder is the export of something else than a decoder.
        UsageError: E202 for `weights` or `profile` that the library does not know.
    """
    from bcq.runtime import session

    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        require_export(folder)
        raise UnsupportedError(
            "E401",
            f"{folder} holds no decoder (it has no {CONFIG_FILE}), so it cannot generate text.",
            "Run its model with bcq.session(folder).",
        )
    config = read_json(folder / CONFIG_FILE)
    opened = session(folder, with_library=with_library, weights=weights, profile=profile)
    return Model(folder, opened, config)


def check_tokens(tokens: Sequence[int], vocabulary: int) -> list[int]:
    """Token ids as plain integers.

    Raises:
        UsageError: E202 when there is none, or one is not an id of the vocabulary.
    """
    if not isinstance(tokens, Sequence | np.ndarray) or np.ndim(tokens) != 1:
        raise UsageError("E202", f"prompt: got {type(tokens).__name__}, expected text or token ids.")
    if not len(tokens):
        raise UsageError("E202", "the prompt is empty, expected at least one token.")
    for token in tokens:
        if not is_integer(token) or not 0 <= token < vocabulary:
            raise UsageError(
                "E202",
                f"prompt: got token id {token!r}, expected 0 to {vocabulary - 1}"
                f" (the model has {vocabulary} tokens).",
            )
    return [int(token) for token in tokens]


def tokenize(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text.

    Raises:
        UsageError: E202 when the text holds half of a surrogate pair, which no tokenizer takes.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as fault:
        raise UsageError(
            "E202", f"prompt: got {text[fault.start]!a} at position {fault.start}, expected valid Unicode."
        ) from fault
    return list(tokenizer.encode(text).ids)


def _described(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The model section of ``genai_config.json``.

    Raises:
        InputError: E102 for a key that is missing or of another type.
    """
    described = config.get("model")
    if not isinstance(described, dict):
        raise _wrong(file, "model", described, "an object")
    for key in ("context_length", "vocab_size"):
        value = described.get(key)
        if not is_integer(value) or described[key] < 1:
            raise _wrong(file, f"model.{key}", value, "an integer that is at least 1")
    end = described.get("eos_token_id", [])
    if not all(is_integer(token) for token in (end if isinstance(end, list) else [end])):
        raise _wrong(file, "model.eos_token_id", end, "a token id or a list of them")
    return described


def _check_vocabulary(file: Path, vocabulary: int, session: Any) -> None:
    outputs = {value.name: value.shape for value in session.get_outputs()}
    if not outputs.get("logits"):
        raise InputError("E102", f"{file.parent}: the model has no output 'logits'.", "Export it again.")
    width = outputs["logits"][-1]
    if isinstance(width, int) and width != vocabulary:
        raise _wrong(file, "model.vocab_size", vocabulary, f"{width}, the width of the model's logits")


def _wrong(file: Path, key: str, got: object, expected: str) -> InputError:
    return InputError("E102", f"{file}: {key}: got {got!r}, expected {expected}.", "Export the model again.")


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        InputError: E101 when there is none.
        ResourceError: E603 when the package tokenizers is missing.
    """
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        raise InputError(
            "E101",
            f"{folder} has no {TOKENIZER_FILE}, so a text cannot become tokens.",
            "Pass token ids, or copy the model's tokenizer file there.",
        )
    try:
        from tokenizers import Tokenizer
    except ImportError as fault:
        raise ResourceError(
            "E603",
            "the package tokenizers is not installed; text needs it.",
            "pip install tokenizers, or pass ids.",
        ) from fault
    return Tokenizer.from_file(str(file))
