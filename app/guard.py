"""What stands before every request: known hosts only, no writes from other sites' pages, no guessing of passwords.

Gradio checks neither `Host` nor the origin of uploads, and its login can be tried without end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost")
EVERYWHERE = ("0.0.0.0", "::")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_LOGINS, _WINDOW_S = 10, 60.0
_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "x-frame-options": "DENY", "cross-origin-opener-policy": "same-origin"}


class Guard:
    """ASGI middleware: same-origin writes, throttled login, a few headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._logins: deque[float] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        method = scope.get("method", "GET")
        if (method not in _SAFE_METHODS or scope["type"] == "websocket") and not self._same_origin(headers):
            await PlainTextResponse("This page may not write here.", status_code=403)(scope, receive, send)
            return
        if method == "POST" and scope["path"].rstrip("/").endswith("/login") and self._too_many_logins():
            await PlainTextResponse("Too many tries; wait a minute.", status_code=429)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    found.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)

    @staticmethod
    def _same_origin(headers: Headers) -> bool:
        """No Origin (not a browser), or the very host that was asked."""
        origin = headers.get("origin")
        return origin is None or (urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != "")

    def _too_many_logins(self) -> bool:
        now = time.monotonic()
        while self._logins and now - self._logins[0] > _WINDOW_S:
            self._logins.popleft()
        self._logins.append(now)
        return len(self._logins) > _LOGINS


def middleware(host: str) -> Sequence[Any]:
    """For `launch(app_kwargs={"middleware": ...})`. Bound to every address, any host name is let in: auth is then required."""
    hosts = ["*"] if host in EVERYWHERE else list(dict.fromkeys([host, "localhost", "127.0.0.1"]))
    return [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(Guard)]
