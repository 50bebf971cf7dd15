"""While a batch is drawn: who is told of its steps and sees previews, and when nobody waits for it any more."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from trainer.render import step_pictures
from trainer.serving.orders import Stepped, Wanted

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.config import StackConfig
    from trainer.render.engine import Engine


class Unwanted(Exception):
    """Nobody waits for any picture of this batch, or the server waits no longer."""


class Watching:
    """What `Engine.watched` is given for one batch."""

    def __init__(self, pictures: list[Wanted], engine: Engine, is_ending: Callable[[], bool]) -> None:
        self.pictures, self.engine, self.is_ending = pictures, engine, is_ending
        # Memory may run out, and a part of the batch be drawn at a time: which places are, told by their very stacks.
        self._places = {id(picture.resolved.stack): place for place, picture in enumerate(pictures) if picture.resolved}
        self._here = list(self._places.values())
        self._previews: dict[int, bytes] = {}  # of the step that is over, by place in the batch
        self.is_in_parts = False  # since memory ran out
        self.broken: set[int] = set()  # places of pictures whose numbers are no numbers any more

    def look(self, step: int, latents: Tensor, stacks: Sequence[StackConfig]) -> None:
        """Make the previews that are due after this step, and after the last see what is no picture."""
        self._previews = {}
        self._here = [self._places[id(stack)] for stack in stacks]
        self.is_in_parts |= len(stacks) < len(self.pictures)
        if step + 1 >= self.pictures[0].stack.steps:
            is_finite = latents.isfinite().flatten(1).all(1).tolist()
            self.broken -= set(self._here)  # they may be drawn for the second time
            self.broken |= {place for place, finite in zip(self._here, is_finite, strict=True) if not finite}
        for row, place in enumerate(self._here):
            picture = self.pictures[place]
            if not picture.order.is_cancelled and step + 1 in preview_steps(picture):
                image = step_pictures.decode(self.engine.pipe, latents[row], self.engine.latents(picture.stack))
                if image is not None:
                    written = io.BytesIO()
                    image.save(written, "PNG")
                    self._previews[place] = written.getvalue()

    def watch(self, step: int, num_steps: int, num_together: int) -> None:
        """Tell of a step. Raises: Unwanted."""
        if self.is_ending() or all(picture.order.is_cancelled or picture.order.is_late for picture in self.pictures):
            raise Unwanted
        for place in self._here:
            picture, preview = self.pictures[place], self._previews.get(place)
            if picture.order.wants_steps or preview is not None:
                picture.order.tell(Stepped(picture.number, step, num_steps, preview))


def preview_steps(picture: Wanted) -> list[int]:
    """After which steps a picture is shown: evenly spread, never after the last."""
    count, steps = picture.order.num_previews, picture.stack.steps
    return sorted({steps * number // (count + 1) for number in range(1, count + 1)} - {0, steps})
