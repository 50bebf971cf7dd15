"""The dataset's check as cards: what was found, why it matters, and buttons that select the pictures or mend them."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from app.context import Context
from app.texts import say
from trainer import families, presets
from trainer.config import CaptionsConfig, DataConfig
from trainer.errors import ConfigError
from trainer.printing import escape, plain

if TYPE_CHECKING:
    from trainer.data.dataset_check import Report

# A press on a card's button selects its pictures in the gallery, or does the cure.
SCRIPT = """
element.addEventListener('click', event => {
  const said = event.target.closest('[data-act]')?.dataset;
  if (said) window.velaturaDataset.cure(said.act, JSON.parse(said.names), said.title);
});
"""


@dataclass(frozen=True)
class Card:
    """One kind of finding. `cures` are (act, label, pictures it is done to) beside showing them."""

    title: str
    why: str
    names: tuple[str, ...]
    cures: tuple[tuple[str, str, tuple[str, ...]], ...] = ()


@cache
def multiple_px() -> int:
    """What the sides of buckets are multiples of."""
    return families.registry()[presets.load(presets.names()[0], {}).family].multiple_px


def trains(resolution_px: int) -> bool:
    """Whether there are buckets of that resolution."""
    return 2 * multiple_px() <= resolution_px <= 4096 and resolution_px % multiple_px() == 0


def check(context: Context, name: str | None, resolution_px: int | None, trigger: str) -> Report:
    """What is to know of a dataset before it is trained on. Raises: DataError, ConfigError."""
    from trainer.data import dataset_check  # loads much that the page itself does not need

    folder = context.dataset(name)
    multiple = multiple_px()
    if resolution_px is None or not trains(resolution_px):
        raise ConfigError(say("check.resolution", resolution=resolution_px, multiple=multiple, least=2 * multiple))
    settings = DataConfig(folder=str(folder), trigger=trigger.strip())
    return dataset_check.check(folder, settings, CaptionsConfig(), int(resolution_px), multiple)


def cards(report: Report) -> list[Card]:
    """A card for each kind of finding."""
    copies = tuple(name for names in report.duplicates for name in names[1:])  # all but the first of each
    every = [
        Card(
            say("check.no_caption"), say("check.no_caption_why"), report.missing_captions,
            (("trigger", say("edits.add_trigger"), report.missing_captions),),
        ),
        Card(
            say("check.copies"), say("check.copies_why"), _flat(report.duplicates),
            (("delete", say("check.delete_copies"), copies),),
        ),
        Card(say("check.alike"), say("check.alike_why"), _flat(report.near_duplicates)),
        Card(say("check.blurred"), say("check.blurred_why"), tuple(found.name for found in report.blurred)),
        Card(
            say("check.small"), say("check.small_why", px=report.resolution_px // 2),
            tuple(found.name for found in report.small),
        ),
        Card(
            say("check.same_caption"), say("check.same_caption_why"),
            _flat(found.names for found in report.identical_captions),
        ),
        Card(
            say("check.without_trigger"), say("check.without_trigger_why", trigger=plain(report.trigger, 40)),
            report.without_trigger,
            (("trigger", say("edits.add_trigger"), report.without_trigger),),
        ),
    ]  # fmt: skip
    return [card for card in every if card.names]


def _flat(groups: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))


def as_html(report: Report) -> str:
    """The cards, and lines that are about no single picture."""
    found = cards(report)
    lines = "".join(f"<li>{escape(line, 400)}</li>" for line in report.problems[:20])
    notes = f'<div class="finding notes"><h3>{say("check.to_know")}</h3><ul>{lines}</ul></div>' if lines else ""
    if not found and not notes:
        return f'<div class="findings"><div class="finding good"><h3>{say("check.fine")}</h3></div></div>'
    return f'<div class="findings">{"".join(map(_card, found))}{notes}</div>'


def _card(card: Card) -> str:
    buttons = [_button("show", say("button.show"), card.names, card.title)]
    buttons += [_button(act, label, names, card.title) for act, label, names in card.cures]
    return (
        f'<div class="finding"><h3><b>{len(card.names)}</b> {escape(card.title)}</h3><p>{escape(card.why)}</p>'
        f'<div class="cures">{"".join(buttons)}</div></div>'
    )


def _button(act: str, label: str, names: tuple[str, ...], title: str) -> str:
    data = html.escape(json.dumps(names))  # JSON spells what is no plain letter, so nothing in it hides
    return (
        f'<button type="button" class="cure" data-act="{act}" data-title="{escape(title)}" data-names="{data}" '
        f'aria-label="{escape(label)}: {escape(title)}">{escape(label)}</button>'
    )
