"""What the head of a preset says of itself: what it was made for, what memory it needs, and whether it was run.

The head is the comment that a preset begins with; it is written for people, in sentences that begin alike (`Made for`,
`Memory:`). What a head doesn't say is left out; nothing is guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from trainer import presets
from trainer.errors import ConfigError

_MADE_FOR = re.compile(r"\bMade for (.{1,200}?\bpx)\b")
_MEMORY = re.compile(r"\bMemory: (.{1,400}?)(?=\.(?:\s|$)| Made for\b)")
_ASIDE = re.compile(r" \([^()]*\)")  # where a figure comes from
_COMMAND = re.compile(r"[;,](?: and)? `--rehearse`.*")  # of the command line


@dataclass(frozen=True)
class Head:
    """Words for an artist, "" for what isn't said."""

    made_for: str  # "30-60 pictures at 1024 px"
    memory: str  # "a GPU of 16 GiB"
    was_run: bool | None  # on a base of full size; None if it isn't said


def of(name: str) -> Head:
    """The head of a preset by its name. Raises: ConfigError if its file can't be read."""
    path = presets.path_of(name)
    try:
        return _of(path, path.stat().st_mtime_ns)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"preset {name} can't be read: {error}.") from None


@lru_cache(maxsize=1024)
def _of(path: Path, changed_ns: int) -> Head:
    return read(" ".join(comment(path).splitlines()))


def comment(path: Path) -> str:
    """The lines that a preset's file begins with, without their marks. Raises: OSError, UnicodeDecodeError."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return "\n".join(lines)


def read(comment: str) -> Head:
    """The same of a head's text."""
    made_for, memory = _MADE_FOR.search(comment), _MEMORY.search(comment)
    needed = _COMMAND.sub("", _ASIDE.sub("", memory[1])) if memory else ""
    was_run = None
    if "Not run at this size" in comment:
        was_run = False
    elif "Really run" in comment:
        was_run = True
    return Head(made_for[1] if made_for else "", needed.strip(), was_run)
