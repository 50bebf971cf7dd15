"""The one thread that draws: takes from the line what can be one batch, whoever asked for it, and draws it.

diffusers' pipelines take no picture in the middle of a call, so who comes while a batch is drawn waits for the next
one. A batch that can't be drawn is tried again picture by picture, so that a stack that can't be drawn is nobody
else's trouble.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

from trainer.errors import UserError
from trainer.render import picture_metadata
from trainer.serving import giving_up, reading
from trainer.serving.batch_size import Room, memory_of
from trainer.serving.batch_times import BatchTimes, What
from trainer.serving.joining import Joining
from trainer.serving.line import Line
from trainer.serving.log_lines import Log
from trainer.serving.metrics import Metrics
from trainer.serving.orders import Begun, Drawn, Wanted, not_finite
from trainer.serving.settings import ServeSettings
from trainer.serving.watching import Unwanted, Watching

if TYPE_CHECKING:
    from trainer.config import StackConfig
    from trainer.render.engine import Engine

_POLL_S = 0.25
_SMOOTH = 0.2  # share of the newest batch in what a picture is expected to take


class Drawing:
    """Draws what waits in a line."""

    def __init__(self, engine: Engine, line: Line, settings: ServeSettings, metrics: Metrics, log: Log) -> None:
        self.engine, self.line, self.settings, self.metrics, self.log = engine, line, settings, metrics, log
        self.picture_s = 1.0  # what a picture takes, as it went so far
        self._room = Room(memory_of(engine.pipe.device))
        self._times = BatchTimes()
        self._is_apart = False  # what is drawn now, though others could be drawn with it
        self._joining = Joining()
        self._is_ending = False
        self._encoders = ThreadPoolExecutor(1, "encoding")
        self._thread = threading.Thread(target=self._run, name="drawing", daemon=True)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Draw no further than the step that is drawn now, and wait until what is done is given out."""
        self._is_ending = True
        # The thread may be waiting for pictures.
        with self.line.changed:
            self.line.changed.notify_all()
        self._thread.join()
        # Only now: what was drawn last is still handed out.
        self._encoders.shutdown()

    def _run(self) -> None:
        pictures: list[Wanted] = []
        try:
            while pictures := self._next():
                with giving_up.outlasted(pictures, self.metrics, self.log):
                    self._draw(pictures)
        except BaseException as error:
            giving_up.say_fault(error, pictures, self.metrics, self.log)
            raise
        finally:
            giving_up.close(self.line, self._is_ending)

    # What is next.

    def _next(self) -> list[Wanted]:
        """Pictures that can be one batch, taken out of the line; none at the end."""
        while not self._is_ending:
            giving_up.drop_unwanted(self.line, self.metrics, self._is_ending)
            with self.line.changed:
                fresh = [picture for picture in self._ahead() if picture.reads is not None and not picture.resolved]
            # Not under the lock, which those who come need.
            for picture in fresh:
                self._resolve(picture)
            with self.line.changed:
                ready = [picture for picture in self._ahead() if picture.resolved and not picture.order.is_cancelled]
                pictures = self._together(ready)
                # A batch waits for its window to end, unless it is as large as it may be.
                left_s = self._window_left(pictures)
                if pictures and left_s <= 0:
                    pictures = self._drawn_first(pictures)
                    self.line.take(pictures)
                    return pictures
                if not self._is_ending:
                    self.line.changed.wait(left_s if pictures else _POLL_S)
        return []

    def _ahead(self) -> list[Wanted]:
        return list(islice(self.line.in_order(), 4 * reading.AHEAD))

    def _together(self, ready: list[Wanted]) -> list[Wanted]:
        """The first in line, and those behind it that can be drawn with it."""
        if not ready:
            return []
        first = ready[0]
        alike = (picture for picture in ready if picture.kind == first.kind)
        return list(islice(alike, self._most(first)))

    def _drawn_first(self, pictures: list[Wanted]) -> list[Wanted]:
        """Of pictures that can be one batch, those that are drawn now: where apart is faster, only the first's like."""
        first = pictures[0].stack
        self._is_apart = _differ(pictures) and self._times.are_faster_apart(_what(first), len(pictures))
        if not self._is_apart:
            return pictures
        return [picture for picture in pictures if picture.stack.adapters == first.adapters]

    def _most(self, picture: Wanted) -> int:
        return min(self.settings.batch_pictures, self._room.most(picture.stack))

    def _window_left(self, pictures: list[Wanted]) -> float:
        """How many seconds a batch waits still for others."""
        if not pictures or len(pictures) >= self._most(pictures[0]):
            return 0.0
        return min(picture.came for picture in pictures) + self.settings.window_s - time.monotonic()

    def _resolve(self, picture: Wanted) -> None:
        """Find what a picture's stack means here, or refuse it."""
        with giving_up.outlasted([picture], self.metrics, self.log):
            try:
                self._hand_over(picture)
                resolved = self.engine.resolved(picture.stack)
                picture.kind = self._kind(picture, self.engine.kind(resolved))
                picture.resolved = resolved
            except UserError as error:
                self.metrics.dropped.labels("refused").inc()
                picture.fail(error)
        if not picture.resolved:
            self.line.drop(lambda other: other is picture)

    def _kind(self, picture: Wanted, kind: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
        """What pictures of one batch have in common."""
        adapters = picture.stack.adapters
        # Masks lie over all pictures of a batch, and a number that isn't finite would not stay in its place.
        own = picture.order.key_name if any(adapter.region for adapter in adapters) else ""
        alike = () if self.settings.mixed_batches else adapters
        alone = id(picture) if picture.alone else 0
        return (*kind, own, alike, alone)

    def _hand_over(self, picture: Wanted) -> None:
        for read in picture.reads or ():
            self.engine.shelf.keep(read)

    # Drawing.

    def _draw(self, pictures: list[Wanted]) -> None:
        """Draw a batch and hand its pictures out, or say why not."""
        began = time.monotonic()
        for picture in pictures:
            self.metrics.waited_s.observe(began - picture.came)
            # From here on a client that leaves pays for the picture.
            picture.order.tell(Begun(picture.number))
        watching = Watching(pictures, self.engine, lambda: self._is_ending)
        drawn: list[picture_metadata.Picture] | None = None
        # A fault of several pictures is nobody's yet: below each is drawn alone and answers for itself.
        with giving_up.outlasted(pictures if len(pictures) == 1 else [], self.metrics, self.log):
            try:
                for picture in pictures:
                    self._hand_over(picture)
                drawn = self._drawn(pictures, watching)
            except Unwanted:
                for picture in pictures:
                    giving_up.give_up(picture, self.metrics, self._is_ending)
                return
            except UserError as error:
                if len(pictures) == 1:
                    pictures[0].fail(error)
        if drawn is None:
            for picture in pictures if len(pictures) > 1 else ():
                self._draw([picture])
            return

        # What isn't finite isn't handed out; the others of the batch are.
        self._count(pictures, began, time.monotonic())
        for place, (picture, result) in enumerate(zip(pictures, drawn, strict=True)):
            if place in watching.broken:
                self.metrics.dropped.labels("not finite").inc()
                picture.fail(not_finite())
            else:
                self._encoders.submit(self._hand_out, picture, result, len(pictures))

    def _drawn(self, pictures: list[Wanted], watching: Watching) -> list[picture_metadata.Picture]:
        """The pictures of a batch; how much memory they took is remembered."""
        stack, resolved = pictures[0].stack, [picture.resolved for picture in pictures if picture.resolved]
        with self.engine.watched(watching.watch, watching.look), self._room.drawing(stack, len(pictures)):
            drawn = self.engine.draw(resolved)
        if watching.is_in_parts:
            self._room.ran_out(stack, len(pictures))
        return drawn

    def _count(self, pictures: list[Wanted], began: float, ended: float) -> None:
        """Remember what a batch took, and how long its pictures waited for the batch before."""
        seconds = ended - began
        waits_s = [round(self._joining.waited_s(picture.came), 4) for picture in pictures]
        self._joining.drawn(ended)
        self.metrics.joined(waits_s)
        self.metrics.apart.inc(self._is_apart)
        self.picture_s += _SMOOTH * (seconds / len(pictures) - self.picture_s)
        if len(pictures) == 1 or _differ(pictures):
            self._times.drawn(_what(pictures[0].stack), pictures[0].stack.steps, len(pictures), seconds)
        num_stacks = len({picture.stack.adapters for picture in pictures})
        self.metrics.batch_s.observe(seconds)
        self.metrics.batch_pictures.observe(len(pictures))
        self.metrics.batch_stacks.observe(num_stacks)
        kept = self.engine.shelf.num_bytes
        self.metrics.adapter_bytes.set(kept)
        self.metrics.device_adapter_bytes.set(self.engine.on_device.num_bytes)
        took = round(seconds, 4)
        self.log.write(
            "batch",
            pictures=len(pictures),
            stacks=num_stacks,
            seconds=took,
            adapter_bytes=kept,
            join_waits_s=waits_s,
            apart=self._is_apart,
        )

    def _hand_out(self, picture: Wanted, result: picture_metadata.Picture, num_together: int) -> None:
        """Encode a picture and give it to its order; beside the drawing of the next batch."""
        with giving_up.outlasted([picture], self.metrics, self.log):
            png = picture_metadata.png(result)
            self.metrics.pictures.labels(picture.order.key_name).inc()
            picture.answer(Drawn(picture.number, png, result.stack, num_together))


def _differ(pictures: list[Wanted]) -> bool:
    """Whether their LoRAs have to run beside the base."""
    return len({picture.stack.adapters for picture in pictures}) > 1


def _what(stack: StackConfig) -> What:
    return stack.width_px, stack.height_px, stack.mode
