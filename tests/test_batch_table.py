"""A table pasted from a spreadsheet, or typed, becomes a batch's rows; all that is wrong with it is said at once."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

import pytest

from app import batch_estimate, batch_table, batches
from app.context import Context
from app.render_requests import Rendering
from tests.batches import context_with_a_fox
from trainer.errors import ConfigError
from trainer.render import jobs_file

HOSTILE = "<img src=x onerror=window.__owned=1>"


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return context_with_a_fox(tmp_path, tiny)


def rows_of(table: batch_table.Table, tmp_path: Path) -> list[jobs_file.Row]:
    """The rows as the batch's own process reads them."""
    assert table.jobs, table.problems
    path = tmp_path / f"jobs{table.jobs.suffix}"
    path.write_text(table.jobs.text, encoding="utf-8")
    return list(jobs_file.read(path, jobs_file.Defaults()))


@pytest.mark.parametrize(
    "text",
    [
        # As Excel, Sheets and LibreOffice copy it.
        'Seed\tPrompt\tNegative Prompt\r\n7\t"a ""red"" fox\nin the snow"\tblur, text\r\n8\tan owl, white\t\r\n',
        # As CSV, with commas and with semicolons.
        'seed,prompt,negative_prompt\n7,"a ""red"" fox\nin the snow","blur, text"\n8,"an owl, white",\n',
        'sep=;\nSEED;positive prompt;negative\n7;"a ""red"" fox\nin the snow";blur, text\n8;an owl, white;\n\n',
        # As it is typed, with empty rows and no end of line; a mark that some programs put first.
        '\ufeff\n\nseed\tprompts\tnegative\n7\t"a ""red"" fox\nin the snow"\tblur, text\n\t\t\n8\tan owl, white',
    ],
)
def test_cells_of_every_spreadsheet_program_are_the_same_rows(context: Context, tmp_path: Path, text: str) -> None:
    first, second = rows_of(batch_table.read(context, text), tmp_path)
    assert first.stack and second.stack
    assert (first.stack.seed, first.stack.prompt, first.stack.negative_prompt) == (
        7, 'a "red" fox\nin the snow', "blur, text"
    )  # fmt: skip
    assert (second.stack.seed, second.stack.prompt, second.stack.negative_prompt) == (8, "an owl, white", "")


def test_one_column_is_a_prompt_a_row_whatever_marks_are_in_it(context: Context, tmp_path: Path) -> None:
    rows = rows_of(batch_table.read(context, "prompt\na fox, red\nan owl; white\n"), tmp_path)
    assert [row.stack and row.stack.prompt for row in rows] == ["a fox, red", "an owl; white"]


def test_the_fields_usual_names_are_known_in_any_order(context: Context, tmp_path: Path, tiny: Path) -> None:
    text = (
        f"CFG Scale\tWidth\theight\tModel\tLoRAs\tSampling steps\tprompt\n4\t32\t64\t{tiny.name}\tfox:0.5\t3\ta fox\n"
    )
    table = batch_table.read(context, text)
    assert [column for _, column in table.columns] == ["guidance", "width", "height", "base", "lora", "steps", "prompt"]
    (row,) = rows_of(table, tmp_path)
    assert row.stack and (row.stack.width_px, row.stack.height_px, row.stack.steps) == (32, 64, 3)
    assert row.stack.guidance_scale == 4 and row.stack.base == str(tiny)
    assert [(lora.file, lora.weight) for lora in row.stack.adapters] == [(str(context.loras / "fox.safetensors"), 0.5)]


def test_every_problem_is_named_with_its_row_and_column_at_once(context: Context) -> None:
    text = (
        "prompt\tsteps\tcolour\tlora\tbase\tseed\tsize\n"
        "a\t0\tred\twolf:0.5\t\t1\t\n"
        "b\t4\t\tfox:much\t/etc\tx\t12y12\n"
        "c\t4\t\tfox\t\t3\t\n"
    )
    problems = "\n".join(batch_table.read(context, text).problems)
    for words in (
        "column 3 is 'colour'", "row 1, steps: steps is '0'", "row 1, lora: LoRA is 'wolf'", "row 2, lora:",
        "row 2, base: base is '/etc', which this server does not offer", "row 2, seed: seed is 'x'", "row 2, size:",
    ):  # fmt: skip
        assert words in problems, (words, problems)
    assert "row 3" not in problems


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a fox\nan owl\n", "the first row names no column"),
        ("prompt\tprompt\na\tb\n", "column 2 is 'prompt' for the second time"),
        ("prompt\tseed\n", "no row below its first"),
        ('prompt\tseed\n"never closed\t1\n', "is a quote left open"),
        ("prompt\tseed\na\t1\tmore\n", "row 1: it has 3 cells; there are 2 columns"),
        ("prompt\tsize\twidth\na\t32x32\t32\n", "row 1: it has a size beside a width"),
        ("prompt\tlora\na\t../../etc/passwd\n", "row 1, lora: LoRA is '../../etc/passwd': no LoRA of the library"),
        ("prompt\tname\na\t../../x\n", "row 1, name: name is '../../x'"),
        (f"{HOSTILE}\tprompt\na\tb\n", f"column 1 is '{HOSTILE}'"),
        ("prompt\tseed\n" + "a\t1\n" * 20_001, "20,001 rows; allowed here: up to 20,000"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_words(context: Context, text: str, problem: str) -> None:
    table = batch_table.read(context, text)
    assert table.jobs is None and problem in table.complaint
    html = batch_table.html(table, "")
    assert "<img" not in html and "problem" in html


def test_nothing_and_too_much_are_no_table(context: Context) -> None:
    assert batch_table.read(context, " \n\t\n") == batch_table.Table((), (), (), None)
    with pytest.raises(ConfigError, match="allowed: up to 1,000,000"):
        batch_table.read(context, "prompt\n" + "a" * 1_000_000)
    assert batch_table.read(context, "prompt\n\0a\ud800\n").columns == (("prompt", "prompt"),)


def test_many_problems_are_counted_and_the_first_are_said(context: Context) -> None:
    table = batch_table.read(context, "prompt\tsteps\n" + "a\tzero\n" * 300)
    assert len(table.problems) == 300 and table.complaint.endswith("... and 288 more")
    began = time.monotonic()
    batch_table.html(table, "")
    assert time.monotonic() - began < 1


def test_the_preview_shows_what_each_column_became_and_the_first_rows(context: Context) -> None:
    text = "CFG\tprompt\n" + "".join(f"3\ta fox {number} {HOSTILE}\n" for number in range(7))
    html = batch_table.html(batch_table.read(context, text), "About 3 min.")
    assert "→ guidance" in html and "7 pictures" in html and "About 3 min." in html and "and 2 more rows" in html
    assert html.count("<tr>") == 6 and "<img" not in html


def test_a_jobs_file_takes_the_same_names(context: Context) -> None:
    jobs = batches.read(context, b"Positive Prompt;CFG\na fox;4\n", "x.csv")
    assert next(csv.reader(io.StringIO(jobs.text))) == ["prompt", "guidance"]


def test_an_estimate_is_what_the_last_batch_on_the_base_took(context: Context, tiny: Path) -> None:
    work = {str(tiny): 32 * 32 * 2 * 10.0}
    assert (
        batch_estimate.words(context, work) == "How long it takes is known after a first picture or batch on this base."
    )
    drawn = Rendering()
    for step in (1, 2, 3):
        drawn.watch(step, 3, 1)
    assert drawn.began is not None and drawn.step_pace_s is not None
    context.paces[str(tiny)] = 0.5 / (32 * 32)
    assert batch_estimate.words(context, work) == "About 10 s, as the last picture went in Stack."
    context.paces.clear()
    job = context.runner.submit("x", "prompt\n", "batch-csv")
    context.runner.table.put(job, state="finished")
    out = context.batches / job.name
    out.mkdir()
    heads = "row,state,file,prompt,negative,base,lora,seed,steps,size,guidance,digest,problem\n"
    rows = "".join(f"{number},done,{number}.png,p,,{tiny},,1,2,32x32,3,d,\n" for number in range(5))
    (out / "manifest.csv").write_text(heads + rows, encoding="utf-8")
    ended = '{"event": "ended", "made": 5, "there": 5, "failed": 0, "seconds": 30.0}\n'
    context.runner.log_file(job).write_text(ended)
    assert batch_estimate.words(context, work) == "About 60 s, as the last batch went."
    assert "known after" in batch_estimate.words(context, work | {"another": 1.0})
    context.runner.log_file(job).write_text(ended.replace("5", '"x"'))
    assert "known after" in batch_estimate.words(context, work)
