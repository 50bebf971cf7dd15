"""A table pasted from a spreadsheet, or typed, as the rows of a batch; what is wrong with it is said all at once.

Spreadsheet programs copy tabs between cells and quotes around a cell that holds a line break; CSV with commas or
semicolons is read as well, by the same reader as a jobs file (`trainer.render.jobs_file`).
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app import batches
from app.batches import Jobs
from app.context import Context
from app.texts import say, say_num
from app.views import notice_html
from trainer import spreadsheet
from trainer.errors import ConfigError, UserError
from trainer.printing import escape, plain

if TYPE_CHECKING:
    from trainer.render.jobs_file import Row

MAX_CHARS = 1_000_000
_PREVIEW = 5
_MOST_PROBLEMS = 12
_MOST_CHECKED = 200  # rows that are looked through cell by cell for what is wrong


@dataclass(frozen=True)
class Table:
    """What a pasted text is: its columns as written and what each became, its rows, and every problem in words."""

    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]
    problems: tuple[str, ...]
    jobs: Jobs | None  # None where there is a problem

    @property
    def complaint(self) -> str:
        """All problems as one text, the first of them in full."""
        more = len(self.problems) - _MOST_PROBLEMS
        return "\n".join([*self.problems[:_MOST_PROBLEMS], *([say("table.more", more=more)] if more > 0 else [])])


def read(context: Context, text: str) -> Table:
    """The table of a text. Raises: ConfigError for a text that is longer than a page may send."""
    if len(text) > MAX_CHARS:
        raise ConfigError(say("table.too_long", num=len(text), most=MAX_CHARS))
    try:
        rows = _rows(text)
    except csv.Error as error:
        return Table((), (), (say("table.unreadable", reason=str(error)[:200]),), None)
    if not rows:
        return Table((), (), (), None)
    if len(rows) > batches.MAX_PAGE_PICTURES + 1:
        problem = say("table.too_many", num=len(rows) - 1, most=batches.MAX_PAGE_PICTURES)
        return Table((), (), (problem,), None)
    return _checked(context, rows[0], [tuple(row) for row in rows[1:]])


def _rows(text: str) -> list[list[str]]:
    """The rows that hold something, the first line's among them. Raises: csv.Error."""
    text = text.lstrip("\ufeff").replace("\0", "")
    first = next((line for line in text.splitlines() if line.strip()), "")
    # One column, copied: what stands in its cells separates none of them.
    single = not any(mark in first for mark in ",;\t")
    lines = io.StringIO(("sep=\t\n" if single else "") + text, newline="")
    return [row for row in spreadsheet.reader(lines, strict=True) if any(cell.strip() for cell in row)]


def _checked(context: Context, first: list[str], rows: list[tuple[str, ...]]) -> Table:
    from trainer.render import jobs_file

    # The columns.
    head = [jobs_file.column_of(cell) for cell in first]
    columns = tuple((plain(cell.strip(), 80), column) for cell, column in zip(first, head, strict=True))
    problems = [say("table.head", problem=problem.removesuffix("?"), columns=", ".join(jobs_file.COLUMNS))
                for problem in jobs_file.head_problems(first)]  # fmt: skip
    if not any(head):
        problems.insert(0, say("table.no_column"))
        return Table(columns, tuple(rows), tuple(problems), None)
    problems += [] if rows else [say("table.no_row")]

    # Each row, its names looked up once however many rows have them.
    known: dict[tuple[str, str], str | UserError] = {}
    written = [[column for column in head if column]]
    num_bad = 0
    for number, cells in enumerate(rows, 1):
        given = {column: cell for column, cell in zip(head, cells, strict=False) if column}
        wrong = []
        for column, cell in given.items():
            if cell.strip() and (column == "lora" or jobs_file.is_path(column)):
                answer = _looked_up(context, column, cell, known)
                if isinstance(answer, UserError):
                    wrong.append(say("table.row_column", row=number, column=column, problem=plain(str(answer), 300)))
                    given[column] = ""
                else:
                    given[column] = answer
        row = jobs_file.row_of(
            number, say("table.row", row=number), given, list(cells[len(head) :]), jobs_file.Defaults()
        )
        if row.stack is None:
            num_bad += 1
            wrong += (
                _wrong_cells(row, given)
                if num_bad <= _MOST_CHECKED
                else [say("table.row_problem", row=number, problem=_words(row))]
            )
        problems += wrong
        written.append([given.get(column, "") for column in written[0]])
    if problems:
        return Table(columns, tuple(rows), tuple(problems), None)
    out = io.StringIO()
    csv.writer(out).writerows(written)
    return Table(columns, tuple(rows), (), Jobs(out.getvalue(), ".csv"))


def _looked_up(
    context: Context, column: str, cell: str, known: dict[tuple[str, str], str | UserError]
) -> str | UserError:
    """A cell that names files, with the files that are meant, or why there are none."""
    if (column, cell) not in known:
        try:
            known[column, cell] = batches.found(context, column, cell)
        except UserError as error:
            known[column, cell] = error
        except ValueError as error:
            known[column, cell] = ConfigError(str(error)[:300])
    return known[column, cell]


def _wrong_cells(row: Row, given: dict[str, str]) -> list[str]:
    """Which cells of a row that can't be used are wrong by themselves, else what is wrong with the row."""
    from trainer.render import jobs_file

    wrong = []
    for column, cell in given.items():
        alone = jobs_file.row_of(row.number, row.where, {column: cell}, [], jobs_file.Defaults())
        if alone.stack is None:
            wrong.append(say("table.row_column", row=row.number, column=column, problem=_words(alone)))
    return wrong or [say("table.row_problem", row=row.number, problem=_words(row))]


def _words(row: Row) -> str:
    """What is wrong with a row, without how many settings are."""
    return plain(re.sub(r"^\d+ settings? in the row can't be used: ", "", row.problem), 300)


# In the page.


def html(table: Table, estimate: str) -> str:
    """What each column became, the first rows, and what is wrong or how many pictures it makes."""
    # The columns as they were understood, and the first rows.
    heads = "".join(
        f"<th>{escape(written or say('table.empty'), 80)}<small>{escape(_became(column))}</small></th>"
        for written, column in table.columns
    )
    body = "".join(
        f"<tr><td>{number}</td>{''.join(f'<td>{escape(cell.strip(), 120)}</td>' for cell in row)}</tr>"
        for number, row in enumerate(table.rows[:_PREVIEW], 1)
    )
    more = len(table.rows) - _PREVIEW
    rest = f"<p>{say_num('table.more_rows', more)}</p>" if more > 0 else ""
    shown = (
        f'<div class="table-view"><table><tr><th>{say("table.row_head")}</th>{heads}</tr>{body}</table></div>{rest}'
        if heads
        else ""
    )

    # What is wrong with it, or what it makes.
    if table.problems:
        words = notice_html("bad", say_num("table.problems", len(table.problems)), table.complaint.splitlines())
    else:
        words = notice_html("good", say_num("table.pictures", len(table.rows)), [estimate])
    return f'<div class="pasted">{words}{shown}</div>'


def _became(column: str) -> str:
    words = {
        "negative": say("table.negative_prompt"),
        "rescale": say("table.guidance_rescale"),
        "true_guidance": say("table.true_guidance"),
        "wide_weights": say("table.wide_weights"),
        "name": say("table.file_name"),
    }
    return f"→ {words.get(column, column)}" if column else say("table.unknown")
