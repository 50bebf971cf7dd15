"""The weighted updates added up: the truth of a stack."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

name, title, is_guided, fewest = "sum", "Sum", False, 0
says = "adds up what each changes"
only_acting = True


def predict(call: Callable[[list[float]], Tensor], num: int, step: int, num_steps: int) -> Tensor:
    return call([1.0] * num)
