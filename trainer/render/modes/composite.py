"""The mean of the predictions with each adapter alone (Composite, arXiv 2402.16843); a pass of the denoiser for each.

The paper averages guided predictions; guidance is linear, so the mean is taken before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

name, title, is_guided, fewest = "composite", "Composite", True, 2
says = "the mean of a picture's prediction with each"


def predict(call: Callable[[list[float]], Tensor], num: int, step: int, num_steps: int) -> Tensor:
    total = call([float(number == 0) for number in range(num)])
    for turn in range(1, num):
        total = total + call([float(number == turn) for number in range(num)])
    return total / num
