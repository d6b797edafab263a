# SPDX-License-Identifier: Apache-2.0
"""Why a request is not answered, with the HTTP status and in OpenAI's form."""

from __future__ import annotations

from typing import Any

from bcq.errors import one_line


class Refusal(Exception):
    """A request that cannot be answered.

    Args:
        status: of HTTP.
        message: the reason, for people.
        code: the reason, for programs.
        param: the field of the body that is at fault.
    """

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, code, param)


def error_body(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    """The one form that every error has."""
    message = one_line(message)
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
