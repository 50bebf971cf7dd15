"""The dataset's check as cards: what was found, why it matters, and buttons that select the pictures or mend them."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from app.context import Context
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
        raise ConfigError(
            f"resolution is {resolution_px}; allowed: a multiple of {multiple} from {2 * multiple} to 4096."
        )
    settings = DataConfig(folder=str(folder), trigger=trigger.strip())
    return dataset_check.check(folder, settings, CaptionsConfig(), int(resolution_px), multiple)


def cards(report: Report) -> list[Card]:
    """A card for each kind of finding."""
    copies = tuple(name for names in report.duplicates for name in names[1:])
    every = [
        Card(
            "No caption", "Left out, unless there is a trigger.", report.missing_captions,
            (("trigger", "Add trigger", report.missing_captions),),
        ),
        Card(
            "Copies", "The same file more than once counts as often.", _flat(report.duplicates),
            (("delete", "Delete copies", copies),),
        ),
        Card("Look alike", "Keep the best, or this one is learnt by heart.", _flat(report.near_duplicates)),
        Card("Blurred", "The blur would be learnt too.", tuple(found.name for found in report.blurred)),
        Card(
            "Small", f"The shorter side is below {report.resolution_px // 2} px: enlarged, it is soft.",
            tuple(found.name for found in report.small),
        ),
        Card("Same caption", "Nothing tells these apart.", _flat(found.names for found in report.identical_captions)),
        Card(
            "Without trigger", f"{plain(report.trigger, 40)!r} will be put in front.", report.without_trigger,
            (("trigger", "Add trigger", report.without_trigger),),
        ),
    ]  # fmt: skip
    return [card for card in every if card.names]


def _flat(groups: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))


def as_html(report: Report) -> str:
    """The cards, and lines that are about no single picture."""
    found = cards(report)
    lines = "".join(f"<li>{escape(line, 400)}</li>" for line in report.problems[:20])
    notes = f'<div class="finding notes"><h3>To know</h3><ul>{lines}</ul></div>' if lines else ""
    if not found and not notes:
        return '<div class="findings"><div class="finding good"><h3>Nothing to mend</h3></div></div>'
    return f'<div class="findings">{"".join(map(_card, found))}{notes}</div>'


def _card(card: Card) -> str:
    buttons = [_button("show", "Show", card.names, card.title)]
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
