"""Starts a server and ends it: on SIGTERM or Ctrl-C it takes nothing new and finishes what it has, up to a limit."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import FrameType

import uvicorn

from trainer import bases, system
from trainer.errors import ConfigError
from trainer.render.engine import Engine
from trainer.serving import routes, server_state
from trainer.serving.connection import Connection
from trainer.serving.log_lines import Log
from trainer.serving.server_state import ServerState
from trainer.serving.settings import EVERYWHERE, LOOPBACK, ServeSettings

_POLL_S = 0.05
_BACKLOG = 4096
_LEAVE_S = 5  # for answers that are on their way when the server ends


def check(settings: ServeSettings) -> None:
    """Raises: ConfigError for what must not be served."""
    host = settings.host
    if ":" in host and host not in EVERYWHERE:
        raise ConfigError(f"--host is {host!r}, a single IPv6 address; allowed: 127.0.0.1, a name, or :: with --keys.")
    if host not in LOOPBACK and settings.keys is None:
        raise ConfigError(
            f"--host is {host!r}, which others can reach, and there are no --keys; allowed: 127.0.0.1, or --keys FILE "
            f"with keys of `velatura serve keys add NAME`."
        )
    if settings.public_url and not settings.public_url.startswith(("http://", "https://")):
        raise ConfigError(f"--public-url is {settings.public_url[:200]!r}; allowed: http:// or https:// and a name.")


Opening = Callable[[ServeSettings, Log, tuple[Path, ...]], AbstractContextManager[ServerState]]


def serve(settings: ServeSettings, loras: tuple[Path, ...] = (), opening: Opening | None = None) -> None:
    """Serve until asked to end; `opening` gives the server's parts, with the base in this process if left out.

    Raises: ConfigError, ModelError, AdapterError before anything is opened.
    """
    check(settings)
    log = Log(settings.log_prompts)
    system.allow_open_files()
    with _listening(settings) as socket_, (opening or opened)(settings, log, loras) as state:
        port = socket_.getsockname()[1]
        log.write("serving", host=settings.host, port=port, base=" ".join(state.names.bases), keys=len(state.ring.all))
        Server(state).run([socket_])
    log.write("ended")


def _listening(settings: ServeSettings) -> socket.socket:
    """The socket, before anything is loaded. Raises: ConfigError."""
    is_ipv6 = ":" in settings.host
    family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"--host {settings.host} --port {settings.port} can't be listened on: {error.strerror or error}; allowed: "
            f"an address of this machine and a free port."
        ) from None


@contextmanager
def opened(settings: ServeSettings, log: Log, loras: tuple[Path, ...] = ()) -> Iterator[ServerState]:
    """The server's parts with the base in memory; no thread runs yet. Raises: ConfigError, ModelError, AdapterError."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    engine = Engine(settings.base, bases.family_of(settings.base), kept_bytes=settings.kept_bytes)
    yield server_state.make(settings, engine, log, loras)


class Server(uvicorn.Server):
    """uvicorn's server, which drains before it ends; a second signal ends it at once."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        settings = state.settings
        super().__init__(
            uvicorn.Config(
                routes.app(state),
                settings.host,
                settings.port,
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=_LEAVE_S,
                h11_max_incomplete_event_size=64 << 10,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: drain, or end at once if that is under way already."""
        if self.state.is_draining:
            self.should_exit = self.force_exit = True
        self.state.is_draining = True

    async def main_loop(self) -> None:
        """Serve until it is asked to end and nothing is left to do."""
        self.state.renderer.start()
        saving = asyncio.ensure_future(self.state.save_now_and_then())
        draining = asyncio.ensure_future(self._drain())
        try:
            await super().main_loop()
        finally:
            for task in (saving, draining):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            # It waits for threads, which would hold up the loop.
            await asyncio.to_thread(self._end)

    async def _drain(self) -> None:
        """Ends the server once it was asked to end and has answered everybody, or the time for that is over."""
        while not self.state.is_draining:
            await asyncio.sleep(_POLL_S)
        self.state.log.write("draining", open=self.state.num_open, waiting=len(self.state.line))
        until = time.monotonic() + self.state.settings.drain_s
        while self.state.num_open and time.monotonic() < until:
            await asyncio.sleep(_POLL_S)
        self.should_exit = True

    def _end(self) -> None:
        """End the threads; who waits still is told so."""
        self.state.renderer.end()
        self.state.save()
