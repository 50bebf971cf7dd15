"""What is being drawn and for whom: a request can be watched, cancelled, and is superseded by the next of its page.

The engine draws one picture at a time, whoever asks; a request waits for it only while it is still wanted, so that
nothing queues up behind a slider. What a page last showed and pinned is held here too, by Gradio's session.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import gradio as gr

from app.notices import mended
from trainer.config import StackConfig

if TYPE_CHECKING:
    from PIL.Image import Image

    from trainer.render.engine import Engine
    from trainer.render.pipeline_call import Look

POLL_S = 0.12
_MOST_DESKS = 64

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Cancelled(Exception):
    """Nobody wants this picture any more."""


class Rendering:
    """One request for pictures: how far it is, and whether it is still wanted."""

    def __init__(self) -> None:
        self._unwanted = threading.Event()
        self.is_superseded = False
        self.is_kept = False  # ended, but what was drawn by then is wanted
        self.num_pictures = 1  # in all
        self.num_drawn = 0  # of a sheet's pictures, those that are there
        self.look: Callable[[Engine], Look] | None = None  # who looks at the latents of what an engine draws
        self.newest: Image | None = None  # to be seen meanwhile
        self.num_done = 0
        self.step = self.num_steps = self._num_together = 0
        self.began: float | None = None  # when the first step was over

    @property
    def is_cancelled(self) -> bool:
        return self._unwanted.is_set()

    def cancel(self) -> None:
        """Draw no further than the end of this step, and keep nothing."""
        self.is_kept = False
        self._unwanted.set()

    def stop(self) -> None:
        """Draw no further than the end of this step, and keep the pictures that are there."""
        self.is_kept = self.num_drawn > 0
        self._unwanted.set()

    def drew(self, image: Image) -> None:
        """One of a sheet's pictures is there."""
        self.num_drawn += 1
        self.newest = image

    def expect(self, num_pictures: int) -> None:
        """There will be so many pictures."""
        self.num_pictures = num_pictures

    def restart(self) -> None:
        """The next pictures are another part of the same request."""
        self.num_done = self.step = self.num_steps = self._num_together = 0
        self.began = self.newest = None

    def check(self) -> None:
        """Raises: Cancelled if it is."""
        if self.is_cancelled:
            raise Cancelled

    def watch(self, step: int, num_steps: int, num_together: int) -> None:
        """The engine has done a step. Raises: Cancelled."""
        self.check()
        if step <= self.step:  # of the next pictures
            self.num_done += self._num_together
        self.began = self.began or time.monotonic()
        self.step, self.num_steps, self._num_together = step, num_steps, num_together

    def part_done(self, num: int, num_parts: int) -> None:
        """So many of all parts of work that isn't a picture are done. Raises: Cancelled."""
        self.watch(num, num_parts, 1)

    @property
    def share(self) -> float:
        """How much is done, 0 to 1."""
        # Pictures that are drawn together are all as far as the step.
        within = self._num_together * self.step / self.num_steps if self.num_steps else 0.0
        return min(1.0, (self.num_done + within) / max(1, self.num_pictures))

    @property
    def step_pace_s(self) -> float | None:
        """Seconds a step of what was drawn just now, None unless that was one whole picture."""
        # Timed from the end of the first step, so over one step less.
        is_one = self.num_pictures == 1 and self._num_together == 1 and 1 < self.step == self.num_steps
        return (time.monotonic() - self.began) / (self.num_steps - 1) if is_one and self.began is not None else None

    @property
    def seconds_left(self) -> float | None:
        """What it takes still as it went so far, None before that can be said."""
        if self.began is None or self.share <= 0.15:
            return None
        return (time.monotonic() - self.began) / self.share * (1 - self.share)


@dataclass
class Desk:
    """What one page has before it."""

    rendering: Rendering | None = None
    shown: Path | None = None  # the last whole picture
    pinned: Path | None = None
    sheet: Path | None = None  # that lies over the picture
    passing: list[Path] = field(default_factory=list)  # files of what is seen while the next is drawn, newest last
    is_passing: bool = False  # such a picture is on the easel, in the place of those above
    stack: StackConfig | None = None  # of the picture that is shown or drawn
    browser: str = ""  # whose it is (`browser_state`)
    works: dict[str, Rendering] = field(default_factory=dict)  # what else is being done, by where its line stands
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, stack: StackConfig | None) -> Rendering:
        """A new request; the previous request is not wanted any more."""
        with self._lock:
            self.stack = stack
            if self.rendering is not None:
                self.rendering.is_superseded = True
                self.rendering.cancel()
            self.rendering = Rendering()
            return self.rendering

    def cancel(self) -> bool:
        """Cancel what is being drawn; False if nothing is."""
        with self._lock:
            # Without the stack, so that the same picture may be asked for again.
            rendering, self.rendering, self.stack = self.rendering, None, None
        if rendering is None:
            return False
        rendering.cancel()
        return True

    def stop(self) -> bool:
        """End what is being drawn; False if nothing is. What it keeps is shown unless the page asks for another."""
        with self._lock:
            rendering, self.stack = self.rendering, None
            if rendering is None:
                return False
            rendering.stop()
            if not rendering.is_kept:
                self.rendering = None
        return True

    def end(self, rendering: Rendering) -> None:
        """Forget a request that is over."""
        with self._lock:
            if self.rendering is rendering:
                self.rendering = None


class Desks:
    """The desks of the pages that are open; those longest unused are forgotten first."""

    def __init__(self) -> None:
        self._desks: OrderedDict[str, Desk] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, session: str | None) -> Desk:
        """The desk of a page."""
        with self._lock:
            desk = self._desks.setdefault(session or "", Desk())
            self._desks.move_to_end(session or "")
            while len(self._desks) > _MOST_DESKS:
                self._desks.popitem(last=False)
            return desk


class Work(Generic[_T]):
    """Something drawn in a thread of its own, to be waited for in small turns."""

    def __init__(self, rendering: Rendering, draw: Callable[[], _T]) -> None:
        self.rendering = rendering
        self._draw = draw
        self._drawn: Future[_T] | None = None

    def turns(self) -> Iterator[None]:
        """Goes on while it is drawn, or until what is kept of it is there.

        Raises: Cancelled at once when it is cancelled, else what drawing raised.
        """
        # A thread for this work alone, which ends with it.
        pool = ThreadPoolExecutor(1, "drawing")
        self._drawn = pool.submit(self._draw)
        pool.shutdown(wait=False)
        try:
            while not self._drawn.done():
                self._check()
                yield
                wait([self._drawn], POLL_S)
        except GeneratorExit:  # the page is gone
            self.rendering.cancel()
            raise
        self._check()
        self._drawn.result()

    def _check(self) -> None:
        if not self.rendering.is_kept:
            self.rendering.check()

    @property
    def result(self) -> _T:
        """What was drawn, once the turns are over."""
        assert self._drawn is not None
        return self._drawn.result()


def mended_turns(handler: Callable[_P, Iterator[Any]]) -> Callable[_P, Iterator[Any]]:
    """`mended` for a handler that answers several times: each of its turns is.

    One that has nothing to say says so: Gradio 6.31 empties every output of a generator that ends without an answer.
    """
    begin = mended(handler)
    over = object()

    @functools.wraps(handler)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> Iterator[Any]:
        answers = begin(*args, **kwargs)
        answer = _next(answers, over)
        try:
            if answer is over:
                yield gr.skip()
            while answer is not over:
                yield answer
                answer = _next(answers, over)
        finally:
            # A page that is gone closes this generator, and the work within must hear of it.
            close = getattr(answers, "close", None)
            if close:
                close()

    return guarded


@mended
def _next(answers: Iterator[Any], over: object) -> Any:
    return next(answers, over)
