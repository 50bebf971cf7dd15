"""Endpoints asked with anything: each answers, or refuses in words; nothing outside the workspace is touched."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from app import ui
from app.context import Context
from app.endpoints import offering
from app.endpoints.asking import typed
from app.notices import mended_for_programs

NAMES = [
    "..", "../../etc/passwd", "/etc/passwd", "", " ", "\0", "a\0b", "\ud800", "x" * 100_000, "CON", "a/b", "a\\b",
    "<b>", "*", "[!.]*", "~", "card:", "run:..", "run:", "preset:../x", "batches/../x.png", "é\u202e", "dots", "0.png",
    "-1", "kohya", "trigger", "csv", "loras", "presets", "cat.toml",
]  # fmt: skip
OTHERS: list[Any] = [
    None, True, -1, 0, 2**70, 1.5, float("nan"), float("inf"), [], {}, [[]], {"path": "/etc/passwd"}, ["/etc/passwd"],
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, [["seed", "1"], 2], {"adapters": 3}, {"": 1},
    {"prompt": ["x"]}, {"a.b.c": {"d": []}}, ["dots"] * 50, {"path": "../jobs.sqlite"}, [{"path": "\0"}],
]  # fmt: skip
DRAW = {"render", "sheet", "sheet_of_each", "sheet_of_modes", "bake_stack", "checkpoint_grid", "use_step",
        "analyse_stack", "balance_stack"}  # fmt: skip


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A workspace with one set; nothing watches its jobs."""
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        made = ui.open_workspace(folder / "workspace")
    dots = made.datasets / "dots"
    dots.mkdir()
    Image.new("RGB", (64, 64), "red").save(dots / "0.png")
    return made


@pytest.fixture(scope="module")
def endpoints(context: Context) -> dict[str, Callable[..., Any]]:
    return {name: mended_for_programs(typed(endpoint)) for name, endpoint in offering.every(context).items()}


def outside(context: Context) -> list[str]:
    """What lies beside the workspace."""
    return sorted(path.name for path in context.workspace.parent.iterdir())


def names() -> list[str]:
    """The endpoints that take something."""
    every = offering.every(Context(Path("nowhere"), None))  # type: ignore[arg-type]
    return [name for name, one in every.items() if inspect.signature(one).parameters]


@pytest.mark.parametrize("name", names())
def test_an_endpoint_answers_or_refuses_in_words(
    name: str, endpoints: dict[str, Callable[..., Any]], context: Context
) -> None:
    chance, before = random.Random(name), outside(context)
    parameters = inspect.signature(endpoints[name]).parameters
    for _ in range(40):
        given = [chance.choice(NAMES if chance.random() < 0.7 else OTHERS) for _ in parameters]
        if name in DRAW and isinstance(given[0], dict):
            given[0] = {**given[0], "base": "/etc"}  # an empty stack is a sound one
        try:
            answer = endpoints[name](*given[: chance.randint(1, len(given))])
        except (gr.Error, TypeError) as error:
            is_short = isinstance(error, TypeError) and "missing a required argument" in str(error)
            assert isinstance(error, gr.Error) and str(error).strip() or is_short, (given, error)
            assert str(context.workspace) not in str(error), (given, error)
        else:
            json.dumps(answer, allow_nan=True)
    assert outside(context) == before


@pytest.mark.parametrize(
    "file",
    ["/etc/passwd", "../x", "", "\0", 3, None, {"path": "/etc/passwd"}, {"path": None}, {}, [], "jobs.sqlite"],
    ids=str,
)
def test_a_file_that_was_not_uploaded_is_refused(
    file: Any, endpoints: dict[str, Callable[..., Any]], context: Context
) -> None:
    before = context.dataset_names()
    for name in ("add_pictures", "drop_files"):
        with pytest.raises(gr.Error):
            endpoints[name]([file])
    with pytest.raises(gr.Error):
        endpoints["read_picture"](file)
    with pytest.raises(gr.Error, match="no file that was uploaded"):
        endpoints["drop_files"]([str(context.datasets / "dots" / "0.png")])
    assert context.dataset_names() == before


def test_a_link_in_the_cache_leads_nowhere_else(endpoints: dict[str, Callable[..., Any]], context: Context) -> None:
    link = context.cache / "abc" / "x.png"
    link.parent.mkdir(parents=True)
    link.symlink_to(context.datasets / "dots" / "0.png")
    with pytest.raises(gr.Error, match="no file that was uploaded"):
        endpoints["add_pictures"]([str(link)], "dots")
    assert (context.datasets / "dots" / "0.png").is_file()


def test_an_upload_is_taken_and_gone_afterwards(endpoints: dict[str, Callable[..., Any]], context: Context) -> None:
    path = context.cache / "def" / "new.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (64, 64), "blue").save(path)
    assert endpoints["add_pictures"]([{"path": str(path)}], "dots")["added"] == ["new.png"]
    assert not path.exists() and (context.datasets / "dots" / "new.png").is_file()


# What is asked of the queue and before a training, while nothing works.


def test_waiting_jobs_are_moved_duplicated_and_removed(
    endpoints: dict[str, Callable[..., Any]], context: Context
) -> None:
    settings = {"max_steps": 2, "data.trigger": "dotty"}
    first = endpoints["train"]("imprimatura-character", "dots", "first", settings, True)
    second = endpoints["duplicate_job"](first["id"])
    assert (first["kind"], first["state"], second["name"]) == ("training", "queued", "first-2")
    assert context.runner.wants_grid(context.runner.get(second["id"]))
    assert endpoints["waiting_jobs"]()[-2:] == [first["id"], second["id"]]
    assert endpoints["move_job"](second["id"], -1)[-2:] == [second["id"], first["id"]]
    assert endpoints["stop_job"](first["id"])["state"] == "stopped"
    assert endpoints["resume_job"](first["id"])["state"] == "queued"
    for job in (first, second):
        endpoints["remove_job"](job["id"])
    listed = [row["id"] for row in endpoints["jobs"]()]
    assert first["id"] not in listed and second["id"] not in listed
    for act, words in (("pause_job", "can be paused"), ("extend_job", "saved no step|no config|there is no run")):
        with pytest.raises(gr.Error, match=words):
            endpoints[act](*[first["id"], 5][: 1 + (act == "extend_job")])


def test_a_rehearsal_is_asked_for_and_answers_what_it_knows(endpoints: dict[str, Callable[..., Any]]) -> None:
    row = endpoints["rehearse"]("imprimatura-character", "dots", {"data.trigger": "dotty"})
    found = endpoints["rehearsal"](row["id"])
    assert (row["kind"], found["state"], found["fits"], found["settings"]) == ("rehearse", "queued", None, {})
    job = endpoints["train"]("imprimatura-character", "dots", "", {"data.trigger": "dotty"})
    assert endpoints["rehearsal"](row["id"])["state"] == "stopped", "a training does not wait for it"
    with pytest.raises(gr.Error, match="is no rehearsal"):
        endpoints["rehearsal"](job["id"])


def test_a_forecast_says_what_a_start_is_refused_for(endpoints: dict[str, Callable[..., Any]]) -> None:
    refused = endpoints["forecast"]("imprimatura-character", "dots", {"validation.leave_out": 9, "data.trigger": "x"})
    assert refused["problems"][0]["setting"] == "validation.leave_out" and refused["problems"][0]["text"]
    with pytest.raises(gr.Error, match=refused["problems"][0]["text"][:20]):
        endpoints["train"]("imprimatura-character", "dots", "", {"validation.leave_out": 9, "data.trigger": "x"})
    fine = endpoints["forecast"]("imprimatura-character", "dots", {"max_steps": 20, "data.trigger": "dotty"})
    assert fine["problems"] == [] and any("20 steps" in fact for fact in fine["facts"])


def test_a_set_is_captioned_by_a_model_that_is_here_alone(endpoints: dict[str, Callable[..., Any]]) -> None:
    assert endpoints["captioners"]() == []
    with pytest.raises(gr.Error, match="model"):
        endpoints["start_captions"]("dots", "../wd")
