"""What becomes of every key of every tool, as data: a TOML file a tool, in groups.

In a group, `taken` and `translated` name a key's setting of ours; `no effect` and `can't be` name, by reason, the keys
that it holds for, with blanks between. A name that ends with `*` stands for all that begin so.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from trainer.config.parsing import from_toml
from trainer.other_trainers.rows import STATUSES, Row


@lru_cache(maxsize=64)
def groups(name: str) -> dict[str, dict[str, Row]]:
    """The rows of a tool's file by group and key."""
    file = Path(__file__).parent / f"{name}.toml"
    tables = from_toml(file.read_bytes(), file.name)
    return {group: _rows(by_status) for group, by_status in tables.items()}


def prefixed(group: dict[str, Row], *prefixes: str) -> dict[str, Row]:
    """A group's rows with something before each key."""
    return {f"{prefix}{key}": row for prefix in prefixes for key, row in group.items()}


def _rows(by_status: dict[str, dict[str, str]]) -> dict[str, Row]:
    made: dict[str, Row] = {}
    for status in STATUSES:
        for left, right in by_status.get(status, {}).items():
            if status in ("taken", "translated"):
                made[left] = Row(status, right)
            else:
                made |= {key: Row(status, "", left) for key in right.split()}
    return made
