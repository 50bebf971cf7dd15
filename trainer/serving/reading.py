"""Reads the LoRAs of pictures that wait, in threads of its own, so that no file ever holds up what is being drawn.

Only those next in line are read, up to half of what the shelf may keep: what is read stays in memory until its picture
is drawn, whatever the shelf lets go.
"""

from __future__ import annotations

import threading
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import UserError
from trainer.serving import giving_up
from trainer.serving.api_error import BROKEN, ApiError
from trainer.serving.line import Line
from trainer.serving.log_lines import Log
from trainer.serving.metrics import Metrics
from trainer.serving.orders import Wanted

if TYPE_CHECKING:
    from trainer.render.adapter_cache import Read, Shelf

AHEAD = 64  # pictures
_THREADS = 2
_POLL_S = 0.5


class Reading:
    """Threads that read ahead."""

    def __init__(self, shelf: Shelf, line: Line, metrics: Metrics, log: Log) -> None:
        self.shelf, self.line, self.metrics, self.log = shelf, line, metrics, log
        self._is_ending = False
        self._threads = [
            threading.Thread(target=self._run, name=f"reading-{number}", daemon=True) for number in range(_THREADS)
        ]

    @property
    def is_alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Read no more; what is being read is read to its end."""
        self._is_ending = True
        with self.line.changed:
            self.line.changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (picture := self._next()) is not None:
            with giving_up.outlasted([picture], self.metrics, self.log):
                self._read_for(picture)
            if picture.reads is None:
                self._drop(picture)

    def _read_for(self, picture: Wanted) -> None:
        """Read a picture's LoRAs, or say why they can't be read."""
        try:
            reads = tuple(self._read(Path(adapter.file)) for adapter in picture.stack.adapters)
        except UserError as error:
            self._refuse(picture, error)
        except (OSError, MemoryError) as error:
            problem = f"a LoRA can't be read now: {getattr(error, 'strerror', None) or 'out of memory'}."
            self._refuse(picture, ApiError(503, problem, BROKEN, code="lora_unreadable"))
        else:
            with self.line.changed:
                picture.reads = reads
                self.line.changed.notify_all()

    def _next(self) -> Wanted | None:
        """The next picture whose LoRAs are to be read; None at the end."""
        with self.line.changed:
            while not self._is_ending:
                held: dict[str, int] = {}
                for picture in islice(self.line.in_order(), AHEAD):
                    if picture.reads is None and not picture.is_being_read and not picture.order.is_cancelled:
                        picture.is_being_read = True
                        return picture
                    held |= {read.adapter.key: read.adapter.num_bytes for read in picture.reads or ()}
                    if sum(held.values()) > self.shelf.kept_bytes // 2:
                        break
                self.line.changed.wait(_POLL_S)
        return None

    def _read(self, file: Path) -> Read:
        self.metrics.reads.labels("memory" if self.shelf.has(file) else "disk").inc()
        return self.shelf.read(file)

    def _drop(self, picture: Wanted) -> None:
        self.line.drop(lambda other: other is picture)

    def _refuse(self, picture: Wanted, error: UserError | ApiError) -> None:
        self.metrics.dropped.labels("lora unreadable").inc()
        picture.fail(error, "lora_unreadable")
