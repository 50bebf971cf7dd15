"""A batch's TOML or CSV file -> one row after the other, however many: each a stack and a wanted name, or what is wrong with it.

CSV, as spreadsheet programs write it: the first line names the columns, which are the options of `velatura render` and a few settings more;
a cell that is empty or isn't there is what the command's option says. `lora` holds FILE:WEIGHT, several with `;` between. Files are found from where
the command was started.
"""

from __future__ import annotations

import csv
import difflib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainer import encodings, presets, spreadsheet
from trainer.config import BatchConfig, StackConfig, parse
from trainer.config.batch import MAX_PICTURES, NAME, adapter, check_name, seeds
from trainer.config.parsing import from_toml
from trainer.errors import ConfigError, UserError
from trainer.render import command
from trainer.schema import path_kind

COLUMNS = {
    "prompt": "prompt", "negative": "negative_prompt", "base": "base", "lora": "", "seed": "seed", "steps": "steps", "size": "", "guidance": "guidance_scale",
    "rescale": "guidance_rescale", "true_guidance": "true_guidance_scale", "sampler": "sampler", "mode": "mode",
    "wide_weights": "wide_weights", "family": "family", "name": "",
}  # fmt: skip
MAX_TOML_BYTES = 8 << 20
MAX_ROW_CHARS = 1 << 17
_CHARS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Defaults:
    """The command's options: what a row leaves out."""

    base: str = "imprimatura"
    prompt: str = ""
    negative: str = ""
    lora: tuple[str, ...] = ()
    seed: int = 1
    steps: int | None = None  # what is None is the base's own
    size: str | None = None
    guidance: float | None = None
    name: str = NAME
    others: tuple[str, ...] = ()  # KEY=VALUE for what has no option of its own

    def values(self) -> dict[str, Any]:
        """As values of a StackConfig."""
        said = {"base": self.base, "prompt": self.prompt, "negative_prompt": self.negative, "seed": self.seed}
        said |= {key: value for key, value in (("steps", self.steps), ("guidance_scale", self.guidance)) if value is not None}
        return said | command.sides(self.size) | {"adapters": [adapter(text) for text in self.lora]} | others(self.others)


@lru_cache(8)
def others(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Settings of a StackConfig that every row has unless it says so itself. Raises: ConfigError naming what there is."""
    found = presets.parse_overrides(list(pairs))
    allowed = [key for key in StackConfig.model_fields if key not in ("version", "adapters")]
    if unknown := [key for key in found if key not in allowed]:
        raise ConfigError(f"--set {unknown[0][:80]}: a batch has no such setting; allowed: {', '.join(allowed)}. LoRAs with all their settings go in a .toml.")
    return found


@dataclass(frozen=True)
class Row:
    """One wanted picture; `stack` is None if the row can't be used, and `problem` says why."""

    number: int  # from 1
    where: str  # for people: its place in the file
    stack: StackConfig | None
    name: str
    problem: str = ""


def read(path: Path, defaults: Defaults) -> Iterator[Row]:
    """The rows of a .toml or .csv file, one at a time. Raises: ConfigError if the file as a whole can't be used."""
    kinds = {".toml": _toml, ".csv": _csv}
    if path.suffix.lower() not in kinds:
        raise ConfigError(f"jobs file is {str(path)!r}; allowed: a .toml or a .csv.")
    try:
        if not path.is_file():
            raise ConfigError(f"jobs file {str(path)!r}: no such file.")
        check_name(defaults.name)
        others(defaults.others)
        yield from kinds[path.suffix.lower()](path, defaults)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} can't be used: {str(error)[:1000]}") from None


def _row(number: int, where: str, values: dict[str, Any], name: str, size: str | None = None) -> Row:
    try:
        return Row(number, where, parse(StackConfig, values | command.sides(size), "the row"), check_name(name))
    except (UserError, ValueError, RecursionError) as error:
        return Row(number, where, None, "", " ".join(str(error)[:1000].split()))


# TOML.


def _toml(path: Path, defaults: Defaults) -> Iterator[Row]:
    if path.stat().st_size > MAX_TOML_BYTES:
        raise ConfigError(f"{path} has {path.stat().st_size} bytes; allowed: up to {MAX_TOML_BYTES}, or a .csv.")
    batch = parse(BatchConfig, from_toml(path.read_bytes(), str(path)), str(path))
    common = defaults.values() | batch.settings()
    stacks = [[one.model_dump() for one in stack] for stack in batch.stacks] or [common["adapters"]]
    every_seed = [range(defaults.seed, defaults.seed + 1)] if not batch.seeds else [seeds(item) for item in batch.seeds]
    number = 0
    for prompt, stack, weight in itertools.product(batch.prompts or (defaults.prompt,), stacks, batch.weights):
        adapters = [_times(one, weight) for one in stack]
        for seed in itertools.chain.from_iterable(every_seed):
            number += 1
            values = common | {"prompt": prompt, "adapters": adapters, "seed": seed}
            yield _row(number, f"picture {number}", values, batch.name or defaults.name)


def _times(one: dict[str, Any], factor: float) -> dict[str, Any]:
    """An adapter with its weights times a factor, rounded where only floating point put digits: 0.8 * 0.1 is 0.08."""
    return one | {key: round(one[key] * factor, 9) for key in ("weight", "text_weight") if one.get(key) is not None}


# CSV.


def _csv(path: Path, defaults: Defaults) -> Iterator[Row]:
    with path.open(encoding=encodings.of_file(path), newline="") as file:
        lines = _Lines(file)
        reader = None
        head: list[str] = []
        number = 0
        while True:
            first = reader.line_num + 1 if reader else 1
            lines.chars = 0
            try:
                reader = reader or spreadsheet.reader(lines, strict=True)
                cells = next(reader, None)
            except csv.Error as error:
                raise ConfigError(f"line {first} of {path} is not CSV: {error}.") from None
            except UnicodeError:
                with path.open("rb") as damaged:
                    raise ConfigError(f"{path} {encodings.refusal(damaged)}; save it as UTF-8, which Excel calls CSV UTF-8.") from None
            if cells is None:
                break
            if not any(cell.strip() for cell in cells):
                continue
            if not head:
                if any("\0" in cell for cell in cells):
                    raise ConfigError(f"{path} is not UTF-8: it looks like UTF-16 without a mark; save it as UTF-8, which Excel calls CSV UTF-8.")
                head = _head(cells, str(path))
                continue
            number += 1
            if number > MAX_PICTURES:
                raise ConfigError(f"{path} has more than {MAX_PICTURES} rows, which is what is allowed.")
            yield _cells(number, f"row {number} (line {first})", dict(zip(head, cells, strict=False)), cells[len(head) :], defaults)
        if not head:
            raise ConfigError(f"{path} is empty; allowed: a first line with some of {','.join(COLUMNS)}, then a row for each picture.")


class _Lines:
    """A file's lines for the CSV reader, none longer than what a row may have; `chars` counts those since it was last set."""

    def __init__(self, file: Any) -> None:
        self.file, self.chars = file, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = ""
        while not line.endswith("\n") and (piece := self.file.readline(_CHARS_AT_ONCE)):
            line += piece
            self.chars += len(piece)
            if self.chars > MAX_ROW_CHARS:
                raise csv.Error(f"it goes on for more than {MAX_ROW_CHARS} characters; is a quote left open?")
        if not line:
            raise StopIteration
        return line


def head(cells: list[str]) -> list[str]:
    """The columns that a first line names. Raises: ConfigError with every one that is unknown or stands twice."""
    return _head(cells, "the jobs file")


def is_path(column: str) -> bool:
    """Whether what stands in this column is opened."""
    field = StackConfig.model_fields.get(COLUMNS.get(column, ""))
    return field is not None and bool(path_kind(field))


def _head(cells: list[str], path: str) -> list[str]:
    """The columns. Raises: ConfigError with every one that is unknown or stands twice."""
    names = [cell.strip().lower() for cell in cells]
    problems = []
    for place, name in enumerate(names):
        close = difflib.get_close_matches(name[:80], COLUMNS, n=1)
        if name not in COLUMNS:
            problems.append(f"column {place + 1} is {name[:80]!r}" + (f"; did you mean {close[0]}?" if close else ""))
        elif name in names[:place]:
            problems.append(f"column {place + 1} is {name!r} for the second time")
    if problems:
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ConfigError(f"{path}: {'; '.join(problems[:10])}{more}. Allowed, each once and with commas, semicolons or tabs between: {', '.join(COLUMNS)}.")
    return names


def _cells(number: int, where: str, row: dict[str, str], beyond: list[str], defaults: Defaults) -> Row:
    if any(cell.strip() for cell in beyond):
        return Row(number, where, None, "", f"it has {len(row) + len(beyond)} cells; there are {len(row)} columns. A text with a comma goes in quotes.")
    said = {column: cell if column in ("prompt", "negative") else cell.strip() for column, cell in row.items() if cell.strip()}
    values = defaults.values() | {COLUMNS[column]: cell for column, cell in said.items() if COLUMNS[column]}
    try:
        if "lora" in said:
            values["adapters"] = [adapter(text) for text in said["lora"].split(";") if text.strip()]
    except ValueError as error:
        return Row(number, where, None, "", str(error)[:1000])
    return _row(number, where, values, said.get("name", defaults.name), said.get("size"))
