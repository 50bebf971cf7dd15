"""The pictures of a report: previews step by step, and what was trained on, each a small JPEG inside the page.

Everything is opened and encoded anew, so that nothing from outside gets into the page as it came. What can't be opened
is left out; a report is never a reason to fail.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import data, families
from trainer.config import TrainConfig
from trainer.data import buckets
from trainer.errors import UserError
from trainer.events import Planned, Sampled
from trainer.printing import escape
from trainer.report.advising import is_copy
from trainer.runs import Run

if TYPE_CHECKING:
    from trainer.data import Dataset, Item

MAX_PICTURES = 200  # of the dataset
_MAX_PREVIEWS = 240  # of all prompts
_MAX_STEPS = 12  # of a prompt
_PREVIEW_PX, _THUMBNAIL_PX = 256, 96
_CAPTION_CHARS = 600
_SHOWN_AT_ONCE = 12


def thumbnail(path: Path, side_px: int) -> str:
    """The picture as a JPEG data URI, no side longer than `side_px`; "" for what does not open."""
    try:
        image = data.open_image(path)
        image.thumbnail((side_px, side_px))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
    except (UserError, OSError, ValueError):
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def strips(folder: Path, sampled: Sequence[Sampled]) -> str:
    """A row for each prompt, its previews from the first step to the last; likely copies are marked."""
    # A step that is in the log twice counts as it was last.
    rows: dict[str, dict[int, Sampled]] = {}
    for event in sampled:
        rows.setdefault(event.prompt, {})[event.step] = event
    # All prompts share the room.
    parts, room = [], _MAX_PREVIEWS
    for prompt, by_step in rows.items():
        chosen = _spread([by_step[step] for step in sorted(by_step)])
        shown = [preview for event in chosen if (preview := _preview(folder, event))][:room]
        room -= len(shown)
        if shown:
            parts.append(f'<h3 class="prompt">{escape(prompt)}</h3><div class="strip">{"".join(shown)}</div>')
    return "".join(parts)


def _spread(events: list[Sampled]) -> list[Sampled]:
    """At most a dozen of them, the first and the last always."""
    if len(events) <= _MAX_STEPS:
        return events
    return [events[round(number * (len(events) - 1) / (_MAX_STEPS - 1))] for number in range(_MAX_STEPS)]


def _preview(folder: Path, event: Sampled) -> str:
    path = Run(folder).inside(event.file)
    image = thumbnail(path, _PREVIEW_PX) if path else ""
    if not image:
        return ""
    return f'<figure><img alt="" src="{image}"><figcaption>step {event.step}{_likeness(event)}</figcaption></figure>'


def _likeness(event: Sampled) -> str:
    if not is_copy(event):
        return ""
    return (
        f'<b class="alarm">looks like a copy of {escape(event.nearest_picture) or "a training picture"} '
        f"({event.nearest:.2f})</b>"
    )


def plan_table(plan: Planned) -> str:
    """The buckets, the fullest first."""
    rows = [bucket for bucket in plan.buckets if len(bucket) == 3]
    rows.sort(key=lambda bucket: -bucket[2])
    cells = "".join(f"<tr><td>{width} x {height}<td>{count}" for width, height, count in rows)
    cropped = f"; {plan.num_cropped} of the pictures lose more than a tenth to the crop" if plan.num_cropped else ""
    batches = "batch" if plan.num_batches == 1 else "batches"
    return (
        f"<p>{plan.num_batches} {batches} an epoch{cropped}.</p><table><tr><th>Bucket<th>Pictures, repeats "
        f"counted</tr>{cells}</table>"
    )


def dataset_table(dataset: Dataset, config: TrainConfig | None, plan: Planned | None) -> str:
    """A row for each picture: how it looks, what is said about it, and where it trains."""
    items = dataset.items[:MAX_PICTURES]
    # In threads: Pillow decodes and resizes beside other threads.
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(lambda item: thumbnail(item.path, _THUMBNAIL_PX), items))
    rows = []

    # A row for each picture.
    for item, image in zip(items, images, strict=True):
        shown = f'<img alt="" src="{image}">' if image else ""
        captions = "<br>".join(escape(_short(caption)) for caption in item.captions)
        notes = [f"repeats {item.repeats}"] if item.repeats != 1 else []
        notes += [f"weight {item.weight:g}"] if item.weight != 1 else []
        notes += ["mask"] if item.mask is not None else []
        notes += ["regularisation"] if item.regular else []
        where = f"{item.width_px} x {item.height_px}<br>{_bucket(item, config, plan)}"
        rows.append(
            f'<tr><td class="thumb">{shown}<td class="words"><b>{escape(item.name)}</b><br>{captions}<td '
            f'class="quietly">{where}<td>{", ".join(notes)}'
        )

    # The table, folded away where it is long.
    num_more = len(dataset.items) - MAX_PICTURES
    more = f"<p>And {num_more} more pictures.</p>" if num_more > 0 else ""
    table = (
        f'<table class="pictures"><tr><th>Picture<th>Caption<th>Size, bucket<th>Notes</tr>{"".join(rows)}</table>{more}'
    )
    return f"<details{' open' if len(rows) <= _SHOWN_AT_ONCE else ''}><summary>The pictures</summary>{table}</details>"


def _short(caption: str) -> str:
    return caption if len(caption) <= _CAPTION_CHARS else f"{caption[:_CAPTION_CHARS]}…"


def _bucket(item: Item, config: TrainConfig | None, plan: Planned | None) -> str:
    """The picture's bucket, if the settings lead to a bucket that the run's plan has."""
    if config is None or plan is None:
        return ""
    width, height = buckets.assign(
        item.width_px, item.height_px, config.resolution_px, config.data, families.registry()[config.family].multiple_px
    )
    return f"{width} x {height}" if any(bucket[:2] == [width, height] for bucket in plan.buckets) else ""
