"""What is shown: an unreadable file hides no other, marks that hide or reorder stand as codes, what can't be sent
isn't, and copies don't stay for ever.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image, PngImagePlugin

from app import (
    batches,
    cards,
    dataset_parts,
    item_details,
    leftovers,
    library_items,
    notices,
    preset_choices,
    recognising,
    ui,
    views,
)
from app.context import Context
from app.tabs import batch, dataset, stack, train
from tests.timing import since
from trainer import presets, printing, report, runs
from trainer.config import StackConfig, parse
from trainer.errors import ConfigError, UserError
from trainer.events import Failed, Recommended, Sampled, Saved, Started, Warned, to_line
from trainer.render.picture_metadata import RECIPE_KEY

HIDING = [
    "\u202e",
    "\u202d",
    "\u202a",
    "\u2066",
    "\u2067",
    "\u2068",
    "\u2069",
    "\u200e",
    "\u200f",
    "\u061c",
    "\u200b",
    "\u2060",
    "\ufeff",
    "\u00ad",
    "\u2028",
    "\x1b",
]


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return ui.open_workspace(tmp_path / "workspace")


def good(path: Path, colour: str = "red") -> Path:
    info = PngImagePlugin.PngInfo()
    info.add_text(RECIPE_KEY, StackConfig.model_validate({}).model_dump_json())
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), colour).save(path, pnginfo=info)
    return path


def spoil(folder: Path, suffix: str = ".png") -> None:
    """Everything in a folder that is called a picture and is none."""
    raw = good(folder / f"whole{suffix}" if suffix == ".png" else folder / "whole.png").read_bytes()
    for name, content in {
        "empty": b"",
        "cut": raw[:60],
        "text": b"no picture",
        "svg": b"<svg onload=alert(1)>",
    }.items():
        (folder / f"{name}{suffix}").write_bytes(content)
    (folder / f"folder{suffix}").mkdir()
    (folder / f"gone{suffix}").symlink_to("/nowhere/at/all")
    (folder / f"loop{suffix}").symlink_to(folder / f"loop{suffix}")
    os.mkfifo(folder / f"pipe{suffix}")


def test_unreadable_pictures_among_the_renders_break_no_tab(context: Context) -> None:
    spoil(context.renders)
    with gr.Blocks():
        stacked, batched = stack._Tab(context), batch._Tab(context)
    shown_ = stacked.open_tab("imprimatura", "sd")
    assert [Path(name).name for name in shown_[stacked.stage.files]] == ["whole.png"] and len(
        shown_[stacked.stage.gallery]["value"]
    ) == 1
    offered = batched.open_tab("stack", "cut.png", None, "")[batched.like]
    assert offered["value"] == "whole.png" and [value for _, value in offered["choices"]] == ["whole.png"]


def test_unreadable_loras_and_runs_break_no_library(context: Context) -> None:
    for folder in (context.loras, context.runs / "mine"):
        folder.mkdir(parents=True, exist_ok=True)
        spoil(folder, ".safetensors")
    for name, raw in {"events.jsonl": b"[" * 100_000, "config.toml": b"\xff"}.items():
        (context.runs / "mine" / name).write_bytes(raw)
    for name in ("a folder for a log", "a folder for a lock"):
        (context.runs / name).mkdir()
        (context.runs / name / "config.toml").write_text("x")
        (context.runs / name / ("events.jsonl" if "log" in name else ".lock")).mkdir()
    assert context.find_loras() == {}
    items = library_items.Shelf(context).every("runs")
    assert {item.name for item in items} == {"mine", "a folder for a log", "a folder for a lock"}
    assert "unreadable" in next(item for item in items if item.name == "a folder for a lock").facts


def test_an_unreadable_picture_of_a_batch_or_run_hides_no_other(context: Context) -> None:
    out = context.batches / "x"
    spoil(out)
    (out / "contact-sheets").mkdir()
    (out / "contact-sheets" / "page-0001.png").mkdir()
    paths, num = batches.pictures(out, 24)
    assert num == 5 and "whole.png" in {path.name for path, _ in context.published_of(paths)}
    events: list[Any] = [
        Sampled(1, "a", file)
        for file in (
            "whole.png",
            "x" * 5000 + ".png",
            "a\0b",
            "\ud800.png",
            "loop.png",
            "../../etc/passwd",
            "",
            "folder.png",
        )
    ]
    assert [path.name for path, _ in views.samples(out, events)] == ["whole.png"]
    odd: list[Any] = [Recommended(1, "y" * 5000, "x"), *events]
    assert views.files(out, odd) == [None, None, None]


def test_over_long_and_half_names_in_a_log_are_shown_without_a_traceback(context: Context) -> None:
    folder = context.runs / "x"
    folder.mkdir(parents=True)
    good(folder / "samples" / "1.png")
    events = [
        Started("x", 10, 0, 4, 0, 9, "cpu", "float32", "b" * 9000),
        Sampled(1, "a\ud800b", "samples/1.png"),
        Sampled(2, "c", "z" * 9000),
        Saved(3, "q" * 9000),
        Warned("\udfff" + "w" * 9000),
        Recommended(3, "r" * 9000, "\ud800"),
        Failed("X", "\u202eevil"),
    ]
    (folder / "events.jsonl").write_text("".join(map(to_line, events)))
    context.runner.submit("x", "", "train")
    with context.runner._connect() as connection:
        connection.execute("UPDATE job SET name = 'x'")
    with gr.Blocks():
        tab = train._Tab(context)
    changes = tab.view.poll(None, {})
    sent = [
        value if not isinstance(value, dict) else value.get("value")
        for key, value in changes.items()
        if not isinstance(key, gr.State)
    ]
    json.dumps(sent, ensure_ascii=False).encode("utf-8")  # a half would raise
    assert any("samples" not in str(update) and "step 1" in str(update) for update in sent)
    assert "\u202e" not in json.dumps(sent, ensure_ascii=False) and "\\\\u202eevil" in json.dumps(sent)


@pytest.mark.parametrize("mark", HIDING, ids=lambda mark: f"{ord(mark):04x}")
def test_marks_that_hide_or_reorder_are_shown_as_codes(mark: str, context: Context) -> None:
    name = f"cat{mark}gnp.exe"
    places = [
        printing.plain(name),
        printing.escape(name),
        views.progress_html(name, views.Progress(name, name, 0.5, "running")),
        notices._toast(name),
        dataset_parts.edits_html([{"number": 1, "text": name, "when": "", "undone": False}]),
        views.messages(
            views.Job(1, "train", "x", "", "failed", None, None, 1, 0, 0.0, None, None, name), [Warned(name)]
        ),
        cards.html(context, [library_items.Item("loras", name, name, name, None, ())], ""),
        batches.plan_html(f"{name} a\nb"),
    ]
    assert all(mark not in place for place in places)
    assert all(f"\\u{ord(mark):04x}gnp" in place for place in places if mark not in "\u2028\x1b" or place is places[0])


def test_writing_that_needs_its_joiners_is_left_as_it_is() -> None:
    for text in (
        "می\u200cخواهم",
        "👩\u200d👧",
        "क्\u200dष",
        "caf\u00e9",
        "שלום עולם",
        "日本語",
        "two\nlines\tand a tab",
    ):
        assert printing.plain(text) == text
    assert printing.whole("a\ud800\udc00b") == "a\ufffd\ufffdb" and printing.whole("👩") == "👩"


def test_what_is_sent_back_holds_no_half_and_what_stays_keeps_it() -> None:
    with gr.Blocks():
        box, kept = gr.Textbox(), gr.State([])
    sent = notices.mended(lambda: {box: gr.update(value=["a\ud800"]), kept: ["a\ud800"]})()
    assert sent[box]["value"] == ["a\ufffd"] and sent[kept] == ["a\ud800"]


@pytest.mark.parametrize("limit", [None, 80])
def test_a_text_longer_than_its_box_takes_is_refused_before_anybody_reads_it(limit: int | None) -> None:
    with gr.Blocks():
        box = gr.Textbox(label="Trigger", max_length=limit)
    read: list[Any] = []
    handler = notices.mended(read.append)
    most = limit or notices.LONGEST_TEXT
    handler({box: "x" * most})
    with pytest.raises(gr.Error, match=f"Trigger has {most + 1:,} characters; allowed: up to {most:,}"):
        handler({box: "x" * (most + 1)})
    with pytest.raises(gr.Error, match="a text has"):
        handler("x" * (notices.LONGEST_TEXT + 1))
    assert len(read) == 1


HUGE = "0.5," * 5_000_000


@pytest.mark.parametrize(
    "ask",
    [
        lambda context: stack.weights_of(HUGE),
        lambda context: batches.composed(context, StackConfig(), HUGE, "1", "1", ""),
        lambda context: batches.composed(context, StackConfig(), "a", HUGE, "1", ""),
        lambda context: batches.composed(context, StackConfig(), "a", "1", HUGE, ""),
        lambda context: parse(StackConfig, {"prompt": HUGE}, "x"),
        lambda context: parse(StackConfig, {"adapters": [{"schedule": HUGE}]}, "x"),
        lambda context: parse(StackConfig, {"adapters": [{"region": HUGE}]}, "x"),
        lambda context: parse(StackConfig, {"adapters": [{"blocks": [HUGE]}]}, "x"),
        lambda context: parse(StackConfig, {"mode": HUGE}, "x"),
    ],
)
def test_a_huge_text_is_refused_at_once_and_not_repeated(context: Context, ask: Any) -> None:
    began = time.thread_time()
    with pytest.raises(ConfigError) as caught:
        ask(context)
    assert since(began) < 2 and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "prompts, weights, seeds",
    [
        ("a", "1", "0-999999"),
        ("a\n" * 1000, "1", "1-1000"),
        ("a", ",".join(["1"] * 500), "1-2000"),
        ("a", "1", "0-4294967295"),
    ],
)
def test_a_plan_of_a_million_is_refused_before_it_is_made(
    context: Context, monkeypatch: pytest.MonkeyPatch, prompts: str, weights: str, seeds: str
) -> None:
    from trainer.render import batch_ledger

    monkeypatch.setattr(batch_ledger, "make", lambda *_: pytest.fail("a plan was made"))
    with pytest.raises(ConfigError, match="pictures; allowed"):
        batches.planned(batches.composed(context, StackConfig(), prompts, weights, seeds, ""), [], context.wildcards)
    (context.workspace / "x.csv").write_text("prompt\n" + "a\n" * 1_000_000)
    with pytest.raises(ConfigError, match="1,000,000 pictures; allowed here"):
        batches.uploaded(context, context.workspace / "x.csv")


def test_a_grid_of_a_million_is_refused_before_a_base_is_loaded(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app import grids

    monkeypatch.setattr(Context, "engine", lambda *_: pytest.fail("the engine was asked"))
    many = ", ".join(map(str, range(1, 101)))
    with pytest.raises(ConfigError, match="1,000,000 pictures; allowed"):
        grids.grid_of(context, StackConfig(), [("seed", many), ("steps", many), ("guidance_scale", many)], {})


# The report, which is sent on.


@pytest.mark.parametrize("readable", [True, False])
def test_a_report_names_no_place_of_this_machine(tmp_path: Path, readable: bool) -> None:
    secret = tmp_path / "home of ann" / "pictures of me"
    secret.mkdir(parents=True)
    config = presets.load(
        preset_choices.first(),
        {
            "data.folder": str(secret),
            "data.heldout": str(secret / "kept"),
            "against.adapters": [f"{secret}/fox.safetensors:0.5"],
        },
    )
    run = runs.create(tmp_path / "home of ann" / "runs", "mine", config)
    if not readable:
        run.config_file.write_text(run.config_file.read_text() + "\nodd = 1\n")
    gone = f"data.folder is {str(secret)!r}, which is gone; {run.folder}"
    events = [Warned(f"look at {secret}/a.png"), Warned("cat\u202egnp.exe"), Failed("DataError", gone)]
    run.events_file.write_text("".join(map(to_line, events)))
    report.write(run)
    page = run.report_file.read_text()
    assert "home of ann" not in page.replace("&#x27;", "'") or not readable
    assert "pictures of me" in page and "Content-Security-Policy" in page and "\u202e" not in page
    assert f'folder = "{secret}"' not in page and (
        readable or 'folder = "pictures of me"' in page.replace("&quot;", '"')
    )


# Copies.


def upload_into(context: Context, name: str, raw: bytes) -> Path:
    path = context.cache / "0123abcd" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


def test_the_copy_of_an_upload_goes_once_it_is_taken_or_refused(context: Context, tmp_path: Path) -> None:
    raw = good(tmp_path / "a.png").read_bytes()
    with gr.Blocks():
        dropped, stacked = dataset._Tab(context), stack._Tab(context)
    name = dataset.make(context, "mine")
    files = [upload_into(context, "a.png", raw), upload_into(context, "bad.png", b"no")]
    dropped.add_files(name, [str(path) for path in files])
    assert [path.name for path in (context.datasets / "mine").glob("*.png")] == ["a.png"] and not (
        context.cache / "0123abcd"
    ).exists()
    path = upload_into(context, "b.png", b"no picture")
    with pytest.raises(gr.Error):
        stacked.dropping.take(str(path))
    assert not path.exists()
    with pytest.raises(gr.Error):
        dropped.add_files("no such set", [str(upload_into(context, "c.png", raw))])
    assert not (context.cache / "0123abcd").exists()


def test_only_copies_of_uploads_are_removed(context: Context, tmp_path: Path) -> None:
    own, thumb = good(tmp_path / "own.png"), good(context.cache / "thumbs" / "x.webp.png")
    inside = good(context.datasets / "mine" / "a.png")
    leftovers.taken(context, [str(own), str(thumb), str(inside), None, "/nowhere"])
    assert own.exists() and thumb.exists() and inside.exists()


def test_old_copies_go_at_the_start_and_the_work_stays(context: Context) -> None:
    young, aged = upload_into(context, "young.png", b"x"), context.cache / "4567" / "aged.png"
    kept = [
        good(context.datasets / "mine" / "a.png"),
        good(context.renders / "b.png"),
        good(context.cache / "thumbs" / "c.png"),
    ]
    left = [
        context.datasets / "mine" / ".abc.upload",
        context.loras / ".x.tmp",
        context.runs / ".new-1" / "config.toml",
        aged,
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        for entry in (path, path.parent):
            if entry not in (context.datasets / "mine", context.loras):
                os.utime(entry, (1e9, 1e9))
    ui.open_workspace(context.workspace)
    assert young.exists() and not any(path.exists() for path in left) and all(path.exists() for path in kept)
    leftovers.all_copies(context)
    assert not young.exists() and all(path.exists() for path in kept)


@pytest.mark.parametrize("data", [[], [1], "x", 5, None, [["a"]]])
def test_a_recipe_whose_data_is_no_table_is_refused_in_words(
    context: Context, tmp_path: Path, data: Any, trained: Path
) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(trained, "pt") as file:
        metadata = dict(file.metadata())
    key = next(key for key, value in metadata.items() if '"config"' in value)
    recipe = json.loads(metadata[key])
    recipe["config"]["data"] = data
    path = tmp_path / "odd.safetensors"
    save_file(load_file(trained), path, metadata | {key: json.dumps(recipe), "note": "a\u202eb"})
    with pytest.raises(UserError) as caught:
        train.recipe_of(context, str(path))
    assert not any(
        word in str(caught.value) for word in ("object has no", "attribute", "Input should", "NoneType", "pydantic")
    )
    info = recognising.add_lora(context, path)
    assert "\u202e" not in json.dumps(item_details.header(info), ensure_ascii=False)
    assert str(info.name) == "odd"
