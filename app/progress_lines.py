"""How far the Stack tab's picture or sheet is, in words."""

from __future__ import annotations

from app import views
from app.render_requests import Rendering
from app.texts import say


def words(rendering: Rendering, what: str) -> str:
    """How far it is."""
    if not rendering.num_steps:
        return say("stack.loading", what=what)
    parts = []
    if rendering.num_pictures > 1:
        num = min(rendering.num_done + 1, rendering.num_pictures)
        parts.append(say("stack.nth_picture", num=num, all=rendering.num_pictures))
    parts.append(say("job.step", step=rendering.step, all=rendering.num_steps))
    left = rendering.seconds_left
    if left is not None and left >= 2:
        parts.append(say("stack.time_left", time=views.duration(left)))
    return say("stack.doing", what=what, parts=", ".join(parts))


def ended(rendering: Rendering) -> str:
    """What stands there once it is over; of a sheet that was cancelled, how much of it there is."""
    if not rendering.is_cancelled:
        return say("stack.idle")
    return say("stack.cancelled_at", num=rendering.num_drawn, all=rendering.num_pictures)
