"""What stands before every request: no page of another site, bodies of bounded size, headers, a line in the log.

An answer to a browser of another site would carry no CORS header, so that the browser keeps it; a request that says
that it comes from another site's page is refused all the same, since it could still cost.
"""

from __future__ import annotations

import time
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer.serving.log_lines import Log
from trainer.serving.metrics import Metrics

MAX_BODY_BYTES = 1 << 20
MAX_DISCARDED_BYTES = 8 << 20  # of a body that is too large and read all the same
BODY_S = 30.0  # for the whole of a request's body that isn't an upload
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "content-security-policy": "default-src 'none'; img-src 'self'",
    "cross-origin-resource-policy": "same-origin",
}
_UNKNOWN = "other"


class Gate:
    """ASGI middleware: an id for each request, a few headers, a metric and a log line for its answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log: Log) -> None:
        self.app, self.metrics, self.log = app, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # The status is known only from the message that passes by, and the log wants it at the end.
        began, status = time.monotonic(), 0
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                # A route's own header stays.
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        finally:
            seconds = time.monotonic() - began
            # Addresses without a route share a name, or anybody could add series to the metrics.
            route = scope["state"].get("route", _UNKNOWN)
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.request_s.labels(route).observe(seconds)
            self.log.write(
                "request",
                request=request_id,
                method=scope["method"],
                route=route,
                status=status,
                seconds=round(seconds, 4),
                key=scope["state"].get("key_name"),
            )


def is_of_another_site(headers: Headers, method: str) -> bool:
    """Whether a request that changes something comes from another site's page."""
    # Programs send no Origin; a browser sends it with whatever changes something.
    origin = headers.get("origin")
    if method in _SAFE_METHODS or origin is None:
        return False
    return urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
