"""What was dropped, as HTML: a box for each file, and for a card or recipe what keeping it would change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from app import card_view, pending_imports
from app.arrival import Arrival
from app.context import Context
from app.texts import say
from app.views import notice_html
from trainer import card_file
from trainer.cards import comparing, places, proposals
from trainer.config import TrainConfig, parse
from trainer.other_trainers import presets_from
from trainer.printing import escape, plain

_MOST_ARRIVALS = 20


def html(context: Context, arrivals: Sequence[Arrival], form: TrainConfig | None) -> str:
    """The boxes; `form` is what stands in Train now, None where it can't be used."""
    boxes = []
    for arrival in arrivals[:_MOST_ARRIVALS]:
        kind = "plain" if arrival.offer else "good" if arrival.is_taken else "bad"
        title = plain(arrival.file, 120) or say("dropped.not_taken")
        boxes.append(notice_html(kind, title, [line for line in (arrival.what, arrival.where) if line]))
        if arrival.offer:
            boxes.append(
                f'<div class="offer">{_offer(context, pending_imports.of(context, arrival.offer), form)}</div>'
            )
    if len(arrivals) > _MOST_ARRIVALS:
        boxes.append(notice_html("plain", say("word.and_more", num=len(arrivals) - _MOST_ARRIVALS), []))
    return f'<div class="arrivals" role="status">{"".join(boxes)}</div>'


def _offer(context: Context, path: Path, form: TrainConfig | None) -> str:
    """What a card or recipe holds and would change. Raises: ConfigError."""
    if card_file.is_card(path):
        opened = card_file.read(path)
        changed = _changes(opened.settings, form) if isinstance(opened.settings, TrainConfig) else ""
        return card_view.card_html(context, opened) + changed
    from trainer.other_trainers import importing  # reads the tables of nine tools

    recipe = importing.read(path)
    settings = parse(TrainConfig, recipe.settings, say("where.recipe"))
    lines, _ = proposals.beside(presets_from.name_of(recipe, path), settings)
    warned = "".join(f'<p class="warned">{escape(line, 300)}</p>' for line in lines)
    return warned + _changes(settings, form) + card_view.keys_html(recipe.keys)


def _changes(settings: TrainConfig, form: TrainConfig | None) -> str:
    """The settings that are not as the form has them; as the defaults have them where it can't be used."""
    if form is None:
        return card_view.difference_html(comparing.against_defaults(settings), say("offer.default"))
    pair = [places.without(config, with_names=True) for config in (form, settings)]
    return card_view.difference_html(comparing.differences(*pair), say("preset.form_now"))
