"""How a picture gets to a replica: what `remote` needs of it, so that it can be tried without Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from trainer.serving.replicas.messages import Sent, Told


class Lost(Exception):
    """The replica that a picture was sent to is gone, or none is there; it may be sent again."""


class Call(Protocol):
    """A picture at a replica."""

    def news(self) -> AsyncIterator[Told]:
        """What becomes of it. Raises: Lost."""

    def cancel(self) -> None:
        """Nobody waits for it any more; after its end that is nothing."""


class Carrier(Protocol):
    """Brings pictures to replicas. Each method is called from one thread at a time, and `call` from an event loop."""

    def num_replicas(self, base: str) -> int:
        """How many replicas of a base draw now."""

    def digest(self, path: Path) -> str:
        """sha256 of a file. Raises: OSError."""

    async def call(self, base: str, key: str, sent: Sent, places: dict[str, Path]) -> Call:
        """Send a picture to a replica of its base: calls with one key go to the same replica unless it is full.

        `places` are its files here by sha256; with an empty key any replica will do. Raises: RunError if a file can't
        be read.
        """
