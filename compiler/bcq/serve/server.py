# SPDX-License-Identifier: Apache-2.0
"""From a listening socket to a clean end: what runs is told to stop by SIGTERM or SIGINT."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from bcq.errors import ResourceError
from bcq.serve.app import app
from bcq.serve.engine import Engine
from bcq.serve.limits import Limits
from bcq.serve.scheduler import Scheduler

_BACKLOG = 2048
_SLACK = 5  # seconds that connections have to close after their answers have ended


def serve(
    engine: Engine, limits: Limits, host: str, port: int, api_key: str | None, tell: Callable[[str], None]
) -> None:
    """Serves until it is told to stop; running answers have `Limits.seconds` to end, a second signal none.

    Args:
        engine: what is served.
        limits: for requests, and for the end.
        host: address to listen at.
        port: 0 for any that is free.
        api_key: see `bcq.serve.app.app`.
        tell: is given the address, once requests can come.

    Raises:
        ResourceError: E605 when nothing can listen there.
    """
    listening = _listen(host, port)
    scheduler = Scheduler(limits)
    config = uvicorn.Config(
        app(engine, scheduler, limits, api_key),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=limits.seconds + _SLACK,
    )
    try:
        where = listening.getsockname()
        tell(f"http://{f'[{where[0]}]' if ':' in where[0] else where[0]}:{where[1]}")
        _Server(config, scheduler, limits.seconds).run(sockets=[listening])
    finally:
        scheduler.close()
        listening.close()


class _Server(uvicorn.Server):
    """Ends answers when their time is over, and ends with a return and not with the signal."""

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler, seconds: int) -> None:
        super().__init__(config)
        self._scheduler = scheduler
        self._seconds = seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end, the second one hurries it."""
        self._scheduler.stop(0 if self.should_exit else self._seconds)
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals while the server runs; uvicorn's own would raise them again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as fault:
        raise ResourceError(
            "E605", f"cannot listen at {host}, port {port}: {fault}.", "Choose another --host or --port."
        ) from fault
