"""The settings of a report: what differs from the defaults, then everything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from trainer.config import TrainConfig
from trainer.printing import escape
from trainer.runs import Run

# A path in a file that is shown as it stands.
_PLACE = re.compile(r"""(["'])((?:/|~|[A-Za-z]:[\\/]|\\\\)[^"'\n]{1,4000})""")

Row = tuple[str, str, str, str | None]  # key, label, value, default


def settings(run: Run, config: TrainConfig | None) -> str:
    """The tables of the settings; the bare file, its paths by their last names, if it can't be read."""
    if config is None:
        try:
            text = run.config_file.read_bytes()[:100_000].decode("utf-8", "replace")
        except OSError:
            return ""
        return f"<pre>{escape(_PLACE.sub(lambda place: place[1] + PurePath(place[2]).name, text))}</pre>"
    all_rows = list(rows(config))
    changed = [row for row in all_rows if row[3] is not None and row[2] != row[3]]
    return (
        f"<p>{len(changed)} of {len(all_rows)} differ from the defaults:</p>{_table(changed, with_default=True)}"
        f"<details><summary>All settings</summary>{_table(all_rows, with_default=False)}</details>"
    )


def rows(group: Any, prefix: str = "") -> Iterator[Row]:
    """`(key, label, value, default)` of every setting; a setting without default counts as changed."""
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        if hasattr(type(value), "model_fields"):
            yield from rows(value, f"{prefix}{name}.")
        else:
            default = "" if field.is_required() else _spelled(field.default)
            yield f"{prefix}{name}", field.title or name, _spelled(value), default


def _spelled(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "\n".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(rows: list[Row], with_default: bool) -> str:
    cells = []
    for key, label, value, default in rows:
        last = f'<td class="quietly">{_lines(default)}' if with_default else ""
        cells.append(f'<tr><td>{escape(label)}<td><code>{escape(key)}</code><td class="words">{_lines(value)}{last}')
    heads = "<th>Setting<th>Key<th>Value" + ("<th>Default" if with_default else "")
    return f'<div class="wide"><table><tr>{heads}</tr>{"".join(cells)}</table></div>'


def _lines(text: str | None) -> str:
    return escape(text or "").replace("\n", "<br>") or "–"
