# SPDX-License-Identifier: Apache-2.0
"""Chat templates: messages in, the text that a model was trained on out.

A template is a program from whoever made the model. It runs in jinja2's sandbox and gets what transformers
gives templates, and nothing else: no file, no network, no attribute that begins with an underscore.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from bcq.errors import InputError, ResourceError
from bcq.files.checkpoint import read_json

FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
Message = Mapping[str, Any]
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_ROLES = {"system": "", "user": "User: ", "assistant": "Assistant: "}


class Template:
    """How a conversation is written down.

    Args:
        source: the template's text.
        place: where it comes from, for messages.
        tokens: the special tokens by their names in ``tokenizer_config.json``.

    Raises:
        InputError: E102 when it is no jinja2 template.
        ResourceError: E603 when the package jinja2 is missing.
    """

    stops: tuple[str, ...] = ()

    def __init__(self, source: str, place: Path, tokens: Mapping[str, str]) -> None:
        self._place = place
        self._tokens = tokens
        try:
            self._template = _environment().from_string(source)
        except ResourceError:
            raise
        except Exception as fault:  # jinja2's classes cannot be named before it is known to be there
            raise InputError("E102", f"{place}: the chat template is wrong: {fault}.") from fault

    def render(self, messages: Sequence[Message], answer: bool = True) -> str:
        """The conversation as text; with `answer` it ends where the model is to begin.

        Raises:
            InputError: E102 when the template refuses the messages, with its own reason.
        """
        try:
            return str(self._template.render(messages=messages, add_generation_prompt=answer, **self._tokens))
        except Exception as fault:  # a template may do anything that fails
            raise InputError(
                "E102", f"{self._place}: the chat template refuses these messages: {fault}."
            ) from fault


class PlainForm:
    """For models without a template: roles are written before what they say."""

    stops = ("\nUser:", "\nAssistant:")

    def render(self, messages: Sequence[Message], answer: bool = True) -> str:
        """See `Template.render`."""
        lines = [f"{_ROLES.get(str(m['role']), '')}{m['content']}" for m in messages]
        return "\n".join([*lines, *(["Assistant:"] if answer else [])])


def open_template(folder: Path, file: Path | None = None) -> Template | PlainForm:
    """The template of a model folder, or of a file of its own; the plain form where there is none.

    Raises:
        InputError: E101 for a `file` that is not there, E102 for a template that cannot be used.
        ResourceError: E603 when jinja2 is needed and missing.
    """
    config = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    place = file or folder / FILE
    if file or place.is_file():
        try:
            source: str | None = place.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as fault:
            raise InputError("E101", f"{place} cannot be read as a chat template: {fault}.") from fault
    else:
        place = folder / CONFIG_FILE
        source = _configured(place, config.get("chat_template"))
    return PlainForm() if source is None else Template(source, place, _special_tokens(config))


def _configured(place: Path, value: object) -> str | None:
    """The template in ``tokenizer_config.json``: a text, or several with names, of which "default" counts."""
    if isinstance(value, list):
        named = {str(one.get("name")): one.get("template") for one in value if isinstance(one, dict)}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise InputError("E102", f"{place}: chat_template: got {type(value).__name__}, expected text.")
    return value


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found = {name: config.get(name) for name in _SPECIAL}
    texts = {name: one.get("content") if isinstance(one, dict) else one for name, one in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _environment() -> Any:
    try:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as fault:
        raise ResourceError(
            "E603",
            "the package jinja2 is not installed; the model's chat template needs it.",
            "Run `pip install 'onnx-bcq[serve]'`.",
        ) from fault

    class Generation(Extension):
        """Lets ``{% generation %}`` blocks, which mark answers for training, pass."""

        tags = {"generation"}  # noqa: RUF012 the base class declares it so

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse(jinja2.exceptions.TemplateError)
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(value: object, indent: int | None = None, **options: Any) -> str:
    """JSON as it is written, without jinja2's escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _refuse(kind: type[Exception]) -> Callable[[str], NoReturn]:
    def refuse(reason: str) -> NoReturn:
        raise kind(reason)

    return refuse
