# SPDX-License-Identifier: Apache-2.0
"""What the body of a request may say: read once, checked here, trusted behind."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bcq.serve.limits import Limits
from bcq.serve.refusal import Refusal

Prompt = str | list[int]
_COMPLETION_TOKENS = 16  # OpenAI's default for completions; chats have what fits
_MESSAGES, _STOPS = 4096, 16
_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}
_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
# Fields that change the answer and that this server does not have; their neutral values are accepted.
_ABSENT: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "echo": (False,), "functions": ([],), "function_call": ("none", "auto"),
    "guided_json": (), "logit_bias": ({},), "logprobs": (False, 0), "modalities": (["text"],),
    "response_format": ({"type": "text"},), "suffix": ("",), "tool_choice": ("none", "auto"), "tools": ([],),
    "top_logprobs": (0,),
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A request for text.

    Attributes:
        model: the name that was asked for.
        prompts: one or several; none for a chat.
        messages: of a chat.
        most: tokens an answer, None for what fits.
        count: answers to each prompt.
        stream: whether pieces are sent as they come.
        usage: whether a stream ends with counts.
        options: ``stop`` and sampling, as `Model.start` takes them.
    """

    model: str
    prompts: list[Prompt]
    messages: list[dict[str, Any]]
    most: int | None
    count: int
    stream: bool
    usage: bool
    options: dict[str, Any] = field(default_factory=dict)


def parse(body: bytes, limits: Limits, chat: bool) -> Request:
    """Reads the body of a completion or of a chat.

    Raises:
        Refusal: 400 with the field that is at fault.
    """
    fields = _object(body)
    _refuse_absent(fields)
    prompts = [] if chat else _prompts(fields)
    count = _integer(fields, "n", 1, 1)
    if max(len(prompts), 1) * count > limits.choices:
        raise _wrong("n", f"{max(len(prompts), 1) * count} answers", f"at most {limits.choices} a request")
    return Request(
        model=_required(fields, "model", str, "the name of a model"),
        prompts=prompts,
        messages=_messages(fields) if chat else [],
        most=_most(fields, limits, chat),
        count=count,
        stream=_flag(fields, "stream"),
        usage=_flag(_nested(fields, "stream_options"), "include_usage"),
        options=_options(fields),
    )


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as fault:
        raise Refusal(400, f"the body is not JSON: {fault}.", "invalid_json") from fault
    if not isinstance(found, dict):
        raise Refusal(400, f"the body: got {_kind(found)}, expected an object.", "invalid_json")
    return {name: value for name, value in found.items() if value is not None}


def _refuse_absent(fields: Mapping[str, Any]) -> None:
    for name, neutral in _ABSENT.items():
        if name in fields and fields[name] not in neutral:
            raise Refusal(400, f"{name}: this server does not have it.", "unsupported_parameter", name)


def _prompts(fields: Mapping[str, Any]) -> list[Prompt]:
    expected = "text, token ids, or a list of texts or of lists of ids"
    prompt = fields.get("prompt")
    if prompt is None:
        raise _missing("prompt", expected)
    if isinstance(prompt, str) or (_is_ids(prompt) and prompt):
        return [prompt]
    if (
        not isinstance(prompt, list)
        or not prompt
        or not all(isinstance(p, str) or _is_ids(p) for p in prompt)
    ):
        raise _wrong("prompt", _kind(prompt), expected)
    return prompt


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(token) is int for token in value)


def _messages(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = _required(fields, "messages", list, "a list of messages")
    if not 1 <= len(messages) <= _MESSAGES:
        raise _wrong("messages", f"{len(messages)} messages", f"1 to {_MESSAGES}")
    return [_message(message, f"messages[{place}]") for place, message in enumerate(messages)]


def _message(message: object, place: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise _wrong(place, _kind(message), "an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _wrong(f"{place}.role", repr(role), f"one of {', '.join(_ROLES)}")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, place) for part in content)
    if not isinstance(content, str):
        raise _wrong(f"{place}.content", _kind(content), "text")
    return {"role": _ROLES[role], "content": content}


def _part(part: object, place: str) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise _wrong(f"{place}.content", _kind(part), "text, or parts of type text")
    return text


def _most(fields: Mapping[str, Any], limits: Limits, chat: bool) -> int | None:
    names = ("max_completion_tokens", "max_tokens") if chat else ("max_tokens",)
    given = next((name for name in names if name in fields), None)
    if given is None:
        return None if chat else min(_COMPLETION_TOKENS, limits.new_tokens)
    most = _integer(fields, given, 0, 1 if chat else 0)
    if most > limits.new_tokens:
        raise _wrong(given, str(most), f"at most {limits.new_tokens}, the limit of this server")
    return most


def _options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling as OpenAI has it: the temperature is 1 and the seed is drawn, unless they are given."""
    stop = fields.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > _STOPS or not all(isinstance(s, str) and s for s in stops):
        raise _wrong("stop", _kind(stop), f"text, or up to {_STOPS} texts, none of them empty")
    options = {name: fields[name] for name in _SAMPLING if name in fields}
    seed = abs(_integer(fields, "seed", 0)) if "seed" in fields else secrets.randbelow(2**31)
    return {**options, "temperature": fields.get("temperature", 1.0), "seed": seed, "stop": stops}


def _required(fields: Mapping[str, Any], name: str, kind: type[Any], expected: str) -> Any:
    if name not in fields:
        raise _missing(name, expected)
    if not isinstance(fields[name], kind):
        raise _wrong(name, _kind(fields[name]), expected)
    return fields[name]


def _nested(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = _required({name: {}, **fields}, name, dict, "an object")
    return found


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    return bool(_required({name: False, **fields}, name, bool, "true or false"))


def _integer(fields: Mapping[str, Any], name: str, default: int, least: int | None = None) -> int:
    value = fields.get(name, default)
    if type(value) is not int or (least is not None and value < least):
        wanted = "an integer" if least is None else f"an integer, at least {least}"
        raise _wrong(name, json.dumps(value)[:40], wanted)
    return value


def _missing(name: str, expected: str) -> Refusal:
    return Refusal(400, f"{name} is missing, expected {expected}.", "missing_required_parameter", name)


def _wrong(name: str, got: str, expected: str) -> Refusal:
    return Refusal(400, f"{name}: got {got}, expected {expected}.", "invalid_value", name)


def _kind(value: object) -> str:
    """What JSON calls the type of a value."""
    names: list[tuple[Callable[[object], bool], str]] = [
        (lambda v: v is None, "null"),
        (lambda v: isinstance(v, bool), "a boolean"),
        (lambda v: isinstance(v, int | float), "a number"),
        (lambda v: isinstance(v, str), "text"),
        (lambda v: isinstance(v, list), "a list"),
    ]
    return next((name for holds, name in names if holds(value)), "an object")
