"""While a batch is drawn: who is told of its steps and sees previews, and when nobody waits for it any more."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trainer.render import step_pictures
from trainer.serving.wanted import Stepped, Wanted

if TYPE_CHECKING:
    from torch import Tensor


class Unwanted(Exception):
    """Nobody waits for any picture of this batch, or the server waits no longer."""


class Watching:
    """What `Engine.watched` is given for one batch."""

    def __init__(self, pictures: list[Wanted], pipe: Any, is_ending: Callable[[], bool]) -> None:
        self.pictures, self.pipe, self.is_ending = pictures, pipe, is_ending
        self._previews: dict[int, bytes] = {}  # of the step that is over, by place in the batch
        self.broken: set[int] = set()  # places of pictures whose numbers are no numbers any more

    def look(self, step: int, latents: Tensor) -> None:
        """Make the previews that are due after this step, and after the last see what is no picture."""
        self._previews = {}
        if len(latents) != len(self.pictures):  # memory ran out, and half of the batch is drawn at a time
            return
        if step + 1 >= self.pictures[0].stack.steps:
            is_finite = latents.isfinite().flatten(1).all(1).tolist()
            self.broken = {place for place, finite in enumerate(is_finite) if not finite}
        for place, picture in enumerate(self.pictures):
            if not picture.order.is_cancelled and step + 1 in preview_steps(picture):
                image = step_pictures.decode(self.pipe, latents[place])
                if image is not None:
                    written = io.BytesIO()
                    image.save(written, "PNG")
                    self._previews[place] = written.getvalue()

    def watch(self, step: int, num_steps: int, num_together: int) -> None:
        """Tell of a step. Raises: Unwanted."""
        if self.is_ending() or all(picture.order.is_cancelled or picture.order.is_late for picture in self.pictures):
            raise Unwanted
        for place, picture in enumerate(self.pictures):
            preview = self._previews.get(place)
            if picture.order.wants_steps or preview is not None:
                picture.order.tell(Stepped(picture.number, step, num_steps, preview))


def preview_steps(picture: Wanted) -> list[int]:
    """After which steps a picture is shown: evenly spread, never after the last."""
    count, steps = picture.order.num_previews, picture.stack.steps
    return sorted({steps * number // (count + 1) for number in range(1, count + 1)} - {0, steps})
