# SPDX-License-Identifier: Apache-2.0
"""The paths of the server, and how answers reach whoever asked."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bcq.cli import as_bcq_error
from bcq.generation.answer import Reason
from bcq.serve import reply
from bcq.serve.engine import Engine, Planned, unknown_model
from bcq.serve.limits import Limits
from bcq.serve.refusal import Refusal, error_body
from bcq.serve.request import Request as Asked
from bcq.serve.request import parse
from bcq.serve.scheduler import Event, Full, Job, Scheduler, Stopping

Endpoint = Callable[[Request], Awaitable[Response]]


class Gone(Exception):
    """Whoever asked has closed the connection."""


def app(engine: Engine, scheduler: Scheduler, limits: Limits, api_key: str | None = None) -> Starlette:
    """The ASGI application.

    Args:
        engine: what is served.
        scheduler: runs the answers.
        limits: for requests.
        api_key: what ``Authorization: Bearer`` must say, None for nothing; `/health` never asks.
    """
    created = int(time.time())

    async def health(request: Request) -> Response:
        active, waiting = scheduler.count()
        return JSONResponse({"status": "ok", "active": active, "waiting": waiting})

    async def models(request: Request) -> Response:
        return JSONResponse(reply.models(engine.names, created))

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in engine.names:
            raise unknown_model(name, engine.names)
        return JSONResponse(reply.model(name, created))

    def generation(chat: bool) -> Endpoint:
        async def generate(request: Request) -> Response:
            asked = parse(await _body(request, limits.body), limits, chat)
            planned = await run_in_threadpool(engine.plan, asked)
            answers = Answers(scheduler, planned, request)
            form = reply.Form(asked.model, chat)
            if asked.stream:
                stream = _stream(answers, form, asked, planned.prompt_tokens)
                return _EventStream(stream, answers)
            return await _whole(answers, form, planned.prompt_tokens)

        return generate

    def guarded(endpoint: Endpoint) -> Endpoint:
        async def check(request: Request) -> Response:
            given = request.headers.get("authorization", "")
            if api_key and not hmac.compare_digest(given.encode(), f"Bearer {api_key}".encode()):
                raise Refusal(401, "the API key is missing or wrong.", "invalid_api_key")
            return await endpoint(request)

        return check

    routes = [
        Route("/health", health),
        Route("/v1/models", guarded(models)),
        Route("/v1/models/{name:path}", guarded(model)),
        Route("/v1/completions", guarded(generation(chat=False)), methods=["POST"]),
        Route("/v1/chat/completions", guarded(generation(chat=True)), methods=["POST"]),
    ]
    handlers = {Refusal: _refused, HTTPException: _no_route, Gone: _gone, ClientDisconnect: _gone}
    return Starlette(routes=routes, exception_handlers={**handlers, Exception: _failed})  # type: ignore[dict-item]


class Answers:
    """The answers of one request on their way from the scheduler's thread to the event loop.

    Raises:
        Refusal: 429 when there is no place, 503 when the server stops.
    """

    def __init__(self, scheduler: Scheduler, planned: Planned, request: Request) -> None:
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._request = request
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop has ended: nobody listens
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._jobs = [Job(index, begin, tell) for index, begin in enumerate(planned.begins)]
        try:
            scheduler.submit(self._jobs)
        except Full:
            message = "all places are taken, and those to wait in too; try again later."
            raise Refusal(429, message, "server_busy") from None
        except Stopping:
            raise Refusal(503, "the server is stopping.", "server_stopping") from None
        self._watch = asyncio.create_task(self._watch_connection())

    def cancel(self) -> None:
        """Ends what has not ended."""
        self._watch.cancel()
        for job in self._jobs:
            job.cancelled = True

    async def events(self) -> AsyncIterator[Event]:
        """Everything that happens, until the last answer has ended.

        Raises:
            Gone: the connection was closed.
        """
        left = len(self._jobs)
        while left:
            event = await self._events.get()
            if event is None:
                raise Gone
            yield event
            left -= event.last

    async def _watch_connection(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._events.put_nowait(None)


class _EventStream(StreamingResponse):
    """A stream that ends its answers however it ends itself."""

    def __init__(self, content: AsyncIterator[bytes], answers: Answers) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._answers = answers

    async def __call__(self, scope: object, receive: object, send: Callable[..., Awaitable[None]]) -> None:
        try:  # the answers watch the connection, so nothing else may wait for its end
            await self.stream_response(send)
        except (OSError, Gone):
            pass
        finally:
            self._answers.cancel()


async def _stream(answers: Answers, form: reply.Form, asked: Asked, prompt: int) -> AsyncIterator[bytes]:
    counts: dict[int, int] = {}
    async for event in answers.events():
        if event.fault is not None:
            yield reply.sse(_fault(event.fault).body)
            return
        if event.index not in counts and (opening := form.first(event.index)):
            yield reply.sse(opening)
        counts[event.index] = event.tokens
        if event.text or event.last:
            yield reply.sse(form.piece(event.index, event.text, event.reason))
    if asked.usage:
        yield reply.sse(form.counts(reply.usage(prompt, sum(counts.values()))))
    yield reply.DONE


async def _whole(answers: Answers, form: reply.Form, prompt: int) -> Response:
    texts: dict[int, str] = {}
    ends: dict[int, Event] = {}
    try:
        async for event in answers.events():
            if event.fault is not None:
                raise _fault(event.fault)
            texts[event.index] = texts.get(event.index, "") + event.text
            ends[event.index] = event
    finally:
        answers.cancel()
    order = sorted(texts)
    reasons: list[Reason | None] = [ends[index].reason for index in order]
    counts = reply.usage(prompt, sum(event.tokens for event in ends.values()))
    return JSONResponse(form.whole([texts[index] for index in order], reasons, counts))


async def _body(request: Request, most: int) -> bytes:
    """The body of a request, which must say that it is JSON: so no page of a browser can send one unasked."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        message = f"Content-Type: got '{kind[:80]}', expected application/json."
        raise Refusal(415, message, "unsupported_media_type")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise Refusal(413, f"the body is longer than {most} bytes.", "body_too_large")
    return bytes(body)


def _fault(fault: BaseException) -> Refusal:
    if isinstance(fault, Stopping):
        return Refusal(503, "the server has stopped before this answer ended.", "server_stopping")
    told = as_bcq_error(fault) if isinstance(fault, Exception) else None
    return Refusal(500, told.message if told else "unexpected end.", told.code if told else "E999")


async def _refused(request: Request, refusal: Refusal) -> Response:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}}
    return JSONResponse(refusal.body, refusal.status, headers.get(refusal.status))


async def _no_route(request: Request, error: HTTPException) -> Response:
    path = request.url.path[:200]
    wrong = (
        f"{request.method} does not go with {path}." if error.status_code == 405 else f"there is no {path}."
    )
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    return JSONResponse(error_body(error.status_code, wrong, code), error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return await _refused(request, _fault(error))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
