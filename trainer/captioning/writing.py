"""Captions for a set of pictures, one after the other, each written as soon as it is there and all of them one edit.

A `visit` names the edit. Whoever comes again with it goes on: what the edit gave a caption already is not looked at a
second time, whatever was done to it since. A caption that another hand wrote meanwhile stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from trainer.captioning import rules
from trainer.captioning.contract import Describe
from trainer.captioning.rules import Rules
from trainer.config import DataConfig
from trainer.data import caption_files, edits, open_image, sources
from trainer.data.picture_file import PictureFile
from trainer.errors import DataError


@dataclass(frozen=True)
class Planned:
    """How many pictures are to get a caption, and how many of these have it from an earlier start."""

    total: int
    done: int
    pictures: int  # of the set


@dataclass(frozen=True)
class Captioned:
    """A picture has its caption; `seconds` since the model is open, `left_s` till the last at this pace."""

    name: str
    caption: str
    done: int
    total: int
    seconds: float
    left_s: float


@dataclass(frozen=True)
class Skipped:
    """A picture gets none, and why."""

    name: str
    why: str
    done: int
    total: int
    seconds: float
    left_s: float


@dataclass(frozen=True)
class Ended:
    """All pictures were looked at, or a stop was asked for."""

    captioned: int
    skipped: int
    seconds: float
    stopped: bool


Event: TypeAlias = "Planned | Captioned | Skipped | Ended"


@dataclass(frozen=True)
class Wanted:
    """Which set, which of its pictures, what its captions become, and what the edit is called."""

    folder: Path
    rules: Rules
    every: bool  # those with a caption too
    what: str
    visit: str
    dry_run: bool = False


def write(wanted: Wanted, opener: Callable[[], Describe], is_stopped: Callable[[], bool]) -> Iterator[Event]:
    """Give the pictures their captions, event by event; the model is opened only if there is a picture to look at.

    Raises: DataError, ModelError.
    """
    # Pictures that this edit gave a caption before are done already.
    pictures = _survey(wanted.folder)
    done = edits.finish(wanted.folder, wanted.visit) if not wanted.dry_run else set()
    before = {picture.name for picture in pictures if _sidecar_name(wanted.folder, picture.path) in done}
    left = [picture for picture in pictures if picture.name not in before and (wanted.every or _is_bare(picture))]
    total, num = len(before) + len(left), len(before)
    yield Planned(total, num, len(pictures))

    # One picture after the other.
    captioned = skipped = 0
    describe = opener() if left else None
    began = time.monotonic()
    for picture in left:
        if is_stopped():
            yield Ended(captioned, skipped, time.monotonic() - began, True)
            return
        assert describe is not None
        caption, why = _one(wanted, picture, describe)
        num, captioned, skipped = num + 1, captioned + (not why), skipped + bool(why)
        seconds = time.monotonic() - began
        place = (num, total, seconds, seconds / (captioned + skipped) * (total - num))
        yield Skipped(picture.name, why, *place) if why else Captioned(picture.name, caption, *place)
    yield Ended(captioned, skipped, time.monotonic() - began, False)


def _survey(folder: Path) -> list[PictureFile]:
    """The pictures of the set. Raises: DataError if it is no folder."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(
            f"the dataset is {str(folder)[:400]!r}, which {what}; it must be a folder, as captions lie beside pictures."
        )
    return sources.survey(folder, DataConfig(folder=str(folder)), "the dataset").pictures


def _is_bare(picture: PictureFile) -> bool:
    """Whether it has no caption; a caption that can't be read is a caption, and somebody's work."""
    return not picture.text and not picture.refusal


def _sidecar_name(folder: Path, picture: Path) -> str:
    return picture.with_suffix(".txt").relative_to(folder).as_posix()


def _one(wanted: Wanted, picture: PictureFile, describe: Describe) -> tuple[str, str]:
    """The caption that was written, or why none was. Raises: DataError if there is no writing."""
    # Read before the model looks, so that whoever writes meanwhile is noticed.
    before = caption_files.raw(picture.path.with_suffix(".txt"))
    try:
        if not wanted.every and caption_files.read_caption(picture.path):
            return "", "it has a caption by now, which stays"
        image = open_image(picture.path)
    except DataError as error:
        return "", str(error)
    caption = rules.caption(describe(image), wanted.rules)
    if not caption:
        return "", "nothing is left to say of it without the words that are left out"
    if not wanted.dry_run and not edits.add(wanted.folder, wanted.what, picture.path, caption, before, wanted.visit):
        return "", "another caption was written for it meanwhile, which stays"
    return caption, ""
