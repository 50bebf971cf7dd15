"""Which shape each picture trains in: pictures of one shape make a batch, so wide and tall shapes need no square crop.

A bucket has about as many pixels as the square of the resolution and never more, so that each costs what the square
does (the idea is NovelAI's, https://blog.novelai.net/novelai-improvements-on-stable-diffusion-e10d38db82ac). A picture
goes to the bucket nearest to its own shape in log aspect ratio, the one that cuts off least. None is enlarged beyond a
factor: a small one goes to a smaller bucket of the same kind instead, and every picture is in the plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from trainer import choices
from trainer.config import DataConfig, TrainConfig
from trainer.data.scanning import Item
from trainer.errors import ConfigError

Bucket = tuple[int, int]  # width, height
NUM_CUTS = 4
CROPPED = 0.1  # share of a picture's area that is worth a word when it is cut off
MAX_ENTRIES = 1_000_000  # of an epoch
_STEP_PX = 64
_FROM_PX = 512  # below it, steps of 64 px would leave a base of 128 px the square alone


def cuts(crop: Literal["centre", "random"]) -> range:
    """The numbers of the cuts of a picture that are trained: 0 is the cut in the middle."""
    match crop:
        case "centre":
            return range(1)
        case "random":
            return range(1, NUM_CUTS + 1)
        case _:
            choices.never(crop)


@dataclass(frozen=True)
class Entry:
    """One picture in one bucket; what an epoch shows once."""

    index: int  # into the dataset's items
    bucket: Bucket


def plan(items: list[Item], config: TrainConfig, multiple_px: int) -> list[Entry]:
    """An entry for each picture, resolution and repeat, in this order."""
    return plan_at(items, (config.resolution_px, *config.data.more_resolutions_px), config.data, multiple_px)


def plan_at(items: list[Item], resolutions_px: tuple[int, ...], data: DataConfig, multiple_px: int) -> list[Entry]:
    """The plan for these resolutions. Raises: ConfigError, before it is made, if an epoch of it has no end."""
    num = len(resolutions_px) * sum(item.repeats for item in items)
    if num > MAX_ENTRIES:
        raise ConfigError(
            f"data.repeats and data.more_resolutions_px make {num} pictures an epoch of {len(items)}; allowed: up to "
            f"{MAX_ENTRIES}. Use fewer repeats; max_steps says how long is trained."
        )
    entries: list[Entry] = []
    for index, item in enumerate(items):
        for resolution_px in resolutions_px:
            bucket = assign(item.width_px, item.height_px, resolution_px, data, multiple_px)
            entries += [Entry(index, bucket)] * item.repeats
    return entries


def assign(width_px: int, height_px: int, resolution_px: int, config: DataConfig, multiple_px: int) -> Bucket:
    """The bucket of a picture: of the largest resolution up to `resolution_px` that enlarges it no more than allowed.

    Where even two multiples squared enlarge it more (`notes` says so), that smallest square is its bucket.
    `resolution_px` is a multiple of `multiple_px`.
    """
    ladder = _ladder(resolution_px, step_px(resolution_px, config, multiple_px), multiple_px)
    for size_px in ladder:
        bucket = _nearest(_wide(size_px, config, multiple_px), width_px, height_px)
        if upscale(width_px, height_px, bucket) <= config.max_upscale:
            return bucket
    return (ladder[-1], ladder[-1])


def shapes(resolution_px: int, config: DataConfig, multiple_px: int) -> list[Bucket]:
    """Every bucket of a resolution, from the widest to the tallest."""
    wide = _wide(resolution_px, config, multiple_px)
    return sorted({*wide, *((height, width) for width, height in wide)}, key=lambda size: size[1] / size[0])


def _wide(resolution_px: int, config: DataConfig, multiple_px: int) -> tuple[Bucket, ...]:
    """The square alone, or with the buckets wider than high."""
    if not config.buckets:
        return ((resolution_px, resolution_px),)
    step = step_px(resolution_px, config, multiple_px)
    return _wide_buckets(resolution_px, step, max(step, 2 * multiple_px), config.max_aspect_ratio)


def step_px(resolution_px: int, config: DataConfig, multiple_px: int) -> int:
    """What sides of buckets are multiples of: the setting, or 64 px, or an eighth of resolutions below 512.

    It is always a multiple of `multiple_px`, which the family asks for.
    """
    if config.bucket_step_px:
        return math.lcm(config.bucket_step_px, multiple_px)
    if resolution_px < _FROM_PX:
        return multiple_px * max(1, round(resolution_px / 8 / multiple_px))
    return multiple_px * math.ceil(_STEP_PX / multiple_px)


@lru_cache(maxsize=256)
def _ladder(resolution_px: int, step: int, multiple_px: int) -> tuple[int, ...]:
    """Resolutions to try, largest first: by steps, then by single multiples down to two of them."""
    lowest = min(2 * multiple_px, resolution_px)
    coarse = range(resolution_px, max(step, lowest) - 1, -step)
    last = coarse[-1] if coarse else resolution_px + multiple_px
    return (*coarse, *range(last - multiple_px, lowest - 1, -multiple_px))


@lru_cache(maxsize=4096)
def _wide_buckets(resolution_px: int, step: int, lowest_px: int, max_aspect_ratio: float) -> tuple[Bucket, ...]:
    """The square and the buckets wider than high, of at most as many pixels; for tall pictures they are turned."""
    buckets = [(resolution_px, resolution_px)]
    for height in range(resolution_px // step * step, lowest_px - 1, -step):
        width = resolution_px**2 // height // step * step
        if height < width <= height * max_aspect_ratio:
            buckets.append((width, height))
    return tuple(buckets)


def _nearest(wide: tuple[Bucket, ...], width_px: int, height_px: int) -> Bucket:
    """The bucket nearest in log aspect ratio; the larger of two equally near buckets."""
    # Rounded, so that two ratios that are equal but for float error are a tie, which the larger bucket wins.
    wanted = math.log(max(width_px, height_px) / min(width_px, height_px))
    width, height = min(
        wide, key=lambda bucket: (round(abs(math.log(bucket[0] / bucket[1]) - wanted), 9), -bucket[0] * bucket[1])
    )
    return (width, height) if width_px >= height_px else (height, width)


def upscale(width_px: int, height_px: int, bucket: Bucket) -> float:
    """The factor by which a picture is scaled to cover a bucket."""
    return max(bucket[0] / width_px, bucket[1] / height_px)


def cut_off(width_px: int, height_px: int, bucket: Bucket) -> float:
    """Share of a picture's area that is lost when it covers a bucket."""
    picture, shape = width_px / height_px, bucket[0] / bucket[1]
    return 1 - min(picture / shape, shape / picture)


def num_cropped(entries: list[Entry], items: list[Item]) -> int:
    """How many pictures lose more than a tenth of their area in one of their buckets."""
    return len({entry.index for entry in entries if _cut(entry, items) > CROPPED})


def notes(entries: list[Entry], items: list[Item], config: DataConfig) -> list[str]:
    """A line for each picture that even the smallest bucket enlarges more than allowed."""
    lines = []
    for entry in dict.fromkeys(entries):
        item = items[entry.index]
        factor = upscale(item.width_px, item.height_px, entry.bucket)
        if factor > config.max_upscale:
            lines.append(
                f"{item.name} is {item.width_px} x {item.height_px} px and is enlarged {factor:.1f} times to the "
                f"smallest bucket, {_named(entry.bucket)}; data.max_upscale is {config.max_upscale:g}."
            )
    return lines


def describe(entries: list[Entry], items: list[Item]) -> str:
    """The plan as a table: each bucket, its pictures, how often an epoch shows them, and how much is cut off."""
    # A row for each bucket, the largest first.
    lines = [f"{'bucket':<13}{'pictures':>9}{'an epoch':>10}   cut off"]
    for bucket in sorted({entry.bucket for entry in entries}, key=lambda size: (-size[0] * size[1], size)):
        inside = [entry for entry in entries if entry.bucket == bucket]
        cuts = [_cut(entry, items) for entry in inside]
        low, high = f"{min(cuts):.0%}", f"{max(cuts):.0%}"
        lines.append(
            f"{_named(bucket):<13}{len({entry.index for entry in inside}):>9}{len(inside):>10}   "
            f"{low if low == high else f'{low} to {high}'}"
        )

    # The sum below them.
    num_cut = num_cropped(entries, items)
    num_shown = len({entry.index for entry in entries})
    loss = f"none loses more than {CROPPED:.0%}."
    if num_cut:
        loss = f"{num_cut} of them lose{'s' if num_cut == 1 else ''} more than {CROPPED:.0%} of the area."
    plural = "" if num_shown == 1 else "s"
    lines.append(f"{num_shown} picture{plural}, shown {len(entries)} times an epoch; {loss}")
    return "\n".join(lines)


def _cut(entry: Entry, items: list[Item]) -> float:
    item = items[entry.index]
    return cut_off(item.width_px, item.height_px, entry.bucket)


def _named(bucket: Bucket) -> str:
    return f"{bucket[0]} x {bucket[1]}"


def refuse_longer(items: list[Item], config: TrainConfig, multiple: int, longest_px: int) -> None:
    """Refuse pictures whose buckets are longer than a base has positions for: a table in some transformers.

    Raises: ConfigError, which names the first.
    """
    for entry in plan(items, config, multiple):
        if max(entry.bucket) > longest_px:
            raise ConfigError(
                f"{items[entry.index].name} would be trained at {entry.bucket[0]}x{entry.bucket[1]} px, but this base "
                f"has positions for {longest_px} px a side; lower resolution_px or data.max_aspect_ratio."
            )
