"""kohya's folders, `10_mokka cat`: ten repeats, and `mokka cat` as the caption of pictures that have none."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePath

from trainer.data.folder_rules import MAX_REPEATS
from trainer.data.picture_file import PictureFile

_NAME = re.compile(r"([0-9]{1,9})_(.+)")


def apply_names(folder: Path, pictures: list[PictureFile], problems: list[str]) -> list[PictureFile]:
    """The pictures with the repeats and the caption of the innermost folder that is named like `10_mokka cat`.

    Each such folder adds a line to `problems`. The set's own folder may be one too: its number would repeat everything
    alike, so only its caption is read.
    """
    captions: dict[Path, str] = {}
    captionless: Counter[Path] = Counter()
    result = []
    homes = {place: _innermost(place, folder) for place in {picture.path.parent for picture in pictures}}
    for picture in pictures:
        # The folder whose name counts.
        home = homes[picture.path.parent]
        if home is None:
            result.append(picture)
            continue
        count, caption = _parts(home)
        captions[home] = caption
        if count > MAX_REPEATS:
            result.append(picture)
            continue

        # Its repeats, and its caption where the picture has none. With 0 repeats, the picture is left out.
        missing = not picture.text and not picture.refusal
        captionless[home] += missing
        if count or home == folder:
            repeats = 1 if home == folder else count
            result.append(replace(picture, repeats=repeats, text=caption if missing else picture.text))

    problems += [_line(home, folder, caption, captionless[home]) for home, caption in captions.items()]
    return result


def says_repeats(path: PurePath) -> bool:
    """Whether a folder of a picture's path is named as kohya does, with how often its pictures are repeated."""
    return any(_NAME.fullmatch(part) for part in path.parts[:-1])


def _innermost(place: Path, folder: Path) -> Path | None:
    """The nearest folder from this up to the set's own that is named as kohya does."""
    above = (parent for parent in (place, *place.parents) if parent.is_relative_to(folder))
    return next((parent for parent in above if _NAME.fullmatch(_own_name(parent))), None)


def _parts(home: Path) -> tuple[int, str]:
    number, caption = _NAME.fullmatch(_own_name(home)).groups()  # type: ignore[union-attr]
    return int(number), caption


def _own_name(folder: Path) -> str:
    return folder.name or folder.resolve().name  # "." has no name of its own


def _line(home: Path, folder: Path, caption: str, num_captionless: int) -> str:
    """How the name of a folder was read, for the user."""
    count = _parts(home)[0]
    shown = _own_name(folder) if home == folder else home.relative_to(folder).as_posix()
    if count > MAX_REPEATS:
        return f"folder {shown}: {count} is not read as kohya's repeats, of which up to {MAX_REPEATS} are allowed."
    if home == folder:
        line = f"folder {shown}: its name is read as kohya's, without the repeats, which would repeat everything alike"
    elif count == 0:
        return (
            f"folder {shown}: read as kohya's 0 repeats, its pictures are left out (data.kohya_folders=false reads "
            f"a plain name)."
        )
    else:
        line = f"folder {shown}: read as kohya's {count} repeat{'s' if count > 1 else ''}"
    if num_captionless:
        plural = "s" if num_captionless > 1 else ""
        line += f", and as the caption {caption!r} of {num_captionless} picture{plural} without one"
    return f"{line} (data.kohya_folders=false reads a plain name)."
