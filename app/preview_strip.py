"""The previews of a run as rows: before the training at the left, the newest at the right, a training picture beside.

A row is one prompt, so that what is learned from step to step is seen at a glance. Pictures reach the browser as
thumbnails that we encoded; a preview is opened whole, since we drew it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app import cards, views
from app.context import Context
from app.texts import say
from trainer.config import TrainConfig
from trainer.data import sources
from trainer.errors import DataError, UserError
from trainer.events import Event, Sampled
from trainer.printing import escape
from trainer.report.advising import COPY

_MOST_ROWS = 16  # as many prompts as the settings take
_MOST_FRAMES = 24  # of a row
_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")  # as pictures are served; a log may name anything

# A row stands at its newest picture, unless somebody has moved it back; new pictures don't move it then.
JS_ON_LOAD = """
let places = [], touched = false;
for (const kind of ['wheel', 'pointerdown', 'touchstart', 'keydown'])
  element.addEventListener(kind, () => touched = true, {passive: true});
const rows = () => [...element.querySelectorAll('.frames')];
const put = (row, left) => row.scrollLeft = left < 0 ? row.scrollWidth : left;
const atEnd = row => row.scrollWidth - row.clientWidth - row.scrollLeft < 8;
const sizes = new ResizeObserver(changes => {
  for (const {target} of changes) put(target, places[rows().indexOf(target)] ?? -1);
});
const moved = () => {
  if (touched) places = rows().map(row => atEnd(row) ? -1 : row.scrollLeft);
};
const place = () => {
  sizes.disconnect();
  for (const [number, row] of rows().entries()) {
    put(row, places[number] ?? -1);
    sizes.observe(row);
    row.addEventListener('scrollend', moved, {passive: true});
  }
};
new MutationObserver(place).observe(element, {childList: true, subtree: true});
place();
"""


@dataclass(frozen=True)
class Preview:
    """One preview picture: its caption says step and prompt, and which training picture it copies, if it does."""

    path: Path
    caption: str
    event: Sampled


@dataclass(frozen=True)
class Strip:
    """The previews of one prompt by step; `turn` tells equal prompts of a run apart."""

    prompt: str
    turn: int
    previews: tuple[Preview, ...]


def strips(folder: Path, events: Sequence[Event]) -> list[Strip]:
    """A strip for each preview prompt of a run, in the order of its settings, with the pictures that are there."""
    # A file that was drawn again, as after a stop, counts as it was last said.
    by_file = {event.file: event for event in events if isinstance(event, Sampled)}
    rows: dict[tuple[str, int], list[Preview]] = {}
    turns: dict[tuple[int, str], int] = {}
    for event in sorted(by_file.values(), key=lambda event: event.step):
        # A prompt that the settings hold twice has a row for each.
        turn = turns[event.step, event.prompt] = turns.get((event.step, event.prompt), 0) + 1
        if Path(event.file).suffix.lower() in _SUFFIXES:
            shown = [Preview(path, caption, event) for path, caption in views.samples(folder, [event])]
            rows.setdefault((event.prompt, turn), []).extend(shown)
    return [Strip(prompt, turn, tuple(previews)) for (prompt, turn), previews in rows.items() if previews]


def signature(rows: Sequence[Strip]) -> list[str]:
    """By which it is seen that there is a new picture."""
    return [f"{preview.path}\0{preview.caption}" for row in rows for preview in row.previews]


def html(context: Context, rows: Sequence[Strip], config: TrainConfig | None) -> str:
    """The rows as they are shown; `config` names the set that a training picture is taken from."""
    learned = _learned_from(context, rows[:_MOST_ROWS], config)
    parts = [_row(context, row, beside) for row, beside in zip(rows, learned, strict=False)]
    more = len(rows) - _MOST_ROWS
    hidden = f'<p class="between">{say("run.more_prompts", num=more)}</p>' if more > 0 else ""
    if not any(parts):
        return ""
    return f'<div class="strips viewing"><h3>{say("run.previews")}</h3>{"".join(parts)}{hidden}</div>'


def link(context: Context, preview: Preview, run: str = "") -> str:
    """A preview's thumbnail, which opens the whole picture; "" for a preview that can't be shown.

    Beside those of other runs its own `run` is named.
    """
    try:
        thumbnail, whole = context.thumbnail(preview.path), context.published(preview.path)
    except (DataError, OSError, ValueError):
        return ""
    caption = escape(f"{run}: {preview.caption}" if run else preview.caption, 600)
    return (
        f'<a href="{cards.address(whole)}" target="_blank" rel="noopener" title="{caption}">'
        f'<img src="{cards.address(thumbnail)}" alt="{caption}" loading="lazy"></a>'
    )


def _row(context: Context, row: Strip, beside: Path | None) -> str:
    chosen, stride = _spread(row.previews)
    shown = [(preview, picture) for preview in chosen if (picture := link(context, preview))]
    if not shown:
        return ""
    frames = "".join(
        f'<figure class="frame{_place(number, len(shown))}">{picture}'
        f"<figcaption>{_words(preview)}</figcaption></figure>"
        for number, (preview, picture) in enumerate(shown)
    )
    prompt, turn = escape(row.prompt, 300), f" ({row.turn})" if row.turn > 1 else ""
    between = f'<span class="between">{say("run.one_in", num=stride)}</span>' if stride > 1 else ""
    return (
        f'<section class="strip"><h4><span>{prompt or say("item.no_prompt")}{turn}</span>{between}</h4>'
        '<div class="beside-set"><div class="frames" role="group" tabindex="0" '
        f'aria-label="{say("run.previews_of", prompt=prompt)}">{frames}</div>'
        f"{_training_picture(context, beside)}</div></section>"
    )


def _place(number: int, count: int) -> str:
    """The classes of a frame: the first and the newest stay in view."""
    return (" first" if number == 0 and count > 1 else "") + (" newest" if number == count - 1 else "")


def _words(preview: Preview) -> str:
    """The step under a picture, and whether it looks like a copy."""
    event = preview.event
    copies = event.nearest is not None and event.nearest >= COPY
    picture = escape(event.nearest_picture, 60) or say("run.one_picture")
    alarm = f'<b class="alarm">{say("run.a_copy", picture=picture)}</b>' if copies else ""
    return f"{say('run.at_step', step=event.step)}{alarm}"


def _spread(previews: Sequence[Preview]) -> tuple[list[Preview], int]:
    """At most some of them, the first and the newest always, and how many each stands for.

    Every second, fourth and so on is left out as they become many, so that a new picture seldom moves the others.
    """
    stride = 1
    while len(previews) > _MOST_FRAMES * stride:
        stride *= 2
    chosen = list(previews[::stride])
    return (chosen if chosen and chosen[-1] is previews[-1] else [*chosen, previews[-1]]), stride


# What it learns from.


def _training_picture(context: Context, path: Path | None) -> str:
    if path is None:
        return ""
    try:
        shown = cards.address(context.thumbnail(path))
    except DataError:
        return ""
    name = escape(path.name, 120)
    return (
        f'<figure class="frame learned"><button type="button" class="view-picture">'
        f'<img src="{shown}" alt="{say("run.training_picture", name=name)}" title="{name}" loading="lazy"></button>'
        f"<figcaption>{say('run.learns_from_this')}</figcaption></figure>"
    )


def _learned_from(context: Context, rows: Sequence[Strip], config: TrainConfig | None) -> list[Path | None]:
    """A picture of the training set for each row: the picture that its newest preview is most like, or else any."""
    trained = _trained(context, config) if config else {}
    every = list(trained.values())
    # What is held out of the set is not known here: then only a picture that the run itself named is surely trained.
    some = [] if config is None or config.validation.leave_out else every
    pictures = []
    for number, row in enumerate(rows):
        nearest = trained.get(row.previews[-1].event.nearest_picture)
        pictures.append(nearest or (some[number * len(some) // len(rows)] if some else None))
    return pictures


def _trained(context: Context, config: TrainConfig) -> dict[str, Path]:
    """The pictures that a run trains on, by name, if they are a dataset of this workspace."""
    # Settings may name any folder of the machine; only datasets are shown.
    folder = Path(config.data.folder)
    if folder.parent not in (context.datasets, context.datasets.resolve()):
        return {}
    data = config.data.model_copy(update={"mask_folder": ""})
    try:
        pictures = sources.survey(context.dataset(folder.name), data, "data.folder").pictures
    except (UserError, OSError):
        return {}
    return {
        picture.name: picture.path for picture in pictures if not picture.refusal and (picture.text or data.trigger)
    }
