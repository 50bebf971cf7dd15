"""What a picture looks like while it is drawn: when there is time for a look, and the small file that the page shows.

Looking costs drawing time, so it is measured: it takes no more than a tenth, and a picture that is over soon is left
alone. A look reads the latents and changes nothing, so that the picture is byte for byte what it is without.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from app.context import Context
from app.render_requests import Desk, Rendering
from trainer import files

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from trainer.config import StackConfig
    from trainer.render.engine import Engine

EACH_S = 1.0  # between two looks
LEAST_S = 2.0  # a picture that takes less is not looked at
_SOON_S = 0.5  # before the end
MOST_SHARE = 0.1  # of the drawing time
# What a look at a base is taken to cost, in steps, until one was measured: a large picture is seen at half its size.
_UNMEASURED_STEPS, _UNMEASURED_SMALL_STEPS = 0.125, 1.0
_SMALL_PX = 256
LONGEST_PX = 512
_KEPT_FILES = 2  # the browser may still be fetching the one before


class Looking:
    """Looks at the latents of one drawing for whoever sees it.

    `costs` remembers what looks cost, in steps, by base and size of picture; steps, as a busy machine slows both.
    """

    def __init__(self, engine: Engine, rendering: Rendering, costs: dict[tuple[str, int, int], float]) -> None:
        self.engine, self.rendering, self.costs = engine, rendering, costs
        self.num_looks, self.looked_s = 0, 0.0
        self._last_s: float | None = None  # what the last look took
        self._looked_at = 0.0
        self._is_over = False  # these latents can't be looked at, or memory is short

    def look(self, step: int, latents: Tensor, stacks: Sequence[StackConfig]) -> None:
        """After a sampling step: keep a small picture of the first latent, if there is time for one."""
        now = time.monotonic()
        if not self.is_due(step + 1, stacks[0], now):
            return
        step_s = self._step_s(step + 1, now)
        float(latents.flatten()[0])  # what the device has still to do of the step is no part of the look
        began = time.monotonic()
        image = self._decoded(latents[0], stacks[0])
        if image is None:
            self._is_over = True
            return
        self.rendering.newest = image
        self._looked_at = time.monotonic()
        self._last_s = self._looked_at - began
        self.num_looks, self.looked_s = self.num_looks + 1, self.looked_s + self._last_s
        self.costs[self._kind(stacks[0])] = self._last_s / step_s
        if self.rendering.began is not None:
            self.rendering.began += self._last_s  # the pace is that of drawing alone

    def is_due(self, num_over: int, stack: StackConfig, now: float) -> bool:
        """Whether there is time for a look after so many steps of the stack's; `now` as `time.monotonic` has it."""
        rendering, num_left = self.rendering, stack.steps - num_over
        if self._is_over or rendering.num_pictures > 1 or rendering.began is None or num_left < 1:
            return False
        step_s = self._step_s(num_over, now)
        if step_s * stack.steps < LEAST_S or step_s * num_left < _SOON_S:
            return False
        if now - max(self._looked_at, rendering.began) < EACH_S:
            return False
        next_s = self._cost_steps(stack) * step_s if self._last_s is None else self._last_s
        return self.looked_s + next_s <= MOST_SHARE * (now - rendering.began)

    def _step_s(self, num_over: int, now: float) -> float:
        """Seconds a step since the first was over, looks left out."""
        assert self.rendering.began is not None
        return (now - self.rendering.began) / max(1, num_over - 1)

    def _kind(self, stack: StackConfig) -> tuple[str, int, int]:
        return stack.base, stack.width_px, stack.height_px

    def _cost_steps(self, stack: StackConfig) -> float:
        is_small = max(stack.width_px, stack.height_px) <= _SMALL_PX
        return self.costs.get(self._kind(stack), _UNMEASURED_SMALL_STEPS if is_small else _UNMEASURED_STEPS)

    def _decoded(self, latent: Tensor, stack: StackConfig) -> Image | None:
        from trainer.memory import mechanics
        from trainer.render import step_pictures

        try:
            return step_pictures.decode_small(self.engine.pipe, latent, self.engine.latents(stack), LONGEST_PX)
        except (RuntimeError, MemoryError) as error:
            if not mechanics.is_shortage(error):
                raise
        return None


def put_up(context: Context, desk: Desk, image: Image) -> Path:
    """A small WebP of a picture where the browser can fetch it; those before it go."""
    path = context.cache / "passing" / f"{secrets.token_hex(8)}.webp"
    small = image.copy()
    small.thumbnail((LONGEST_PX, LONGEST_PX))
    with files.replacing(path) as unnamed:
        small.save(unnamed, "WEBP", quality=85)
    desk.passing.append(path)
    while len(desk.passing) > _KEPT_FILES:
        desk.passing.pop(0).unlink(missing_ok=True)
    return path
