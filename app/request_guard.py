"""What stands before every request: known hosts only, no writes from other sites' pages, no guessing of passwords.

Gradio checks neither `Host` nor the origin of uploads, and its login can be tried without end. Wrong logins are counted
by address, so that strangers keep nobody out but themselves; an address that has used its tries up is answered slowly,
one try after the other, and the right password is let in even then. Headers say what the page may load, and a browser
without an id gets one with the page (`browser_state`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import browser_state
from app.texts import say

LOOPBACK = ("127.0.0.1", "localhost")
EVERYWHERE = ("0.0.0.0", "::")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_WRONG_LOGINS, _WINDOW_S, _PAUSE_S = 10, 60.0, 0.5
_MOST_ADDRESSES, _MOST_WAITING = 4096, 64
# Gradio's page has scripts and styles in it and makes functions of its HTML templates, so these are let run; nothing
# comes from or goes to another host.
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "frame-src 'none'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
}
# The page's own scripts and styles have their content's digest in their names: a browser asks for each once.
_ASSETS, _FOR_EVER = "/assets/", "public,max-age=31536000,immutable"


@contextmanager
def _closed_page() -> Iterator[None]:
    """A page that was closed while it listened is nothing to tell of; Gradio 6.31 answers it a second time."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).rstrip(".").endswith("started"):
            raise


class WrongLogins:
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
        """Count a wrong try; a right try clears the address."""
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
        self._wrong = WrongLogins()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The server's own start and end are no request.
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        method = scope.get("method", "GET")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                response_headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    response_headers.setdefault(name, value)
                if method == "GET" and scope["path"].startswith(_ASSETS) and message["status"] == 200:
                    response_headers.setdefault("cache-control", _FOR_EVER)
                if method == "GET" and scope["path"] == "/" and not browser_state.id_in(headers.get("cookie")):
                    response_headers.append("set-cookie", browser_state.new_cookie())
            await send(message)

        # A page of another site can have a browser send its login along: what may change something must come from a
        # page of this server.
        if (method not in _SAFE_METHODS or scope["type"] == "websocket") and not self._same_origin(headers):
            await PlainTextResponse(say("page.no_writing"), status_code=403)(scope, receive, send_with_headers)
        elif method == "POST" and scope["path"].rstrip("/").endswith("/login"):
            await self._login(scope, receive, send_with_headers)
        elif method == "GET" and scope["path"] in ("/", "/config"):
            # The page is made with what this browser kept, and is told here whose it is.
            token = browser_state.ASKING.set(browser_state.id_in(headers.get("cookie")))
            try:
                await self.app(scope, receive, send_with_headers)
            finally:
                browser_state.ASKING.reset(token)
        elif method == "GET" and scope["path"].rstrip("/").endswith("/queue/data"):
            with _closed_page():
                await self.app(scope, receive, send_with_headers)
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
        # Guessing is slow from here on, and no faster with many connections.
        async with self._wrong.turn(address) as has_turn:
            if not has_turn:
                await _too_many(scope, receive, send)
            elif not await self._try(scope, receive, send, address):
                await asyncio.sleep(_PAUSE_S)

    async def _try(self, scope: Scope, receive: Receive, send: Send, address: str) -> bool:
        """True if the app let the person in; a wrong try beyond those that are allowed is answered as such."""
        # The answer is held back until it is known whether the try was right.
        answer: list[Message] = []

        async def keep(message: Message) -> None:
            answer.append(message)

        late = self._wrong.used_up(address)
        await self.app(scope, receive, keep)
        starts = (message for message in answer if message["type"] == "http.response.start")
        start: Message = next(starts, {"headers": []})
        # Gradio sets this cookie for a right password alone.
        right = any(name == b"set-cookie" and b"access-token" in value for name, value in start["headers"])
        self._wrong.note(address, right)
        if late and not right:
            await _too_many(scope, receive, send)
        else:
            for message in answer:
                await send(message)
        return right


async def _too_many(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(say("page.too_many_tries"), status_code=429)(scope, receive, send)


def address_of(scope: Scope) -> str:
    """Who asks, for counting: an IPv4 address, or the network of an IPv6 address.

    Of a network of IPv6 a stranger has as many addresses as anybody could want.
    """
    host = str((scope.get("client") or ("", 0))[0])
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.IPv6Network((address, 64), strict=False))
    return str(address)


def middleware(host: str) -> Sequence[Any]:
    """What `launch(app_kwargs={"middleware": ...})` takes for a server on this host.

    Bound to every address, any host name is let in: a login is then required.
    """
    hosts = ["*"] if host in EVERYWHERE else list(dict.fromkeys([host, "localhost", "127.0.0.1"]))
    return [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(Guard)]
