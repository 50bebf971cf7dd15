"""A connection on which no request comes is closed: to open one needs no key, and each takes a file of the system's."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 30.0  # for a request's head, from the connection's beginning or from the last answer's end


class Connection(H11Protocol):
    """uvicorn's, which by itself waits for a first request, or for the rest of a head, for ever."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting:
            self._waiting.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._waiting:
            self._waiting.cancel()
        self._waiting = self.loop.call_later(HEAD_S, self._close_if_silent)

    def _close_if_silent(self) -> None:
        """A request that is being answered has limits of its own."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
