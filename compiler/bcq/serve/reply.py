# SPDX-License-Identifier: Apache-2.0
"""What is answered: OpenAI's objects for completions, chats and their streams."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from bcq.generation.answer import Reason

DONE = b"data: [DONE]\n\n"


def sse(data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Counts of tokens; those of an answer are what was told, without an end token."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def models(names: Iterable[str], created: int) -> dict[str, Any]:
    """The list of what can be asked for."""
    return {"object": "list", "data": [model(name, created) for name in names]}


def model(name: str, created: int) -> dict[str, Any]:
    """One entry of it."""
    return {"id": name, "object": "model", "created": created, "owned_by": "onnx-bcq"}


class Form:
    """The objects of one request.

    Args:
        model: the name that was asked for.
        chat: whether it is a chat.
    """

    def __init__(self, model: str, chat: bool) -> None:
        self._model = model
        self._chat = chat
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def whole(self, texts: list[str], reasons: list[Reason | None], counts: dict[str, int]) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        choices = [
            {"index": index, "finish_reason": reason, "logprobs": None, **self._content(text)}
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return self._object("chat.completion" if self._chat else "text_completion", choices, usage=counts)

    def first(self, index: int) -> dict[str, Any] | None:
        """What a stream of a chat begins each answer with; nothing for completions."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}) if self._chat else None

    def piece(self, index: int, text: str, reason: Reason | None) -> dict[str, Any]:
        """A part of an answer, or its end."""
        content: dict[str, Any] = (
            {"delta": {"content": text} if text else {}} if self._chat else {"text": text}
        )
        return self._chunk(index, content, reason)

    def counts(self, counts: dict[str, int]) -> dict[str, Any]:
        """The end of a stream whose reader wants counts."""
        return self._object(self._chunk_name(), [], usage=counts)

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}

    def _chunk(self, index: int, content: dict[str, Any], reason: Reason | None = None) -> dict[str, Any]:
        choice = {"index": index, "finish_reason": reason, "logprobs": None, **content}
        return self._object(self._chunk_name(), [choice])

    def _chunk_name(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _object(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        about = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        return {**about, "choices": choices, **more}
