"""The rows of a batch's TOML or CSV file, one by one: each a stack and a wanted name, or what is wrong with it.

CSV, as spreadsheet programs write it: the first line names the columns, which are the options of `velatura render` and
a few settings more; a cell that is empty or isn't there is what the command's option says. `lora` holds FILE:WEIGHT,
several with `;` between. Files are found from where the command was started.
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

from trainer import bases, checkpoint_files, encodings, families, presets, printing, runs, spreadsheet
from trainer.config import BatchConfig, StackConfig, parse
from trainer.config.batch import MAX_PICTURES, NAME, adapter, check_name, seeds
from trainer.config.parsing import from_toml
from trainer.errors import ConfigError, UserError
from trainer.render import command
from trainer.render.engine import Engine
from trainer.schema import path_kind

# Columns, and the settings of a StackConfig that they are; nothing for those that are read in their own way.
COLUMNS = {
    "prompt": "prompt",
    "negative": "negative_prompt",
    "base": "base",
    "lora": "",
    "seed": "seed",
    "steps": "steps",
    "size": "",
    "width": "width_px",
    "height": "height_px",
    "guidance": "guidance_scale",
    "rescale": "guidance_rescale",
    "true_guidance": "true_guidance_scale",
    "sampler": "sampler",
    "mode": "mode",
    "wide_weights": "wide_weights",
    "family": "family",
    "name": "",
}
# How else people and other tools head these columns.
_ALSO = {
    "positive": "prompt", "positive prompt": "prompt", "prompts": "prompt", "negative prompt": "negative",
    "model": "base", "base model": "base", "checkpoint": "base", "loras": "lora", "seeds": "seed",
    "sampling steps": "steps", "resolution": "size", "cfg": "guidance", "cfg scale": "guidance",
    "guidance scale": "guidance", "cfg rescale": "rescale", "guidance rescale": "rescale",
    "true guidance scale": "true_guidance", "sampler name": "sampler", "file": "name", "file name": "name",
    "filename": "name",
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
        values = {"base": self.base, "prompt": self.prompt, "negative_prompt": self.negative, "seed": self.seed}
        optional = {"steps": self.steps, "guidance_scale": self.guidance}
        values |= {key: value for key, value in optional.items() if value is not None}
        adapters = [adapter(text) for text in self.lora]
        return values | command.sides(self.size) | {"adapters": adapters} | others(self.others)


@lru_cache(8)
def others(pairs: tuple[str, ...]) -> dict[str, Any]:
    """The settings of a StackConfig that every row has unless it gives its own.

    Raises: ConfigError naming the settings there are.
    """
    values = presets.parse_overrides(list(pairs))
    allowed = [key for key in StackConfig.model_fields if key not in ("version", "adapters")]
    if unknown := [key for key in values if key not in allowed]:
        raise ConfigError(
            f"--set {unknown[0][:80]}: a batch has no such setting; allowed: {', '.join(allowed)}. LoRAs with all "
            f"their settings go in a .toml."
        )
    return values


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
        # A generator's errors come while it is gone through, so that is inside too.
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
    """A row for each combination of the file's lists."""
    if path.stat().st_size > MAX_TOML_BYTES:
        raise ConfigError(f"{path} has {path.stat().st_size} bytes; allowed: up to {MAX_TOML_BYTES}, or a .csv.")
    batch = parse(BatchConfig, from_toml(path.read_bytes(), str(path)), str(path))
    common = defaults.values() | batch.settings()
    stacks = [[choice.model_dump() for choice in stack] for stack in batch.stacks] or [common["adapters"]]
    if batch.steps_of:
        steps = _steps(batch.steps_of, common)
        stacks = [[*stack, step] for stack in stacks for step in steps]
    every_seed = [seeds(item) for item in batch.seeds] or [range(defaults.seed, defaults.seed + 1)]
    # Every prompt with every stack at every weight with every seed, the seed going fastest.
    number = 0
    for prompt, stack, weight in itertools.product(batch.prompts or (defaults.prompt,), stacks, batch.weights):
        adapters = [_times(choice, weight) for choice in stack]
        for seed in itertools.chain.from_iterable(every_seed):
            number += 1
            values = common | {"prompt": prompt, "adapters": adapters, "seed": seed}
            yield _row(number, f"picture {number}", values, batch.name or defaults.name)


def _steps(folder: str, common: dict[str, Any]) -> list[dict[str, Any]]:
    """The saved steps of a run, oldest first, as adapters; the base is opened to write those that are no LoRA yet.

    Raises: UserError.
    """
    run = runs.Run(Path(folder))
    if not run.config_file.is_file():
        raise ConfigError(f"steps_of is {folder[:200]!r}; allowed: the folder of a run.")
    base = common["base"]
    family = common.get("family") or bases.family_of(base)
    keys = Engine(base, families.known(family)).file_keys if checkpoint_files.unwritten(run) else {}
    return [adapter(str(path)) for path in checkpoint_files.files(run, family, keys)]


def _times(choice: dict[str, Any], factor: float) -> dict[str, Any]:
    """An adapter with its weights times a factor, rounded where only floating point put digits: 0.8 * 0.1 is 0.08."""
    weights = {key: choice[key] for key in ("weight", "text_weight") if choice.get(key) is not None}
    return choice | {key: round(weight * factor, 9) for key, weight in weights.items()}


# CSV.


def _csv(path: Path, defaults: Defaults) -> Iterator[Row]:
    """A row for each record after the first, which names the columns."""
    with path.open(encoding=encodings.of_file(path), newline="") as file:
        columns: list[str] = []
        number = 0
        for first_line, cells in _records(path, file):
            if not columns:
                columns = _first_row(cells, path)
                continue
            number += 1
            if number > MAX_PICTURES:
                raise ConfigError(f"{path} has more than {MAX_PICTURES} rows, which is what is allowed.")
            # Rows may be shorter than the first line; what is beyond it is refused in `row_of`.
            values, beyond = dict(zip(columns, cells, strict=False)), cells[len(columns) :]
            yield row_of(number, f"row {number} (line {first_line})", values, beyond, defaults)
        if not columns:
            raise ConfigError(
                f"{path} is empty; allowed: a first line with some of {','.join(COLUMNS)}, then a row for each picture."
            )


def _records(path: Path, file: Any) -> Iterator[tuple[int, list[str]]]:
    """The line that each record begins on, and its cells; empty records are left out. Raises: ConfigError."""
    lines = _Lines(file)
    reader = None
    while True:
        first_line = reader.line_num + 1 if reader else 1
        lines.chars = 0
        try:
            # Finding out what separates the cells reads lines too, and may fail as any record may.
            reader = reader or spreadsheet.reader(lines, strict=True)
            cells = next(reader, None)
        except csv.Error as error:
            raise ConfigError(f"line {first_line} of {path} is not CSV: {error}.") from None
        except UnicodeError:
            with path.open("rb") as damaged:
                raise ConfigError(
                    f"{path} {encodings.refusal(damaged)}; save it as UTF-8, which Excel calls CSV UTF-8."
                ) from None
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield first_line, cells


def _first_row(cells: list[str], path: Path) -> list[str]:
    """The columns that the first record names. Raises: ConfigError."""
    if any("\0" in cell for cell in cells):
        raise ConfigError(
            f"{path} is not UTF-8: it looks like UTF-16 without a mark; save it as UTF-8, which Excel calls CSV UTF-8."
        )
    return _head(cells, str(path))


class _Lines:
    """A file's lines for the CSV reader, which reads a quote that is left open to the end of the file.

    `chars` counts what was read since it was last set; a row may have MAX_ROW_CHARS.
    """

    def __init__(self, file: Any) -> None:
        self.file, self.chars = file, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = ""
        # Piece by piece: a line may be as long as the file.
        while not line.endswith("\n") and (piece := self.file.readline(_CHARS_AT_ONCE)):
            line += piece
            self.chars += len(piece)
            if self.chars > MAX_ROW_CHARS:
                raise csv.Error(f"it goes on for more than {MAX_ROW_CHARS} characters; is a quote left open?")
        if not line:
            raise StopIteration
        return line


def head(cells: list[str]) -> list[str]:
    """The columns that a first line names. Raises: ConfigError with every column that is unknown or stands twice."""
    return _head(cells, "the jobs file")


def is_path(column: str) -> bool:
    """Whether what stands in this column is a path, which is opened."""
    field = StackConfig.model_fields.get(COLUMNS.get(column, ""))
    return field is not None and bool(path_kind(field))


def column_of(cell: str) -> str:
    """The column that a cell of the first line names; "" for none."""
    words = " ".join(cell.lower().replace("_", " ").split())
    return _ALSO.get(words) or next((column for column in COLUMNS if column.replace("_", " ") == words), "")


def head_problems(cells: list[str]) -> list[str]:
    """Every column of a first line that is unknown or stands twice, in words."""
    names, problems = [column_of(cell) for cell in cells], []
    for place, (cell, name) in enumerate(zip(cells, names, strict=True)):
        close = difflib.get_close_matches(cell.strip().lower()[:80], COLUMNS, n=1)
        if not name:
            problem = f"column {place + 1} is {cell.strip()[:80]!r}"
            problems.append(problem + (f"; did you mean {close[0]}?" if close else ""))
        elif name in names[:place]:
            problems.append(f"column {place + 1} is {name!r} for the second time")
    return problems


def _head(cells: list[str], path: str) -> list[str]:
    """The columns. Raises: ConfigError with every column that is unknown or stands twice."""
    if problems := head_problems(cells):
        raise ConfigError(
            f"{path}: {printing.some(problems, '; ', most=10)}. Allowed, each once and with commas, semicolons or tabs "
            f"between: {', '.join(COLUMNS)}."
        )
    return [column_of(cell) for cell in cells]


def row_of(number: int, where: str, row: dict[str, str], beyond: list[str], defaults: Defaults) -> Row:
    """The row of these cells by their columns; `beyond` are those that no column is there for."""
    if any(cell.strip() for cell in beyond):
        num_cells = f"it has {len(row) + len(beyond)} cells; there are {len(row)} columns"
        return Row(number, where, None, "", f"{num_cells}. A text with a comma goes in quotes.")
    if row.get("size", "").strip() and (row.get("width", "").strip() or row.get("height", "").strip()):
        return Row(number, where, None, "", "it has a size beside a width or height; give one of them")
    # An empty cell is as if it weren't there. Blanks count in what is drawn, and nowhere else.
    given = {
        column: cell if column in ("prompt", "negative") else cell.strip()
        for column, cell in row.items()
        if cell.strip()
    }
    values = defaults.values() | {COLUMNS[column]: cell for column, cell in given.items() if COLUMNS[column]}
    try:
        if "lora" in given:
            values["adapters"] = [adapter(text) for text in given["lora"].split(";") if text.strip()]
    except ValueError as error:
        return Row(number, where, None, "", str(error)[:1000])
    return _row(number, where, values, given.get("name", defaults.name), given.get("size"))
