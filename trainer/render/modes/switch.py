"""One adapter at a time, the next one every five steps, in the stack's order (Switch, arXiv 2402.16843, tau = 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

name, title, is_guided, fewest = "switch", "Switch", False, 2
says = "they take turns, five steps each"
only_acting = True
_STEPS_EACH = 5


def acting(num: int, step: int, num_steps: int) -> list[float]:
    each = min(_STEPS_EACH, max(1, num_steps // num))  # in a short run every adapter still has its turn
    turn = step // each % num
    return [float(number == turn) for number in range(num)]


def predict(call: Callable[[list[float]], Tensor], num: int, step: int, num_steps: int) -> Tensor:
    return call(acting(num, step, num_steps))
