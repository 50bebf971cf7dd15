"""A replica: one base in one process, which draws what a server sends, many requests' pictures in a batch.

Its line holds a few batches that the server has put in a fair order already, so here all keys weigh the same. It opens
no path that it was sent, and starts only with the server's own versions and the very base that the server has.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import torch

from trainer import bases, families, system
from trainer.errors import RunError, UserError
from trainer.render.batch_recipe import base_hash
from trainer.render.engine import Engine
from trainer.render.spreading import messages as files_sent
from trainer.render.spreading.worker import usual_folder, versions
from trainer.render.spreading.worker_files import KeptFiles
from trainer.serving.api_error import BROKEN, ApiError
from trainer.serving.line import Line
from trainer.serving.log_lines import Log
from trainer.serving.metrics import Metrics
from trainer.serving.orders import Drawn, Failed, News, Order, Wanted
from trainer.serving.renderer import OwnEngine
from trainer.serving.replicas.messages import About, LogLine, Plan, Sent, Told, told

_MOST_LINES = 1000  # of its log that wait to travel


class _Lines:
    """The stream of a replica's log: lines wait until news of a picture take them along."""

    name = f"{system.host()} {os.getpid()}"  # of the replica

    def __init__(self) -> None:
        self.waiting: deque[str] = deque(maxlen=_MOST_LINES)

    def write(self, text: str) -> int:
        self.waiting.append(text)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def taken(self) -> list[LogLine]:
        """The lines that wait, which wait no longer."""
        lines: list[LogLine] = []
        while self.waiting:
            lines.append(LogLine(self.waiting.popleft(), self.name))
        return lines


class Replica:
    """Draws pictures of one base; `news` may be asked of many at a time, all from one event loop."""

    def __init__(self, plan: Plan, folder: Path | None = None) -> None:
        """`folder` keeps the files that are sent; the machine's usual one if left out.

        Raises: RunError if this machine has other versions or another base than the server, ModelError if it has none.
        """
        if plan.threads:
            torch.set_num_threads(plan.threads)
        bases.quiet_libraries()
        settings = plan.settings
        # Before anything large is read.
        _check(plan)
        self._lines = _Lines()
        self._line = Line(settings.queue_pictures, shares=False)
        self._engine = Engine(settings.base, bases.family_of(settings.base), kept_bytes=settings.kept_bytes)
        self._renderer = OwnEngine(self._engine, self._line, settings, Metrics(), Log(stream=self._lines))
        self._pinned = plan.pinned
        self._files = KeptFiles(folder or usual_folder(), plan.sent_bytes)
        self._in_use: Counter[str] = Counter()  # keys of files by how many pictures need them; the loop's alone
        self._files_lock = threading.Lock()  # of placing and dropping files
        self._renderer.start()

    @property
    def is_alive(self) -> bool:
        return self._renderer.is_alive

    def end(self) -> None:
        """Draw no further."""
        self._renderer.end()

    def about(self) -> About:
        """What a LoRA file must fit."""
        return About(dict(self._engine.file_keys), dict(self._engine.shapes))

    async def news(self, sent: Sent, content_of: Callable[[str], bytes]) -> AsyncGenerator[Told, None]:
        """What becomes of a picture; the last is a `Drawn` or a `Refusal`. Who stops listening cancels it.

        `content_of` a sha256 is asked, in another thread, for files that aren't here.
        """
        loop, inbox = asyncio.get_running_loop(), asyncio.Queue[News]()

        def tell(news: News) -> None:
            loop.call_soon_threadsafe(inbox.put_nowait, news)

        deadline = time.monotonic() + sent.left_s
        order = Order(sent.request_id, sent.key_name, tell, deadline, sent.num_previews, sent.wants_steps)
        # Until the picture is done its files stay.
        self._in_use.update(sent.parts.keys())
        try:
            await asyncio.to_thread(self._put, order, sent, content_of)
            while True:
                news = await inbox.get()
                for line in self._lines.taken():
                    yield line
                yield told(news)
                if isinstance(news, Drawn | Failed):
                    return
        finally:
            order.cancel()
            with self._line.changed:
                self._line.changed.notify_all()
            self._in_use.subtract(sent.parts.keys())
            self._in_use = +self._in_use
            # Shielded: who stops listening cancels this as well.
            await asyncio.shield(asyncio.to_thread(self._let_go))

    def _put(self, order: Order, sent: Sent, content_of: Callable[[str], bytes]) -> None:
        """Place a picture's files and let it wait in the line, or say why not."""
        with self._files_lock:
            try:
                places = {key: self._files.place(key, parts, content_of) for key, parts in sent.parts.items()}
                # Only now is it known where a pinned LoRA lies here.
                for key in self._pinned & places.keys():
                    self._engine.shelf.pin_when_read(places[key])
                stack = files_sent.arrived(sent.stack, places)
            except UserError as error:
                return order.tell(Failed(sent.number, ApiError(400, str(error), code="lora_unreadable")))
            except OSError as error:
                problem = f"a LoRA can't be kept where the picture is drawn: {error.strerror or 'no room'}."
                return order.tell(Failed(sent.number, ApiError(503, problem, BROKEN, code="lora_unreadable")))

        # The line, in which all keys weigh the same.
        picture = Wanted(order, sent.number, stack, reads=None if stack.adapters else (), alone=sent.alone)
        try:
            self._line.put([picture], 1.0, lambda num_pictures: 1.0)
        except ApiError as error:
            order.tell(Failed(sent.number, error))

    def _let_go(self) -> None:
        """Drop the files that no picture needs now; what is kept of them for the next time is another matter."""
        with self._files_lock:
            self._files.let_go({*self._in_use, *self._pinned})


def _check(plan: Plan) -> None:
    """Raises: RunError, ModelError."""
    own = versions()
    if other := {name: number for name, number in own.items() if plan.versions.get(name) != number}:
        wanted = ", ".join(f"{name} {plan.versions.get(name)}" for name in other)
        found = ", ".join(f"{name} {number}" for name, number in other.items())
        raise RunError(
            f"a replica's machine has {found}; it must have {wanted}, as the server, or its pictures differ."
        )
    base = plan.settings.base
    folder = bases.resolve(base, families.registry()[bases.family_of(base)])
    if (found := base_hash(folder)) != plan.base_sha256:
        raise RunError(
            f"base {base[:200]!r} is another one here (hash {found[:12]}) than where the server is "
            f"({plan.base_sha256[:12]}); copy that folder here."
        )
