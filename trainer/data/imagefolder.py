"""Rows of an imagefolder's `metadata.jsonl` or `metadata.csv` -> captions by picture, and a line for each bad row.

The layout is the one of Hugging Face's `datasets`: `file_name`, beside the pictures or above them, and the caption in
`text` (`caption` and `prompt` are read too). A row may come from anywhere: it only ever names one of the files that
were found in the folder, so that no row leads out of it.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from trainer import encodings, spreadsheet
from trainer.data.caption_files import MAX_CAPTION_BYTES
from trainer.printing import printable

NAMES = ("metadata.jsonl", "metadata.csv")
COLUMNS = ("text", "caption", "prompt")
MAX_FILE_BYTES = 64 << 20
MAX_LINE_BYTES = 4 * MAX_CAPTION_BYTES  # JSON spells a byte with up to six
_SHOWN_ROWS = 20
Row = tuple[int, dict[str, Any] | str]  # line number, and the row or what is wrong with it


def read(path: Path, files: set[Path]) -> tuple[dict[Path, str], list[str]]:
    """Captions of those `files` that the rows of `path` name, and what is wrong with the first 20 other rows."""
    captions: dict[Path, str] = {}
    problems: list[str] = []
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return {}, [f"{path.name} is larger than {MAX_FILE_BYTES >> 20} MiB: not read."]
        for number, row in _jsonl(path) if path.suffix == ".jsonl" else _csv(path):
            problem = row if isinstance(row, str) else _take(row, path.parent, files, captions)
            if problem:
                problems.append(f"{path.name} line {number} {problem}: row not used.")
    except OSError as error:
        problems.append(f"{path.name} can't be read ({error.strerror}): its captions are missing.")
    except UnicodeDecodeError as error:
        problems.append(
            f"{path.name} is damaged {error.encoding.upper()} (byte {error.start}): its captions are missing."
        )
    if len(problems) > _SHOWN_ROWS:
        problems[_SHOWN_ROWS:] = [f"{path.name} has {len(problems) - _SHOWN_ROWS} more rows like these: not used."]
    return captions, problems


def _jsonl(path: Path) -> Iterator[Row]:
    with _utf8(path) as file:
        for number in itertools.count(1):
            raw = file.readline(MAX_LINE_BYTES + 1)
            if not raw:
                return
            if len(raw) > MAX_LINE_BYTES:
                _skip_line(file, raw)
                yield number, f"is longer than {MAX_LINE_BYTES >> 10} KiB"
            elif raw.strip():
                yield number, _json_row(raw)


def _utf8(path: Path) -> IO[bytes]:
    """The file's bytes, made UTF-8 where a BOM says that they are UTF-16 or UTF-32.

    Raises: OSError, UnicodeDecodeError.
    """
    file = path.open("rb")
    head = file.read(4)
    encoding = encodings.of(head)
    file.seek(0)
    if encoding == "utf-8-sig":
        return file
    with file:
        return io.BytesIO(file.read(MAX_FILE_BYTES).decode(encoding).encode())


def _skip_line(file: IO[bytes], raw: bytes) -> None:
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(MAX_LINE_BYTES)


def _json_row(raw: bytes) -> dict[str, Any] | str:
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "is not UTF-8"
    except (ValueError, RecursionError):
        return "is not JSON"
    return row if isinstance(row, dict) else 'is not an object such as {"file_name": "a.png", "text": "a cat"}'


def _csv(path: Path) -> Iterator[Row]:
    with io.TextIOWrapper(_utf8(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = spreadsheet.reader(file, strict=False)
        header: list[str] | None = None
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num, f"is not CSV ({error})"
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if "file_name" not in header:
                    yield 1, f"has no column file_name (found: {_shown(', '.join(header))})"
                    return
            # How `surrogateescape` marks bytes that are not UTF-8: a bad row costs itself, not the file.
            elif any("\udc80" <= letter <= "\udcff" for cell in cells for letter in cell):
                yield reader.line_num, "is not UTF-8"
            elif cells:
                yield reader.line_num, dict(zip(header, cells, strict=False))


def _take(row: dict[str, Any], parent: Path, files: set[Path], captions: dict[Path, str]) -> str | None:
    """Keep the caption of a row in `captions`, or return what is wrong with it."""
    # The picture it names.
    name = row.get("file_name")
    if not isinstance(name, str) or not name.strip():
        return f"has file_name {_shown(repr(name))}; allowed: the name of a picture"
    parts = PurePosixPath(name).parts
    if "\\" in name or "\0" in name or ".." in parts or name.startswith("/") or name[1:2] == ":":
        return f"names {_shown(name)}, which is no plain path below {parent.name}"
    picture = parent.joinpath(*parts)
    if picture not in files:
        return f"names {_shown(name)}, which is no picture here"
    if picture in captions:
        return f"names {_shown(name)} a second time"

    # Its caption.
    column = next((column for column in COLUMNS if row.get(column) not in (None, "")), None)
    if column is None:
        return f"has no caption for {_shown(name)} in any of {', '.join(COLUMNS)}"
    text = row[column]
    if isinstance(text, list) and all(isinstance(line, str) for line in text):
        text = "\n".join(text)
    if not isinstance(text, str):
        return f"has a caption for {_shown(name)} that is no text ({_shown(repr(text))})"
    if len(text.encode("utf-8", "surrogatepass")) > MAX_CAPTION_BYTES:
        return f"has a caption for {_shown(name)} that is too long; allowed: up to {MAX_CAPTION_BYTES >> 10} KiB"
    captions[picture] = text.encode("utf-8", "replace").decode().replace("\0", "").strip()
    return None


def _shown(text: str) -> str:
    """A piece of a row as a message may hold it: printable and short."""
    return printable(text[:80])
