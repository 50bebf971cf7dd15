"""The conflict map as a picture: the model from its first block to its last, and in each how the LoRAs meet.

A bar goes up by how much they push the same way there and down by how much they pull against each other. Drawn in
HTML, in the page's own colours; `trainer.render.heatmap` is the command's picture, with every layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.texts import say
from trainer.printing import escape, plain, some

if TYPE_CHECKING:
    from trainer.render.analysis import Analysis

_LEAST = 0.05  # of the two's strength, from which a direction is named
_FULL = 0.3  # what fills the bar, where nothing is more
_MILD, _BURN, _CANCEL = 1.2, 1.5, 0.7  # as `trainer.render.analysis` judges the sum
_MOST_PLACES = 3


@dataclass(frozen=True)
class Place:
    """A block: where in the model it is, and by what share the LoRAs go together and against each other there."""

    name: str
    part: str  # first, middle, last or text
    together: float
    against: float
    do_meet: bool


def places(analysis: Analysis) -> list[Place]:
    """The blocks in the order of the model's depth, text encoders last."""
    from trainer.render.analysis import block_of

    # A layer counts by the product of the two's strengths there, which is its interference over its overlap.
    sums: dict[str, list[float]] = {name: [0.0, 0.0, 0.0] for name in analysis.blocks}
    for pair in analysis.pairs:
        for path, meeting in pair.layers.items():
            size = meeting.interference / meeting.overlap if meeting.overlap else 0.0
            total = sums[block_of(path)]
            total[0] += size
            total[1 if meeting.cosine > 0 else 2] += size * abs(meeting.cosine)
    names = list(sums)
    return [
        Place(name, _part(name, names), *((up / size, down / size) if size else (0.0, 0.0)), size > 0)
        for name, (size, up, down) in sums.items()
    ]


def _part(name: str, names: list[str]) -> str:
    """In which part of the model a block lies."""
    if name.startswith("text_encoder"):
        return "text"
    if name == "MID":
        return "middle"
    if name.rstrip("0123456789") in ("IN", "OUT"):
        return "first" if name.startswith("IN") else "last"
    inside = [other for other in names if not other.startswith("text_encoder")]
    return ("first", "middle", "last")[min(2, 3 * inside.index(name) // len(inside))]


def words(analysis: Analysis) -> list[str]:
    """How the LoRAs go together, in plain sentences."""
    # The sum against the strongest LoRA.
    total = analysis.total
    strongest, is_alone = plain(total.strongest_name, 80), len(analysis.adapters) < 2
    lines = [say("analysis.alone", name=strongest)] if is_alone else []
    if not is_alone:
        judged = [
            (total.ratio >= _BURN, say("analysis.burns", times=total.ratio, name=strongest)),
            (total.ratio >= _MILD, say("analysis.adds_up", times=total.ratio, name=strongest)),
            (total.ratio <= _CANCEL, say("analysis.cancels", name=strongest)),
        ]
        lines.append(next((line for is_so, line in judged if is_so), say("analysis.goes_well", name=strongest)))
    here = places(analysis)
    # Where in the model they meet, in which sense.
    against = [place for place in here if place.against >= _LEAST and place.against > place.together]
    together = [place for place in here if place.together >= _LEAST and place.together >= place.against]
    lines += [say("analysis.against", where=_where(against, "against"))] if against else []
    lines += [say("analysis.together", where=_where(together, "together"))] if together else []
    if not (is_alone or against or together):
        lines.append(say("analysis.apart"))

    # Which two meet most, where there are several pairs.
    if len(analysis.adapters) > 2 and analysis.pairs and analysis.pairs[0].total.overlap:
        first, second = (plain(name, 80) for name in analysis.pairs[0].names)
        lines.append(say("analysis.most", first=first, second=second))
    return lines


def _where(found: list[Place], direction: str) -> str:
    """The parts of the model that these lie in, the strongest first."""
    ranked = sorted(found, key=lambda place: -float(getattr(place, direction)))
    parts = list(dict.fromkeys(place.part for place in ranked))[:_MOST_PLACES]
    return some([_titles()[part] for part in parts], "; ")


def html(analysis: Analysis) -> str:
    """The picture and what it says; "" for fewer than two LoRAs."""
    here = places(analysis)
    if not analysis.pairs or not here:
        return ""
    # Bars of one scale, and below them the part of the model that each lies in.
    most = max(_FULL, *(max(place.together, place.against) for place in here))
    bars = "".join(_bar(place, most) for place in here)
    parts = list(dict.fromkeys(place.part for place in here))
    spans = {part: sum(place.part == part for place in here) for part in parts}
    labels = "".join(
        f'<span style="grid-column: span {spans[part]}">{escape(_labels()[part])}</span>' for part in parts
    )
    keys = (("together", say("analysis.key_together")), ("against", say("analysis.key_against")))
    legend = "".join(f'<span><i class="{key}"></i>{escape(text)}</span>' for key, text in keys)
    description = escape(say("analysis.picture", lines=" ".join(words(analysis))))
    return (
        f'<figure class="depth"><div class="depth-bars" role="img" aria-label="{description}"'
        f' style="grid-template-columns: repeat({len(here)}, minmax(0, 1fr))">{bars}{labels}</div>'
        f"<figcaption>{legend}</figcaption></figure>"
    )


def _bar(place: Place, most: float) -> str:
    if place.do_meet:
        share = say("analysis.bar", place=place.name, together=place.together, against=place.against)
    else:
        share = say("analysis.bar_alone", place=place.name)
    up, down = (f"{100 * value / most:.0f}%" for value in (place.together, place.against))
    kind = "" if place.do_meet else " alone"
    return (
        f'<div class="depth-bar{kind}" title="{escape(share)}"><b><i class="together" style="height:{up}"></i></b>'
        f'<b><i class="against" style="height:{down}"></i></b></div>'
    )


def _titles() -> dict[str, str]:
    return {
        "first": say("analysis.in_first"), "middle": say("analysis.in_middle"), "last": say("analysis.in_last"),
        "text": say("analysis.in_text"),
    }  # fmt: skip


def _labels() -> dict[str, str]:
    return {
        "first": say("analysis.first"), "middle": say("analysis.middle"), "last": say("analysis.last"),
        "text": say("analysis.text"),
    }  # fmt: skip
