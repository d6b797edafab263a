# SPDX-License-Identifier: Apache-2.0
"""What `bcq serve` answers to requests: OpenAI's objects for good ones, a 4xx with its reason for others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="serving needs the extra [serve]")

from starlette.applications import Starlette

from bcq.generation.model import Model
from bcq.generation.template import PlainForm
from bcq.serve.app import app
from bcq.serve.engine import Engine
from bcq.serve.limits import Limits
from bcq.serve.scheduler import Scheduler
from counting_model import Counting, model

LIMITS = Limits(active=2, waiting=2, new_tokens=64, prompt_tokens=24, choices=3, body=2000)
COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"
SAY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
IDS = {"model": "m", "prompt": [2]}
Got = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Answers with the letters that follow the last one; END never comes, so that limits end an answer."""
    import tokenizers

    folder = tmp_path_factory.mktemp("letters")
    pieces = {character: number for number, character in enumerate("abcdefghij")}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(pieces, unk_token="a"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    made.decoder = tokenizers.decoders.Fuse()
    made.save(str(folder / "tokenizer.json"))
    return model(Counting(), context=128, folder=folder)


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    running = Scheduler(LIMITS)
    yield running
    running.close()


@pytest.fixture
def served(counting: Model, scheduler: Scheduler) -> Starlette:
    return app(Engine(counting, "m", PlainForm(), LIMITS), scheduler, LIMITS)


def ask(served: Starlette, path: str, body: Any = None, method: str = "POST", **headers: str) -> Got:
    """One request, through ASGI itself: status, headers and body of what comes back."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"content_type": "application/json", **headers}
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": method, "path": path, "raw_path": path.encode(), "root_path": "", "scheme": "http",
        "query_string": b"", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        parts: list[dict[str, Any]] = [{"type": "http.request", "body": raw, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not parts:
                await asyncio.Event().wait()  # the connection stays open
            return parts.pop()

        async def send(message: Any) -> None:
            sent.append(dict(message))

        await asyncio.wait_for(served(scope, receive, send), 30)

    asyncio.run(run())
    names = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], names, b"".join(message.get("body", b"") for message in sent)


def refused(got: Got) -> tuple[int, str]:
    """Status and reason of an error, which has OpenAI's form."""
    error = json.loads(got[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return got[0], f"{error['code']}: {error['message']}"


def events(body: bytes) -> list[dict[str, Any]]:
    lines = body.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_a_completion_has_text_reason_and_counts(served: Starlette) -> None:
    status, _, body = ask(served, COMPLETE, {**IDS, "max_tokens": 4, "temperature": 0})
    assert status == 200
    found = json.loads(body)
    assert (found["object"], found["model"]) == ("text_completion", "m")
    assert found["choices"] == [{"index": 0, "finish_reason": "length", "logprobs": None, "text": "defg"}]
    assert found["usage"] == {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}


def test_a_completion_ends_at_a_stop_string_or_end_token(served: Starlette) -> None:
    for more, text in (({"stop": "fg"}, "de"), ({"stop": ["x", "f"]}, "de"), ({}, "defghi")):
        body = json.loads(ask(served, COMPLETE, {**IDS, "max_tokens": 9, "temperature": 0, **more})[2])
        assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == (text, "stop")


def test_several_prompts_and_answers_have_their_own_places(served: Starlette) -> None:
    asked = {"model": "m", "prompt": ["a", [3], "de"], "max_tokens": 2, "temperature": 0}
    found = json.loads(ask(served, COMPLETE, asked)[2])
    assert [(one["index"], one["text"]) for one in found["choices"]] == [(0, "bc"), (1, "ef"), (2, "fg")]
    assert found["usage"]["prompt_tokens"] == 4
    found = json.loads(ask(served, COMPLETE, {**IDS, "n": 3, "max_tokens": 1, "temperature": 0})[2])
    assert [one["text"] for one in found["choices"]] == ["d"] * 3


def test_a_stream_has_the_same_text_in_pieces_and_counts_if_asked(served: Starlette) -> None:
    asked = {
        **IDS,
        "max_tokens": 3,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    status, headers, body = ask(served, COMPLETE, asked)
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    *pieces, counts = events(body)
    assert [one["choices"][0]["text"] for one in pieces] == ["d", "e", "f"]
    assert [one["choices"][0]["finish_reason"] for one in pieces] == [None, None, "length"]
    assert counts["usage"]["total_tokens"] == 4


def test_a_chat_streams_and_answers_as_an_assistant(served: Starlette) -> None:
    asked = {**SAY, "max_completion_tokens": 3, "temperature": 0}
    whole = json.loads(ask(served, CHAT, asked)[2])
    message = whole["choices"][0]["message"]
    assert message["role"] == "assistant"
    pieces = [one["choices"][0]["delta"] for one in events(ask(served, CHAT, {**asked, "stream": True})[2])]
    assert pieces[0] == {"role": "assistant", "content": ""}
    assert "".join(piece.get("content", "") for piece in pieces) == message["content"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert json.loads(ask(served, CHAT, {**asked, "messages": parts})[2])["choices"] == whole["choices"]


def test_equal_seeds_give_equal_answers_and_null_is_the_default(served: Starlette) -> None:
    asked = {**IDS, "max_tokens": 8, "temperature": 1.5, "seed": 5, "stop": None, "user": "me", "top_k": 0}
    first, second = (json.loads(ask(served, COMPLETE, asked)[2])["choices"] for _ in range(2))
    assert first == second


def test_models_and_health_are_told(served: Starlette) -> None:
    assert json.loads(ask(served, "/v1/models", method="GET")[2])["data"][0]["id"] == "m"
    assert json.loads(ask(served, "/v1/models/m", method="GET")[2])["object"] == "model"
    assert json.loads(ask(served, "/health", method="GET")[2])["status"] == "ok"


# ruff: noqa: E501
MALFORMED: list[tuple[str, Any, int, str]] = [
    (COMPLETE, b"", 400, "invalid_json"),
    (COMPLETE, b"{", 400, "invalid_json"),
    (COMPLETE, b"\xff\xfe{}", 400, "invalid_json"),
    (COMPLETE, b"[" * 1900, 400, "invalid_json"),
    (COMPLETE, [], 400, "expected an object"),
    (COMPLETE, {}, 400, "prompt is missing"),
    (COMPLETE, {"prompt": "a"}, 400, "model is missing"),
    (COMPLETE, {"model": 1, "prompt": "a"}, 400, "model: got a number"),
    (COMPLETE, {"model": "x", "prompt": "a"}, 404, "model_not_found: there is no model 'x'; there are: m"),
    (COMPLETE, {"model": "m", "prompt": ""}, 400, "the prompt is empty"),
    (COMPLETE, {"model": "m", "prompt": []}, 400, "prompt: got a list"),
    (COMPLETE, {"model": "m", "prompt": [[]]}, 400, "the prompt is empty"),
    (COMPLETE, {"model": "m", "prompt": [1.5]}, 400, "prompt: got a list"),
    (COMPLETE, {"model": "m", "prompt": [True]}, 400, "prompt: got a list"),
    (COMPLETE, {"model": "m", "prompt": [-1]}, 400, "token id -1, expected 0 to 9"),
    (COMPLETE, {"model": "m", "prompt": [10**30]}, 400, "expected 0 to 9"),
    (COMPLETE, {"model": "m", "prompt": {"a": 1}}, 400, "prompt: got an object"),
    (COMPLETE, {"model": "m", "prompt": "\ud800"}, 400, "valid Unicode"),
    (COMPLETE, {"model": "m", "prompt": "a" * 25}, 400, "context_length_exceeded: the prompt has 25 tokens"),
    (COMPLETE, {"model": "m", "prompt": ["a"] * 4}, 400, "n: got 4 answers, expected at most 3"),
    (COMPLETE, {**IDS, "n": 4}, 400, "at most 3"),
    (COMPLETE, {**IDS, "n": 0}, 400, "n: got 0"),
    (COMPLETE, {**IDS, "n": "1"}, 400, "n: got"),
    (COMPLETE, {**IDS, "max_tokens": -1}, 400, "max_tokens: got -1"),
    (COMPLETE, {**IDS, "max_tokens": 1.0}, 400, "max_tokens: got 1.0"),
    (COMPLETE, {**IDS, "max_tokens": True}, 400, "max_tokens: got true"),
    (COMPLETE, {**IDS, "max_tokens": 65}, 400, "at most 64, the limit of this server"),
    (COMPLETE, {**IDS, "temperature": -1}, 400, "temperature: got -1"),
    (COMPLETE, {**IDS, "temperature": "hot"}, 400, "temperature: got 'hot'"),
    (COMPLETE, b'{"model": "m", "prompt": "a", "temperature": NaN}', 400, "temperature: got nan"),
    (COMPLETE, b'{"model": "m", "prompt": "a", "temperature": 1e999}', 400, "temperature: got inf"),
    (COMPLETE, {**IDS, "top_p": 0}, 400, "top_p: got 0"),
    (COMPLETE, {**IDS, "top_p": 2}, 400, "top_p: got 2"),
    (COMPLETE, {**IDS, "top_k": -1}, 400, "top_k: got -1"),
    (COMPLETE, {**IDS, "min_p": 2}, 400, "min_p: got 2"),
    (COMPLETE, {**IDS, "presence_penalty": 3}, 400, "presence_penalty: got 3"),
    (COMPLETE, {**IDS, "repetition_penalty": 0}, 400, "repetition_penalty: got 0"),
    (COMPLETE, {**IDS, "seed": 1.5}, 400, "seed: got 1.5"),
    (COMPLETE, {**IDS, "stop": [""]}, 400, "stop: got a list"),
    (COMPLETE, {**IDS, "stop": 5}, 400, "stop: got a number"),
    (COMPLETE, {**IDS, "stop": ["a"] * 17}, 400, "up to 16"),
    (COMPLETE, {**IDS, "stream": "yes"}, 400, "stream: got text"),
    (COMPLETE, {**IDS, "stream_options": 1}, 400, "stream_options: got a number"),
    (COMPLETE, {**IDS, "echo": True}, 400, "unsupported_parameter: echo"),
    (COMPLETE, {**IDS, "logprobs": 5}, 400, "unsupported_parameter: logprobs"),
    (COMPLETE, {**IDS, "suffix": "x"}, 400, "unsupported_parameter: suffix"),
    (COMPLETE, {**IDS, "user": "a" * 3000}, 413, "longer than 2000 bytes"),
    (CHAT, {"model": "m"}, 400, "messages is missing"),
    (CHAT, {"model": "m", "messages": []}, 400, "messages: got 0 messages"),
    (CHAT, {"model": "m", "messages": "hi"}, 400, "messages: got text"),
    (CHAT, {"model": "m", "messages": [1]}, 400, r"messages[0]: got a number"),
    (CHAT, {"model": "m", "messages": [{"role": "user"}]}, 400, "messages[0].content: got null"),
    (CHAT, {"model": "m", "messages": [{"role": "tool", "content": "a"}]}, 400, "messages[0].role: got 'tool'"),
    (CHAT, {"model": "m", "messages": [{"role": [], "content": "a"}]}, 400, "messages[0].role"),
    (CHAT, {"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "type text"),
    (CHAT, {"model": "m", "messages": [{"role": "user", "content": "a" * 30}]}, 400, "context_length_exceeded"),
    (CHAT, {**SAY, "tools": [{"type": "function"}]}, 400, "unsupported_parameter: tools"),
    (CHAT, {**SAY, "response_format": {"type": "json_object"}}, 400, "unsupported_parameter"),
    (CHAT, {**SAY, "max_tokens": 0}, 400, "max_tokens: got 0"),
    ("/v1/embeddings", {}, 404, "there is no /v1/embeddings"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "reason"), MALFORMED)
def test_a_malformed_request_gets_its_reason(
    served: Starlette, path: str, body: Any, status: int, reason: str
) -> None:
    got, said = refused(ask(served, path, body))
    assert (got, reason in said) == (status, True), said


def test_a_body_that_is_not_said_to_be_json_is_refused(served: Starlette) -> None:
    assert refused(ask(served, COMPLETE, IDS, content_type="text/plain"))[0] == 415


def test_a_wrong_method_is_told(served: Starlette) -> None:
    assert refused(ask(served, COMPLETE, method="GET")) == (
        405, "method_not_allowed: GET does not go with /v1/completions."
    )  # fmt: skip


def test_an_api_key_is_asked_for_except_for_health(counting: Model, scheduler: Scheduler) -> None:
    keyed = app(Engine(counting, "m", PlainForm(), LIMITS), scheduler, LIMITS, "secret")
    assert refused(ask(keyed, COMPLETE, IDS))[0] == 401
    assert refused(ask(keyed, "/v1/models", method="GET", authorization="Bearer wröng"))[0] == 401
    assert ask(keyed, COMPLETE, IDS, authorization="Bearer secret")[0] == 200
    assert ask(keyed, "/health", method="GET")[0] == 200


def test_when_all_places_are_taken_a_request_gets_429(counting: Model, scheduler: Scheduler) -> None:
    few = Limits(active=1, waiting=0, choices=3)
    full = Scheduler(few)
    try:
        busy = app(Engine(counting, "m", PlainForm(), few), full, few)
        status, headers, body = ask(busy, COMPLETE, {**IDS, "n": 2})
        assert (status, headers["retry-after"]) == (429, "1")
        assert "all places are taken" in body.decode()
        assert ask(busy, COMPLETE, {**IDS, "n": 1})[0] == 200
        full.stop(0)
        assert refused(ask(busy, COMPLETE, IDS))[0] == 503
    finally:
        full.close()


def test_a_fault_of_the_model_is_told_and_the_server_goes_on(
    served: Starlette, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Counting, "run", lambda *_: 1 / 0)
        status, said = refused(ask(served, COMPLETE, IDS))
        assert (status, "ZeroDivisionError" in said) == (500, True)
        body = ask(served, COMPLETE, {**IDS, "stream": True})[2]
        assert b"ZeroDivisionError" in body
        assert b"[DONE]" not in body
    assert ask(served, COMPLETE, IDS)[0] == 200
