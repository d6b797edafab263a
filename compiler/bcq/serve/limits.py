# SPDX-License-Identifier: Apache-2.0
"""What one server does at most."""

from __future__ import annotations

from dataclasses import dataclass, fields

from bcq.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """Limits of a server; what is above one is refused with the reason.

    Attributes:
        active: answers that advance together, token by token; each has a cache.
        waiting: answers that wait for one of those places.
        new_tokens: tokens an answer.
        prompt_tokens: tokens a prompt; 0 for what the model can have.
        choices: answers a request, over all of its prompts.
        body: bytes a request.
        seconds: that answers have left to end when the server is told to stop.
    """

    active: int = 16
    waiting: int = 256
    new_tokens: int = 1024
    prompt_tokens: int = 0
    choices: int = 16
    body: int = 2**20
    seconds: int = 10

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 0 if field.name in ("waiting", "prompt_tokens", "seconds") else 1
            if getattr(self, field.name) < least:
                raise UsageError(
                    "E202", f"{field.name}: got {getattr(self, field.name)}, expected at least {least}."
                )
