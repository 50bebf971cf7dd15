"""What the head of a preset says of itself: what it was made for, what memory it needs, and whether it was run.

The head is the comment that a preset begins with; it is written for people, in sentences that begin alike (`Made for`,
`Memory:`). Where it says nothing of memory, its tiers do. What nothing says is left out; nothing is guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from trainer import preset_tiers, presets
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

    @property
    def evidence(self) -> str:
        """Whether it was run, in words."""
        return {True: "run", False: "not run at this size", None: ""}[self.was_run]


def of(name: str) -> Head:
    """The head of a preset by its name. Raises: ConfigError if its file can't be read."""
    path = presets.path_of(name)
    try:
        head, memory = _of(path, path.stat().st_mtime_ns), _of_tiers(name)
        return replace(head, memory=memory) if memory and (preset_tiers.MARK in name or not head.memory) else head
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"preset {name} can't be read: {error}.") from None


@lru_cache(maxsize=1024)
def _of(path: Path, changed_ns: int) -> Head:
    return read(" ".join(comment(path).splitlines()))


def _of_tiers(name: str) -> str:
    """What a preset's tier takes, or the least that any does; "" without tiers."""
    if tier := preset_tiers.chosen(name):
        return preset_tiers.in_words(tier)
    sizes = [tier for tier in preset_tiers.of(name).values() if tier.name != preset_tiers.CPU]
    return f"{preset_tiers.in_words(sizes[0])}, or a larger one" if sizes else ""


def text(name: str) -> str:
    """A preset's head by its name, with a line on its memory. Raises: OSError, UnicodeDecodeError."""
    said = comment(presets.path_of(name))
    memory = of(name).memory
    return said if not memory or "Memory:" in said and preset_tiers.MARK not in name else f"{said}\nMemory: {memory}."


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
