"""Cards with pictures, and the panel beside them: our own HTML, with everything from outside escaped.

A card is a button, so that it is reached and pressed by keyboard; which card it was is told by `JS_ON_LOAD`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from app.context import Context
from app.item_details import Details
from app.item_notes import MOST_RATING
from app.library_items import ONE, Item
from app.texts import say
from app.trash import Entry
from trainer.errors import DataError
from trainer.printing import escape, plain

MOST_USES = 8  # pictures that are shown as uses

# A press on a card says its key; the pressed card is marked at once, and a narrow window goes on to the panel.
JS_ON_LOAD = """
element.addEventListener('click', event => {
  const card = event.target.closest('[data-key]');
  if (!card) return;
  element.querySelectorAll('[aria-pressed]').forEach(other => other.setAttribute('aria-pressed', other === card));
  trigger('select', {key: card.dataset.key});
  const panel = document.getElementById('library-panel');
  if (panel && window.innerWidth < 760)
    setTimeout(() => panel.scrollIntoView({behavior: 'smooth', block: 'start'}), 250);
});
"""


def html(context: Context, items: Sequence[Item], chosen: str) -> str:
    """The cards of these things; that of the chosen thing is marked."""
    return f'<div class="cards viewing">{"".join(_card(context, item, item.key == chosen) for item in items)}</div>'


def _card(context: Context, item: Item, is_chosen: bool) -> str:
    key, name = escape(item.key), escape(item.name, 120)
    stars = _stars(item.note.rating)
    weight = f" · {say('stack.own_weight', weight=f'{item.note.weight:g}')}" if item.note.weight != 1 else ""
    note = f'<span class="said">{escape(item.note.text, 120)}</span>' if item.note.text else ""
    return (
        f'<button type="button" class="card" data-key="{key}" aria-pressed="{str(is_chosen).lower()}">'
        f'{picture(context, item.picture, item.key)}<span class="name">{name}{stars}</span>'
        f'<span class="facts">{escape(item.facts + weight, 200)}</span>{note}</button>'
    )


def picture(context: Context, path: Path | None, seed: str) -> str:
    """A thumbnail that the browser may fetch; for none, three thin layers whose colours go with `seed`."""
    if path is not None:
        try:
            return f'<img src="{address(context.thumbnail(path))}" alt="" loading="lazy">'
        except DataError:
            pass
    turn = int(hashlib.sha256(seed.encode("utf-8", "replace")).hexdigest()[:4], 16) % 360
    layers = "".join(
        f'<ellipse cx="{22 + 12 * number}" cy="{30 + 4 * (number % 2)}" rx="17" ry="15" '
        f'fill="hsl({(turn + 70 * number) % 360} 45% 50%)" fill-opacity=".5"/>'
        for number in range(3)
    )
    return f'<svg class="none" viewBox="0 0 68 64" aria-hidden="true">{layers}</svg>'


def viewed(context: Context, path: Path | None, seed: str, words: str = "") -> str:
    """The same, shown full-screen by a press within what is marked for it (`viewer`); `words` are not escaped yet."""
    inner = picture(context, path, seed)
    return view_button(inner, words) if inner.startswith("<img") else inner


def view_button(image: str, words: str) -> str:
    """An image, as HTML, in the button that shows it full-screen; `words` are not escaped yet."""
    label, title = (escape(text, 300) for text in (say("viewer.see", words=words or say("word.picture")), words))
    return f'<button type="button" class="view-picture" aria-label="{label}" title="{title}">{image}</button>'


def address(path: Path) -> str:
    """Where the browser fetches a file of Gradio's own folder."""
    return escape(f"gradio_api/file={quote(path.as_posix())}")


def _stars(rating: int) -> str:
    shown = "★" * rating
    return (
        f'<span class="stars" aria-label="{say("library.rated", rating=rating, most=MOST_RATING)}">{shown}</span>'
        if rating
        else ""
    )


def empty_html(kind: str, is_searched: bool) -> str:
    """What stands where there are no cards."""
    texts = {
        "loras": say("library.no_lora"),
        "runs": say("library.no_run"),
        "pictures": say("library.no_picture"),
        "stacks": say("library.no_stack"),
        "datasets": say("library.no_dataset"),
        "trash": say("library.trash_empty"),
    }
    text = say("library.none_fits") if is_searched else texts.get(kind, "")
    return f'<div class="cards-empty">{escape(text)}</div>'


def trash_html(entries: Sequence[Entry], days: Sequence[str], chosen: str) -> str:
    """The cards of what lies in the trash; no pictures, as none of it is shown any more."""
    cards = "".join(
        f'<button type="button" class="card thrown" data-key="{escape(entry.id)}" '
        f'aria-pressed="{str(entry.id == chosen).lower()}"><span class="name">{escape(plain(entry.name, 120))}</span>'
        f'<span class="facts">{escape(say("library.thrown", kind=ONE.get(entry.kind, say("kind.thing")), day=day))}'
        "</span></button>"
        for entry, day in zip(entries, days, strict=True)
    )
    return f'<div class="cards">{cards}</div>'


def panel_html(context: Context, item: Item, details: Details) -> str:
    """A thing as its panel shows it: picture, name, what it is, where it is used."""
    rows = "".join(
        f"<dt>{escape(label)}</dt><dd>{escape(text, 2000)}</dd>" for label, text in details.lines if text.strip()
    )
    warning = f'<p class="warned">{escape(details.warning, 1000)}</p>' if details.warning else ""
    uses = "".join(f"<li>{escape(text, 600)}</li>" for text in details.uses)
    shown = context.thumbnails(details.pictures[:MOST_USES])
    pictures = "".join(viewed(context, path, item.key, path.stem) for path, _ in shown)
    used = f'<h4>{say("library.where_used")}</h4><ul>{uses}</ul><div class="uses">{pictures}</div>' if uses else ""
    # Pictures and stacks are used by nothing, so that it goes without saying.
    unused = (
        ""
        if uses or item.kind in ("pictures", "stacks")
        else f"<h4>{say('library.where_used')}</h4><p>{say('library.nowhere')}</p>"
    )
    return (
        f'<div class="panel viewing">{viewed(context, item.picture, item.key, item.name)}'
        f'<h3>{escape(item.name, 120)}</h3><p class="kind">{escape(ONE[item.kind])}</p>{warning}<dl>{rows}</dl>'
        f"{used}{unused}</div>"
    )
