"""The queue: the order in which waiting jobs go, what is taken off the list, and what the page's buttons act on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import tomli_w
from PIL import Image

from app import forecast, job_order, preset_choices, rehearsal_settings, ui
from app.context import Context
from app.job_table import Job
from app.opened_pictures import OpenedPictures
from app.tabs import train
from trainer import presets
from trainer.errors import RunError


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return ui.open_workspace(tmp_path / "workspace")


@pytest.fixture
def three(context: Context) -> list[Job]:
    return [context.runner.submit(name, "version = 1") for name in ("a", "b", "c")]


def names(jobs: list[Job]) -> str:
    return "".join(job.name for job in jobs)


def test_waiting_jobs_go_in_the_order_they_were_moved_to(context: Context, three: list[Job]) -> None:
    runner = context.runner
    runner.move(three[2].id, -1)
    assert names(runner.waiting()) == "acb"
    runner.move(three[2].id, -1)
    runner.move(three[2].id, -1)  # the first stays the first
    assert names(runner.waiting()) == "cab"
    started: list[str] = []
    runner._spawn = lambda job: started.append(job.name)  # type: ignore[method-assign]
    runner.tick()
    assert started == ["c"]


def test_what_was_begun_is_ended_before_any_that_was_moved(context: Context, three: list[Job]) -> None:
    context.runner.move(three[1].id, -1)
    context.runner.table.put(three[2], state="interrupted")
    assert names(context.runner.waiting()) == "cba"


def test_a_job_that_is_taken_off_the_list_does_not_run_and_its_row_stays(context: Context, three: list[Job]) -> None:
    context.runner.remove(three[0].id)
    assert names(context.runner.waiting()) == "bc" and names(context.runner.shown()) == "cb"
    assert context.runner.get(three[0].id).state == "stopped"
    context.runner.table.put(three[1], state="running")
    with pytest.raises(RunError, match="stop it first"):
        context.runner.remove(three[1].id)


def test_a_table_without_an_order_has_the_order_of_the_numbers(context: Context, three: list[Job]) -> None:
    assert job_order.places(context.runner.database) == {} and names(context.runner.waiting()) == "abc"


def trainable(context: Context) -> str:
    """The settings of a job that would train."""
    draw(context, "mine")
    overrides = {"data.folder": str(context.datasets / "mine")}
    return tomli_w.dumps(presets.load("imprimatura-style", overrides).model_dump(mode="json"))


def draw(context: Context, name: str) -> None:
    folder = context.datasets / name
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (64, 64), (number * 40, 90, 40)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a square")


def test_a_duplicate_has_the_settings_of_its_job(context: Context) -> None:
    job = context.runner.submit("b", trainable(context))
    with gr.Blocks():
        tab = train._Tab(context)
    tab.view.duplicate_one(job.id)
    newest = context.runner.every()[0]
    assert (newest.name, newest.config, newest.state) == ("b-2", job.config, "queued")


def test_what_must_fail_is_not_queued_again(context: Context) -> None:
    """A job whose dataset was thrown away was, to fail later."""
    job = context.runner.submit("b", trainable(context))
    context.runner.table.put(job, state="stopped")
    with gr.Blocks():
        tab = train._Tab(context)
    shutil.rmtree(context.datasets / "mine")
    acts: list[Callable[[], Any]] = [
        lambda: tab.view.duplicate_one(job.id), lambda: tab.view.resume_one(job.id),
        lambda: tab.view.extend_one(job.id, 10),
        lambda: tab.view.act_on_queue(None, "", "", SimpleNamespace(act="resume", job=job.id)),
    ]  # fmt: skip
    for act in acts:
        with pytest.raises(gr.Error, match="start yet: .*mine"):
            act()
    assert [known.state for known in context.runner.every()] == ["stopped"]
    draw(context, "mine")
    tab.view.resume_one(job.id)
    assert context.runner.get(job.id).state == "queued"


def test_a_rehearsal_speaks_of_the_settings_it_was_made_with_alone(context: Context) -> None:
    """It was shown, and its settings were offered, whatever form, dataset or browser it was of."""
    text = trainable(context)
    draw(context, "other")
    with gr.Blocks():
        tab = train._Tab(context)
    now = held(tab)
    job = rehearsal_settings.begin(context, text, tab._wish(now))
    answer = {"fits": True, "settings": ["memory.offload=blocks"], "budget_bytes": 8 << 30}
    context.runner.log_file(job).write_text(json.dumps(answer))
    context.runner.table.put(job, state="finished")

    def shown(form: dict[Any, Any]) -> tuple[bool, bool]:
        """Whether it is shown as of these settings, and whether its own are offered."""
        updates = tab.look(form)
        assert "Tried: it fits" in updates[tab.view.rehearsal]["value"]
        asked = rehearsal_settings.asked(tab._wish(form))
        polled = tab.view.poll(None, {}, asked)
        assert polled[tab.view.rehearsal] == updates[tab.view.rehearsal]
        return "Of earlier settings" not in updates[tab.view.rehearsal]["value"], updates[tab.view.adopt]["visible"]

    assert shown(now) == (True, True)
    assert shown(held(tab, learning_rate=0.001)) == (False, False)
    assert shown({**now, tab.dataset: "other"}) == (False, False)
    assert shown(held(tab, memory__offload="blocks")) == (True, False)  # taken
    updates = tab.adopt_suggested(now)
    assert updates[tab.form.components["memory.offload"]]["value"] == "blocks"
    with pytest.raises(gr.Error, match="have not been tried"):
        tab.adopt_suggested({**now, tab.dataset: "other"})
    assert tab.view.rehearsal not in tab.view.poll(None, {})  # by a page whose form was not read yet


def test_a_row_acts_on_the_job_that_it_showed(context: Context, three: list[Job]) -> None:
    with gr.Blocks():
        tab = train._Tab(context)
    shown = tab.view.poll(None, {})
    listed = re.findall(r'data-act="up" data-job="(\d+)"', shown[tab.view.queue.list])
    assert listed == [str(job.id) for job in three]
    context.runner.remove(three[0].id)  # the rows on the page are one behind
    tab.view.act_on_queue(None, "", "", SimpleNamespace(act="up", job=int(listed[2])))
    assert names(context.runner.waiting()) == "cb"


@pytest.mark.parametrize(
    ("act", "job"), [("up", "1"), ("up", True), ("up", None), ("delete", 1), (None, 1), (["up"], 1), ("remove", 9**40)]
)
def test_what_no_button_sends_is_refused_and_changes_nothing(
    context: Context, three: list[Job], act: Any, job: Any
) -> None:
    with gr.Blocks():
        tab = train._Tab(context)
    with pytest.raises(gr.Error):
        tab.view.act_on_queue(None, "", "", SimpleNamespace(act=act, job=job))
    assert names(context.runner.waiting()) == "abc"


def test_trying_a_few_steps_leaves_the_chosen_job_chosen(context: Context) -> None:
    """Trying read the chosen job without being given it, so that the page went over to the newest one."""
    with gr.Blocks() as page:
        tab = train._Tab(context)
    given = next(
        {id(part) for part in dependency.inputs}
        for dependency in page.fns.values()
        if (tab.rehearse._id, "click") in dependency.targets
    )
    assert id(tab.view.job) in given


def wish(**changes: Any) -> forecast.Wish:
    values = preset_choices.load("imprimatura-style").model_dump(mode="json") | changes
    return forecast.Wish(values, "mine", "", "", {"learning_rate": 0.0015})


def test_a_large_set_is_looked_at_bit_by_bit(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(context, "mine")
    seen = OpenedPictures()
    monkeypatch.setattr(forecast, "_BUDGET_S", -1.0)
    assert forecast.look(context, wish(), seen).num_unseen == 4
    monkeypatch.setattr(forecast, "_BUDGET_S", 60.0)
    ahead = forecast.look(context, wish(), seen)
    assert ahead.num_unseen == 0 and ahead.headline == "All 4 pictures train" and not ahead.problems


def test_a_setting_that_is_no_setting_hides_neither_the_base_nor_the_pictures(context: Context) -> None:
    """One bad setting hid what stands against the base and the pictures."""
    (context.datasets / "mine").mkdir()
    ahead = forecast.look(context, wish(adapter="junk", base="no/such-base"), OpenedPictures())
    told = " ".join(problem.text for problem in ahead.problems)
    assert "no/such-base isn't on this machine" in told and "has no pictures" in told and len(ahead.problems) >= 3


def test_what_is_put_into_bases_is_a_base_once_it_is_started_anew(context: Context) -> None:
    """Who was told that a base is missing was not told how to get it."""
    ahead = forecast.look(context, wish(base="no/such-base", family="sdxl"), OpenedPictures())
    assert "into bases in the workspace" in " ".join(problem.text for problem in ahead.problems)
    own = context.workspace / "bases"
    (own / "folder").mkdir()
    (own / "folder" / "model_index.json").write_text("{}")
    (own / "model.safetensors").write_bytes(b"x")
    (own / "notes.txt").write_text("x")
    (own / "empty").mkdir()
    again = ui.open_workspace(context.workspace)
    assert again.bases == ("imprimatura", str(own / "folder"), str(own / "model.safetensors"))


def test_a_run_like_this_one_says_what_it_takes_on_disk(context: Context) -> None:
    draw(context, "mine")
    facts = forecast.look(context, wish(), OpenedPictures()).facts
    assert re.fullmatch(r"[\d,]+ GiB free on disk", facts[-1])
    run = context.runs / "before"
    run.mkdir()
    presets.save(
        presets.load("imprimatura-style", {"data.folder": str(context.datasets / "mine")}), run / "config.toml"
    )
    (run / "before.safetensors").write_bytes(bytes(3 << 20))
    facts = forecast.look(context, wish(), OpenedPictures()).facts
    assert re.fullmatch(r"about 3(\.\d+)? MiB on disk, [\d,]+ GiB free", facts[-1]), facts


def test_looking_ahead_loads_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, tempfile, pathlib; from app import ui, forecast, preset_choices; "
        "from app.opened_pictures import OpenedPictures; here = pathlib.Path(tempfile.mkdtemp()); "
        "context = ui.open_workspace(here); (context.datasets / 'mine').mkdir(); "
        "values = preset_choices.load('imprimatura-style').model_dump(mode='json'); "
        "forecast.look(context, forecast.Wish(values, 'mine', '', '', {}), OpenedPictures()); "
        "print('torch' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "False", done.stderr


def held(tab: train._Tab, **changes: Any) -> dict[Any, Any]:
    """What the page sends for the form as drawn, with changes by key."""
    parts: dict[Any, Any] = {box: getattr(box, "value", None) for box in tab.form.components.values()}
    parts |= {tab.form.components[key.replace("__", ".")]: value for key, value in changes.items()}
    return parts | {tab.filled: tab.form.by_path(tab.start_config), tab.trigger: "", tab.dataset: "mine"}


def test_a_search_shows_what_matches_and_opens_what_it_lies_in(context: Context) -> None:
    with gr.Blocks():
        tab = train._Tab(context)
    for words, shown, hidden in (("mirror", "data.flip", "adapter.lora.rank"), ("", "adapter.lora.rank", "")):
        updates = tab.find({**held(tab), tab.finder.search: words})
        assert updates[tab.form.components[shown]]["visible"]
        assert all(updates[fold]["visible"] for fold in tab.folds[shown])
        assert not hidden or not updates[tab.form.components[hidden]]["visible"]
        assert not hidden or not updates[tab.folds[hidden][0]]["visible"]


def test_changed_settings_are_listed_with_what_they_were_and_reset(context: Context) -> None:
    with gr.Blocks():
        tab = train._Tab(context)
    assert tab.finder.changed(held(tab), tab.form.by_path(tab.start_config)) == {}
    now = held(tab, data__flip=False, max_steps=150)
    changed = tab.finder.changed(now, now[tab.filled])
    assert changed == {"max_steps": (100, 150), "data.flip": (True, False)}
    updates = tab.finder.updates(changed, [])
    assert re.findall(r'data-key="([^"]+)"', updates[tab.finder.lines]) == ["max_steps", "data.flip"]
    again = tab.reset(now, SimpleNamespace(key="data.flip"))
    assert again[tab.form.components["data.flip"]]["value"] is True
