"""What waits to be drawn: an order is one request, and has a wanted picture for each of its stacks.

Whoever draws tells an order what happens to its pictures, from any thread; the order hands it on to whoever answers the
request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trainer.config import StackConfig
from trainer.errors import UserError
from trainer.render.adapter_cache import Read
from trainer.render.resolving import Resolved
from trainer.serving.api_error import ApiError


@dataclass(frozen=True)
class Drawn:
    """A picture of an order is done: its PNG, and how it was drawn."""

    number: int
    png: bytes
    stack: StackConfig
    num_together: int  # pictures of its batch


@dataclass(frozen=True)
class Stepped:
    """A picture of an order has done a step; `preview` is a PNG where one was wanted."""

    number: int
    step: int
    num_steps: int
    preview: bytes | None = None


@dataclass(frozen=True)
class Failed:
    """A picture of an order can't be had."""

    number: int
    error: ApiError


@dataclass(frozen=True)
class Begun:
    """A picture of an order is being drawn from now on, so that leaving it costs."""

    number: int


News = Drawn | Stepped | Failed | Begun


@dataclass(eq=False)
class Order:
    """One request while it is worked on."""

    request_id: str
    key_name: str
    tell: Callable[[News], None]
    deadline: float  # by time.monotonic
    num_previews: int = 0
    wants_steps: bool = False
    began: float = field(default_factory=time.monotonic)
    _gone: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._gone.set()

    @property
    def is_cancelled(self) -> bool:
        return self._gone.is_set()

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self.deadline


@dataclass(eq=False)
class Wanted:
    """One picture of an order, and how far its preparation is."""

    order: Order
    number: int  # within the order, from 0
    stack: StackConfig
    came: float = field(default_factory=time.monotonic)
    reads: tuple[Read, ...] | None = None  # its adapters; None: not read yet
    is_being_read: bool = False
    alone: bool = False  # whether it is drawn with no other
    resolved: Resolved | None = None
    kind: tuple[Any, ...] = ()
    _untold: threading.Lock = field(default_factory=threading.Lock)  # held once it was answered

    @property
    def cost(self) -> float:
        """Pixels times steps."""
        return float(self.stack.width_px * self.stack.height_px * self.stack.steps)

    def fail(self, error: UserError | ApiError, code: str = "invalid_value") -> None:
        """Tell its order why it can't be had; where a LoRA lies on this machine is nobody's business."""
        if isinstance(error, UserError):
            message = str(error)
            for adapter in self.stack.adapters:
                message = message.replace(adapter.file, adapter.name)
            error = ApiError(400, message, code=code)
        self.answer(Failed(self.number, error))

    def answer(self, news: Drawn | Failed) -> None:
        """Tell its order what became of it; only the first time, whoever else says something of it."""
        if self._untold.acquire(blocking=False):
            self.order.tell(news)


def late() -> ApiError:
    """Why a picture that came too late isn't given."""
    return ApiError(504, "the picture was not drawn before its deadline.", "timeout_error", code="deadline_exceeded")


def not_finite() -> ApiError:
    """Why there is no picture where a stack's numbers grew beyond all bounds."""
    return ApiError(
        400,
        "the stack's numbers grow beyond all bounds while it is drawn, so that there is no picture; lower its weights, "
        "or leave out the LoRA that does it.",
        code="not_finite",
    )
