"""What stands before every request: known hosts only, no writes from other sites' pages, no guessing of passwords, and what the page may load.

Gradio checks neither `Host` nor the origin of uploads, and its login can be tried without end. Wrong logins are counted by address, so that a
stranger keeps nobody out but himself; who has used his tries up is answered slowly, one after the other, and the right password is let in even then.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
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
_WRONG_LOGINS, _WINDOW_S, _PAUSE_S = 10, 60.0, 0.5
_MOST_ADDRESSES, _MOST_WAITING = 4096, 64
# Gradio's page has scripts and styles in it and makes functions of its HTML templates, so these are let run; nothing comes from or goes to another host.
POLICY = "; ".join(
    [
        "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval'", "style-src 'self' 'unsafe-inline'", "img-src 'self' data: blob:",
        "media-src 'self' data: blob:", "font-src 'self' data:", "connect-src 'self'", "worker-src 'self' blob:", "frame-src 'none'", "object-src 'none'",
        "base-uri 'self'", "form-action 'self'", "frame-ancestors 'none'",
    ]
)  # fmt: skip
_HEADERS = {
    "content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
}  # fmt: skip


class Wrong:
    """Wrong logins of late by address; the addresses longest silent are forgotten first."""

    def __init__(self) -> None:
        self._tries: OrderedDict[str, deque[float]] = OrderedDict()
        self._turns: dict[str, asyncio.Lock] = {}
        self._asking: dict[str, int] = {}

    def used_up(self, address: str) -> bool:
        """Whether the address has no quick try left."""
        tries = self._tries.get(address, deque())
        while tries and time.monotonic() - tries[0] > _WINDOW_S:
            tries.popleft()
        return len(tries) >= _WRONG_LOGINS

    def note(self, address: str, right: bool) -> None:
        """Count a wrong try; a right one clears the address."""
        if right:
            self._tries.pop(address, None)
            return
        self._tries.setdefault(address, deque(maxlen=_WRONG_LOGINS)).append(time.monotonic())
        self._tries.move_to_end(address)
        while len(self._tries) > _MOST_ADDRESSES:
            self._tries.popitem(last=False)

    @asynccontextmanager
    async def turn(self, address: str) -> AsyncIterator[bool]:
        """The address's turn, one after the other; False if too many of it wait already."""
        if self._asking.get(address, 0) >= _MOST_WAITING:
            yield False
            return
        lock = self._turns.setdefault(address, asyncio.Lock())
        self._asking[address] = self._asking.get(address, 0) + 1
        try:
            async with lock:
                yield True
        finally:
            self._asking[address] -= 1
            if not self._asking[address]:
                del self._asking[address], self._turns[address]


class Guard:
    """ASGI middleware: same-origin writes, throttled login, a few headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._wrong = Wrong()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        method = scope.get("method", "GET")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    found.setdefault(name, value)
            await send(message)

        if (method not in _SAFE_METHODS or scope["type"] == "websocket") and not self._same_origin(headers):
            await PlainTextResponse("This page may not write here.", status_code=403)(scope, receive, send_with_headers)
        elif method == "POST" and scope["path"].rstrip("/").endswith("/login"):
            await self._login(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)

    @staticmethod
    def _same_origin(headers: Headers) -> bool:
        """No Origin (not a browser), or the very host that was asked."""
        origin = headers.get("origin")
        return origin is None or (urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != "")

    async def _login(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A try to log in, counted if no login came of it."""
        address = address_of(scope)
        if not self._wrong.used_up(address):
            await self._try(scope, receive, send, address)
            return
        async with self._wrong.turn(address) as has_turn:
            if not has_turn:
                await _too_many(scope, receive, send)
            elif not await self._try(scope, receive, send, address):
                await asyncio.sleep(_PAUSE_S)

    async def _try(self, scope: Scope, receive: Receive, send: Send, address: str) -> bool:
        """Let the app judge; True if it let the person in. A wrong try beyond those that are allowed is answered as such."""
        said: list[Message] = []

        async def keep(message: Message) -> None:
            said.append(message)

        late = self._wrong.used_up(address)
        await self.app(scope, receive, keep)
        begun: Message = next((message for message in said if message["type"] == "http.response.start"), {"headers": []})
        right = any(name == b"set-cookie" and b"access-token" in value for name, value in begun["headers"])
        self._wrong.note(address, right)
        if late and not right:
            await _too_many(scope, receive, send)
        else:
            for message in said:
                await send(message)
        return right


async def _too_many(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("Too many tries; wait a minute.", status_code=429)(scope, receive, send)


def address_of(scope: Scope) -> str:
    """Who asks, for counting: an IPv4 address, or the network of an IPv6 one, of which a stranger has as many as he likes."""
    host = str((scope.get("client") or ("", 0))[0])
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(found, ipaddress.IPv6Address):
        return str(found.ipv4_mapped or ipaddress.IPv6Network((found, 64), strict=False))
    return str(found)


def middleware(host: str) -> Sequence[Any]:
    """For `launch(app_kwargs={"middleware": ...})`. Bound to every address, any host name is let in: auth is then required."""
    hosts = ["*"] if host in EVERYWHERE else list(dict.fromkeys([host, "localhost", "127.0.0.1"]))
    return [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(Guard)]
