"""Refusals in the form of OpenAI's API: `{"error": {"message", "type", "param", "code"}}` and a status."""

from __future__ import annotations

import math

from trainer import printing

INVALID, NO_KEY, FORBIDDEN, TOO_MANY, BROKEN, CLOSED = (
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "rate_limit_error",
    "server_error",
    "service_unavailable",
)


class ApiError(Exception):
    """A request that is answered with an error; `retry_after_s` says when to ask again."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, object]:
        """What the client reads."""
        message = printing.whole(self.message)
        return {"error": {"message": message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds, if there is one."""
        return {} if self.retry_after_s is None else {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}


def too_many(message: str, code: str, retry_after_s: float) -> ApiError:
    """A refusal that time mends, status 429."""
    return ApiError(429, message, TOO_MANY, code=code, retry_after_s=retry_after_s)


def draining(retry_after_s: float = 5.0) -> ApiError:
    """The refusal of a server that is about to end, status 503."""
    message = "the server is ending: it finishes what it has and takes nothing new; ask again in a moment."
    return ApiError(503, message, CLOSED, code="draining", retry_after_s=retry_after_s)


def cannot_draw() -> ApiError:
    """The refusal of a server in which nothing draws any more, status 503."""
    message = "the server can't draw any more, and its log says why; it must be started again."
    return ApiError(503, message, CLOSED, code="cannot_draw")


def broken(request_id: str) -> ApiError:
    """What is said of our own mistakes, status 500: nothing but where the log has it."""
    return ApiError(500, f"the server made a mistake; its log has it under {request_id}.", BROKEN, code="internal")
