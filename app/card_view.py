"""A preset or card as HTML: its pictures, what it says and showed, what it would change; a run beside its card."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from app import cards, shared_cards
from app.arrival import PRESET
from app.context import Context
from app.form_words import labels
from app.library_items import Item
from app.texts import say
from trainer import preset_heads
from trainer.card_file.reading import Opened
from trainer.cards import comparing, describing
from trainer.cards.comparing import Difference
from trainer.data import open_image
from trainer.events import Event
from trainer.other_trainers import presets_from
from trainer.other_trainers.rows import STATUSES, Key
from trainer.printing import escape, plain
from trainer.report import beside_card, svg_charts
from trainer.report.plausible import plausible
from trainer.report.svg_charts import Series

_SIDE_PX = 224
_MOST_LINES = 60


# What it would change.


def difference_html(differences: Sequence[Difference], now: str) -> str:
    """The settings that differ, as they are `now` and as the card has them."""
    if not differences:
        return f'<p class="quietly">{say("card.no_change")}</p>'
    lines = ""
    for difference in differences[:_MOST_LINES]:
        title = labels().get(difference.key) or difference.title
        values = (comparing.spelled(difference.before), comparing.spelled(difference.after))
        cells = "".join(f"<td>{escape(value, 200)}</td>" for value in values)
        lines += f"<tr><th>{escape(title, 80)}</th>{cells}</tr>"
    more = f"<p>{say('card.more', num=len(differences) - _MOST_LINES)}</p>" if len(differences) > _MOST_LINES else ""
    return (
        f'<h4>{say("card.changes")}</h4><div class="table-view"><table><tr><th></th><th>{escape(now)}</th>'
        f"<th>{say('card.this')}</th></tr>{lines}</table></div>{more}"
    )


# After a run.


def beside(folder: Path, events: list[Event]) -> str:
    """The figures of a run beside its card's and what was predicted; nothing for a run without either."""
    table = beside_card.html(folder, plausible(events))
    if not table:
        return ""
    inner = table.replace('class="wide"', 'class="table-view"').replace('<figure class="chart">', "<figure>")
    title = f"<h4>{say('card.beside')}</h4>"
    return f'<div class="beside-card">{title}<div class="chart-view">{inner}</div></div>'


# The card itself.


def html(context: Context, item: Item) -> str:
    """A preset or card as its panel shows it: pictures first, then what it says and what it showed."""
    kept = shared_cards.of_key(item.key)
    if kept.card is not None:
        return card_html(context, kept.card)
    words = "".join(f"<p>{escape(text, 2000)}</p>" for text in _head(kept.name, item) if text)
    keys = keys_html(presets_from.report_of(kept.paths[0]))
    return (
        f'<div class="panel"><h3>{escape(kept.name, 120)}</h3><p class="kind">{say("kind.preset")}</p>{words}'
        f"<dl></dl>{keys}</div>"
    )


def card_html(context: Context, opened: Opened) -> str:
    """A card, whether it is kept or not."""
    facts = "".join(
        f"<dt>{escape(label)}</dt><dd>{escape(text, 2000)}</dd>" for label, text in describing.facts(opened) if label
    )
    warned = "".join(f'<p class="warned">{escape(line, 1000)}</p>' for line in shared_cards.missing(context, opened))
    name = escape(plain(opened.card.title, 120), 120)
    return (
        f'<div class="panel">{_strip(opened)}<h3>{name}</h3><p class="kind">{say("kind.card")}</p>{warned}'
        f"<dl>{facts}</dl>{_curve(opened)}</div>"
    )


def _head(name: str, item: Item) -> list[str]:
    """What a preset says of itself, a sentence each."""
    head = preset_heads.of(item.key.removeprefix(PRESET))
    made = say("card.made_for", made_for=head.made_for) if head.made_for else ""
    return [item.facts, made, say("card.memory", memory=head.memory) if head.memory else ""]


def keys_html(found: Sequence[Key]) -> str:
    """What became of each key of another trainer's recipe; what can't be, first. Nothing where there is none."""
    keys = sorted(found, key=lambda key: -STATUSES.index(key.status))
    lines = ""
    for key in keys:
        cells = (key.key, str(key.value), key.status, "; ".join(filter(None, (key.became, key.why))))
        lines += f"<tr>{''.join(f'<td>{escape(plain(cell, 300))}</td>' for cell in cells)}</tr>"
    head = f"<tr><th>{say('card.key')}</th><th>{say('card.value')}</th><th></th><th>{say('card.here')}</th></tr>"
    title = f"<summary>{say('card.keys', num=len(keys))}</summary>"
    table = f'<div class="table-view"><table>{head}{lines}</table></div>'
    return f'<details class="recipe-keys">{title}{table}</details>' if keys else ""


def _strip(opened: Opened) -> str:
    """The samples of a card, each with its step and seed, and its prompt for whoever points at it."""
    figures = []
    for sample, raw in zip(opened.card.samples, opened.pictures, strict=True):
        # Sent within the page: a card that is only looked at has no file that the browser may fetch.
        image = open_image(io.BytesIO(raw))
        image.thumbnail((_SIDE_PX, _SIDE_PX))
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=75)
        source = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        prompt = plain(sample.prompt, 300)
        button = cards.view_button(f'<img src="{source}" alt="{escape(prompt)}">', prompt)
        words = say("card.step_and_seed", step=sample.step, seed=sample.seed)
        figures.append(f"<figure>{button}<figcaption>{words}</figcaption></figure>")
    return f'<div class="card-strip viewing">{"".join(figures)}</div>' if figures else ""


def _curve(opened: Opened) -> str:
    """The gain on held-out pictures by step."""
    points = opened.card.evidence.heldout if opened.card.evidence else ()
    line = Series(
        say("card.heldout"), "held", [(0.0, 0.0), *((float(point.step), point.gain) for point in points)],
        [0.0, *(point.gain_low for point in points)], [0.0, *(point.gain_high for point in points)],
    )  # fmt: skip
    chart = svg_charts.lines([line], say("card.gain_by_step"), lambda value: f"{value * 100:.3g} %", 0.0)
    return f'<h4>{say("card.never_saw")}</h4><div class="chart-view">{chart}</div>' if chart else ""
