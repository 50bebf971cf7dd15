"""The rows of a CSV file as spreadsheet programs write it, with commas, semicolons or tabs between the cells.

The first line tells which: it has most of that. Excel writes semicolons where the comma is the decimal mark, and may
begin with a line `sep=;`.
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
    """Python's own reader of the lines, with the separator that the first line tells.

    Raises: csv.Error from the lines.
    """
    # The first line that isn't empty.
    later = iter(lines)
    early = []
    for line in later:
        early.append(line)
        if line.strip():
            break
    first = early[-1] if early else ""

    # Excel's own line is no row. It becomes an empty row, so that the numbers of the others stay.
    declared = re.fullmatch(r'"?sep=([,;\t|])"?[\r\n]*', first, re.IGNORECASE)
    if declared:
        early[-1] = "\n"
    separator = declared[1] if declared else max(_SEPARATORS, key=first.count)
    return csv.reader(itertools.chain(early, later), delimiter=separator, strict=strict)
