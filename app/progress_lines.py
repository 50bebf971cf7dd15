"""How far a picture, a sheet or other work is, in words and as a line with a bar."""

from __future__ import annotations

from app import views
from app.render_requests import Rendering
from app.texts import say

_LEAST_LEFT_S = 2.0


def words(rendering: Rendering, what: str) -> str:
    """How far it is."""
    if not rendering.num_steps:
        return say("stack.loading", what=what)
    parts = []
    if rendering.num_pictures > 1:
        num = min(rendering.num_done + 1, rendering.num_pictures)
        parts.append(say("stack.nth_picture", num=num, all=rendering.num_pictures))
    parts.append(say("job.step", step=rendering.step, all=rendering.num_steps))
    parts += time_left(rendering)
    return say("stack.doing", what=what, parts=", ".join(parts))


def ended(rendering: Rendering) -> str:
    """What stands there once it is over; of a sheet that was cancelled, how much of it there is."""
    if not rendering.is_cancelled:
        return say("stack.idle")
    return say("stack.cancelled_at", num=rendering.num_drawn, all=rendering.num_pictures)


def time_left(rendering: Rendering) -> list[str]:
    """About how long it takes still, once that can be said; nothing where it is as good as over."""
    left_s = rendering.seconds_left or 0.0
    return [say("stack.time_left", time=views.duration(left_s))] if left_s >= _LEAST_LEFT_S else []


def line(text: str, share: float | None = None) -> str:
    """A line of words of ours, and a bar while something is being done."""
    shown = "" if share is None else f'<i style="width:{share:.1%}"></i>'
    role = (
        ""
        if share is None
        else f'role="progressbar" aria-label="{say("batch.drawing")}" aria-valuenow="{share * 100:.0f}"'
    )
    return f'<div class="drawing"><span>{text}</span><div class="bar" {role}>{shown}</div></div>'
