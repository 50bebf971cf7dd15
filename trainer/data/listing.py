"""Which files of a folder may be part of a dataset; whatever is not looked into is reported with its reason."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from trainer.data import other_tools_files
from trainer.data.formats import CAPTION_SUFFIXES, IMAGE_SUFFIXES
from trainer.data.picture_file import first_names


def list_files(folder: Path, elsewhere: dict[Path, str], problems: list[str]) -> list[Path]:
    """All files that may be meant, sorted; hidden, linked and foreign folders are not looked into, which is reported.

    `elsewhere` are folders that another setting names, with the setting.
    """
    files: list[Path] = []
    hidden: list[str] = []

    def unreadable(error: OSError) -> None:
        place = os.path.relpath(str(error.filename), folder)
        problems.append(f"{place} can't be looked into ({error.strerror}): its pictures are left out.")

    for place, folders, names in os.walk(folder, onerror=unreadable):
        here = Path(place)

        # Folders that are not of the set: os.walk passes over what is removed from its list.
        for name in sorted(folders):
            reason = _why_aside(here / name, elsewhere)
            if reason is not None:
                folders.remove(name)
            if reason:
                shown = (here / name).relative_to(folder).as_posix()
                problems.append(f"folder {shown} {reason}: its pictures are left out.")

        # Files, but those that systems leave behind.
        own = [name for name in names if not other_tools_files.is_litter(name)]
        hidden += [name for name in own if name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)]
        files += [here / name for name in own if not name.startswith(".")]

    # What is hidden or can't be read.
    if hidden:
        verb = "is" if len(hidden) == 1 else "are"
        problems.append(f"{first_names(hidden)} {verb} hidden (the name begins with a dot): left out.")
    lost = {path: reason for path in files if (reason := _why_unreadable(path))}
    problems += [
        f"{path.relative_to(folder).as_posix()} {reason}: left out."
        for path, reason in lost.items()
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    return sorted(path for path in files if path not in lost)


def _why_aside(path: Path, elsewhere: dict[Path, str]) -> str | None:
    """Why the pictures of a folder are not of the set, as the end of a sentence; None where they are.

    "" where the folder has no pictures, so that nothing need be reported.
    """
    if path.name == other_tools_files.EDITS:
        return ""
    if os.path.islink(path):
        return "is a link to another folder"
    if field := elsewhere.get(path.resolve()):
        return f"is {field}"
    reason = (
        "is hidden (its name begins with a dot)" if path.name.startswith(".") else other_tools_files.aside(path.name)
    )
    # Names such as `samples` may be the artist's own: a caption inside tells.
    if (
        not reason
        and (reason := other_tools_files.aside_without_captions(path.name))
        and other_tools_files.holds(path, CAPTION_SUFFIXES)
    ):
        return None
    if not reason:
        return None
    return reason if other_tools_files.holds(path, IMAGE_SUFFIXES) else ""


def _why_unreadable(path: Path) -> str:
    """Why a name of a folder is no file that can be read; "" if it is."""
    try:
        return "" if stat.S_ISREG(path.stat().st_mode) else "is no file"
    except FileNotFoundError:
        return "is a link that leads nowhere"
    except (OSError, ValueError) as error:  # ValueError: a zero in the name
        return f"can't be reached ({getattr(error, 'strerror', None) or error})"
