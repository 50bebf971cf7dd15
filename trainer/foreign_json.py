"""A file of JSON that others wrote -> its table, or one kind of error for all that can be wrong with it.

Configs of base models lie in folders that anybody may have put together: cut short, edited, lists within lists until
Python's parser gives up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 64 << 20  # an index of weights has some hundred kilobytes


def table(path: Path) -> dict[str, Any]:
    """The table in a file. Raises: OSError if it can't be read, ValueError if it holds none."""
    # One byte more than allowed is enough to know, however large the file is.
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_BYTES >> 20} MiB")
    try:
        value = json.loads(raw.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no table")
    return value
