"""The rows of a CSV file as spreadsheet programs write it: commas between the cells, or semicolons or tabs, by what the first line has most of.

Excel writes semicolons where the comma is the decimal mark, and may begin with a line `sep=;`.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _csv import Reader

_SEPARATORS = ",;\t"  # of as many of each, the earlier


def reader(lines: Iterable[str], strict: bool) -> Reader:
    """Python's own reader of the lines, with the separator that the first one tells; their numbers stay. Raises: csv.Error from the lines."""
    left = iter(lines)
    early = []
    for line in left:
        early.append(line)
        if line.strip():
            break
    first = early[-1] if early else ""
    said = re.fullmatch(r'"?sep=([,;\t|])"?[\r\n]*', first, re.IGNORECASE)
    if said:
        early[-1] = "\n"
    return csv.reader(itertools.chain(early, left), delimiter=said[1] if said else max(_SEPARATORS, key=first.count), strict=strict)
