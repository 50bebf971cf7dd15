"""Batches from the page: what a browser sends becomes a jobs file without a path of its own, and a process that draws
it to the end.
"""

from __future__ import annotations

import csv
import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import tomli_w

from app import batch_likes, batches, recipes, saved_stacks
from app.context import Context
from app.job_table import Job
from app.tabs import batch, stack
from tests.batches import context_with_a_fox
from trainer.config import StackConfig
from trainer.config.parsing import from_toml
from trainer.errors import ConfigError, RunError, UserError
from trainer.render import batch_ledger, jobs_file


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return context_with_a_fox(tmp_path, tiny)


def like(context: Context, **changes: Any) -> StackConfig:
    values = {"prompt": "a fox", "width_px": 32, "height_px": 32, "steps": 2, "base": context.bases[1]} | changes
    return stack.stack_of(
        context, values, [(sha256, 0.5, True, {"schedule": "linear 1 0"}) for sha256 in context.known_loras()]
    )


def upload(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_prompts_weights_and_seeds_are_multiplied_and_all_else_is_the_pictures(context: Context) -> None:
    jobs = batches.composed(context, like(context), "a fox\n\n an owl \n", "0.5, 1", "1-3, 7", "{number}-{prompt}")
    assert jobs.suffix == ".toml"
    text = batches.planned(jobs, [context.loras], context.wildcards).text
    assert text.startswith("16 rows, 16 pictures: 0 already there, 16 to draw")
    assert (
        "linear 1 0" in jobs.text and "steps = 2" in jobs.text and str(context.loras / "fox.safetensors") in jobs.text
    )
    assert batches.composed(context, like(context, prompt="an elk"), "", "", "", "").text.count("an elk") == 1


@pytest.mark.parametrize(
    ("prompts", "weights", "seeds", "name", "problem"),
    [
        ("a", "much", "1", "", "weights are 'much'"),
        ("a", "1", "one", "", "seeds has 'one'"),
        ("a", "1", "5-2", "", "seeds has '5-2'"),
        ("a", "1", "1", "../{number}", "name is"),
        ("a", "9", "1", "", "allowed: -2 to 2"),
        ("a", "1", "1-30000", "", "30,000 pictures; allowed here"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_in_words(
    context: Context, prompts: str, weights: str, seeds: str, name: str, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        batches.planned(
            batches.composed(context, like(context), prompts, weights, seeds, name), [context.loras], context.wildcards
        )


def test_an_uploaded_csv_names_loras_by_name_or_hash(context: Context, tmp_path: Path, tiny: Path) -> None:
    (sha256,) = context.known_loras()
    rows = f'prompt,lora,base,seed\na fox,fox:0.5,{tiny.name},1\n"an owl, white",{sha256}; fox:0.2,,2\n'
    table = list(csv.DictReader(io.StringIO(batches.uploaded(context, upload(tmp_path, "x.csv", rows)).text)))
    own = context.loras / "fox.safetensors"
    assert table[0]["lora"] == f"{own}:0.5" and table[0]["base"] == str(tiny)
    assert (
        table[1]["lora"] == f"{own}:1; {own}:0.2" and table[1]["base"] == "" and table[1]["prompt"] == "an owl, white"
    )


@pytest.mark.parametrize(
    "rows",
    [
        "prompt;lora;seed\na; fox:0.5;1\n",
        "sep=;\nprompt;lora;seed\na;fox:0.5;1\n",
        "\t \t\nprompt\tlora\tseed\na\tfox:0.5\t1\n",
    ],
)
def test_an_uploaded_csv_may_be_a_spreadsheets_and_is_read_as_the_command_reads_it(
    context: Context, tmp_path: Path, rows: str
) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(rows.encode("utf-16"))
    upload = batches.uploaded(context, path)
    (tmp_path / "job.csv").write_text(upload.text, encoding="utf-8")
    (row,) = jobs_file.read(tmp_path / "job.csv", jobs_file.Defaults())
    assert row.stack and [(adapter.file, adapter.weight) for adapter in row.stack.adapters] == [
        (str(context.loras / "fox.safetensors"), 0.5)
    ]
    path.write_bytes(rows.replace("fox", "caf\xe9").encode("cp1252"))
    with pytest.raises(
        ConfigError, match="x.csv is no text that can be read: it is not UTF-8 .line [23], byte .*Windows-1252"
    ):
        batches.uploaded(context, path)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("x.csv", "prompt,lora\na,/etc/passwd:1\n", "no LoRA of the library has that name; allowed: fox"),
        ("x.csv", "prompt,base\na,/etc\n", "which this server does not offer"),
        ("x.csv", 'prompt\n"never closed\n', "can't be read"),
        (
            "x.toml",
            tomli_w.dumps({"stacks": [[{"file": "../fox.safetensors"}]]}),
            "no LoRA of the library has that name",
        ),
        ("x.toml", tomli_w.dumps({"stacks": [["fox"]], "base": "/etc"}), "which this server does not offer"),
        (
            "x.toml",
            tomli_w.dumps({"stacks": [[{"file": "fox", "region": "mask /etc/passwd"}]]}),
            "no file of the server's",
        ),
        ("x.toml", "prompts = [" * 500, "is not TOML"),
        ("x.toml", 'name = "../{number}"', "name is"),
        ("x.exe", "", "allowed: a .csv or a .toml"),
    ],
)
def test_an_uploaded_file_that_names_what_is_not_offered_is_refused(
    context: Context, tmp_path: Path, name: str, text: str, problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        batches.uploaded(context, upload(tmp_path, name, text))


def test_a_file_too_large_for_the_page_is_named(context: Context, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="9 MiB; allowed here: up to 8"):
        batches.uploaded(context, upload(tmp_path, "x.csv", "prompt\n" + "a" * (9 << 20)))


def test_a_row_that_cannot_be_used_is_named_by_the_plan(context: Context, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 3"):
        batches.planned(
            batches.uploaded(context, upload(tmp_path, "x.csv", "prompt,steps\na,2\nb,zero\n")), [], context.wildcards
        )


def test_a_batch_is_drawn_to_its_end_shown_and_packed(context: Context) -> None:
    jobs = batches.composed(context, like(context), "a fox\nan owl", "1", "1-2", "{number}")
    made = context.runner.submit("foxes", jobs.text, jobs.kind)
    deadline = time.monotonic() + 90
    while context.runner.get(made.id).state not in ("finished", "failed") and time.monotonic() < deadline:
        context.runner.tick()
        time.sleep(0.2)
    job = context.runner.get(made.id)
    out = context.batches / "foxes"
    assert job.state == "finished", (job.error, context.runner.log_file(job).read_text()[-2000:])
    assert [row["state"] for row in batches.manifest(out)] == ["done"] * 4
    bar = batches.progress(job, batches.last_events(context.runner.log_file(job)))
    assert bar.share == 1 and bar.detail.startswith("4 of 4 pictures · took")
    paths, num = batches.pictures(out, 10)
    assert num == 4 and paths[0].parent.name == "contact-sheets"
    with zipfile.ZipFile(batches.packed(context, out)) as archive:
        assert {"00001.png", "00004.png", "manifest.csv", "contact-sheets/page-0001.png"} <= set(archive.namelist())
        assert not any(name.startswith(".batch") for name in archive.namelist())
    assert recipes.read_recipe(context, out / "00001.png").prompt == "a fox"
    assert context.runner.work.saved_step(job) == 4 and context.runner.work.finished(job)


def job(state: Any, kind: str = "batch-csv") -> Job:
    return Job(1, kind, "x", "", state, None, None, 0, 0, 0.0, 0.0, None, "it broke" if state == "failed" else "")


def test_the_bar_says_the_pace_of_this_attempt(tmp_path: Path) -> None:
    sent = [
        {"event": "rendered", "done": 1, "total": 10, "seconds": 900.0},
        {"event": "planned", "rows": 10, "pictures": 10, "there": 1, "failed": 0},
        *({"event": "rendered", "done": 2 + number, "total": 10, "seconds": 5.0 + 2 * number} for number in range(4)),
    ]  # fmt: skip
    log = tmp_path / "log"
    log.write_bytes(
        b"\xff not an event\n" + b"".join(json.dumps(event).encode() + b"\n" for event in sent) + b'{"event": "rend'
    )
    events = batches.last_events(log)
    assert events == sent
    bar = batches.progress(job("running"), events)
    assert bar.share == 0.5 and bar.detail == "5 of 10 pictures · 2.00 s a picture · about 10 s left"
    assert batches.progress(job("running"), events[:2]).headline == "Loading the base model"
    assert batches.progress(job("queued"), []).headline == "Waiting its turn"


def test_what_could_not_be_drawn_is_said_and_no_reason_to_begin_again(context: Context) -> None:
    out = context.batches / "x"
    (out / batch_ledger.HIDDEN).mkdir(parents=True)
    heads = "row,state,file,prompt,negative,base,lora,seed,steps,size,guidance,digest,problem\n"
    rows = [f"{number},{'failed' if number % 2 else 'done'},,p,,b,,1,2,32x32,3,d,too <large>\n" for number in range(60)]
    (out / "manifest.csv").write_text(heads + "".join(rows), encoding="utf-8")
    assert context.runner.work.finished(job("running"))
    words = batches.problems(job("failed"), batches.manifest(out))
    assert words.startswith("it broke\nrow 1: too <large>") and "and 10 more, in the manifest" in words
    (out / "manifest.csv").write_text(heads + rows[0] + rows[1].replace("failed", "todo"), encoding="utf-8")
    assert not context.runner.work.finished(job("running"))


def test_a_picture_that_is_gone_is_no_stack_to_draw_from(context: Context) -> None:
    tab = batch._Tab.__new__(batch._Tab)
    tab.context = context
    for name in ("file", "like", "source", "prompts", "weights", "seeds", "template"):
        setattr(tab, name, name)
    with pytest.raises(ConfigError, match="no picture or stack to draw more like is chosen"):
        tab._jobs(dict.fromkeys(("file", "source", "prompts", "weights", "seeds")) | {"like": "../../etc/passwd"})
    with pytest.raises(RunError):
        context.runner.get(99)


def test_a_saved_stack_is_drawn_at_every_prompt_and_seed(context: Context) -> None:
    saved = saved_stacks.save(context, StackConfig(prompt="its own", steps=7), "mine")
    with gr.Blocks():
        tab = batch._Tab(context)
    assert batch_likes.choices(context, None) == [("mine, a saved stack", saved.name)]
    held = {tab.file: None, tab.source: "stack", tab.like: saved.name, tab.prompts: "one\ntwo", tab.seeds: "1-2"}
    jobs = tab._jobs(held | {tab.weights: "1", tab.template: ""})
    wanted = from_toml(jobs.text, "jobs")
    assert (wanted["prompts"], wanted["seeds"], wanted["steps"]) == (["one", "two"], ["1-2"], 7), jobs.text
    assert "4 pictures" in batches.planned(jobs, [context.loras, context.runs], context.wildcards).text
