"""Views and logs: the same events, the same page; nothing from outside becomes markup."""

from __future__ import annotations

from pathlib import Path

import pytest

from app import views
from app.jobs import Job, State
from app.logs import EventLogs
from trainer import events
from trainer.events import Cached, Failed, Finished, Sampled, Started, Step, Validated, Warned

HOSTILE = "<img src=x onerror=alert(1)>"
STARTED = Started("a", 100, 0, 44, 40, 1000, "cpu", "float32", "imprimatura")


def job(state: State = "running", name: str = "a", error: str = "") -> Job:
    return Job(1, "train", name, "", state, None, None, 1, 0, 0.0, None, None, error)


def step(number: int, loss: float = 1.0) -> Step:
    return Step(number, loss, 1e-4, 0.1, 0.5)


def test_progress_tells_pace_and_time_left() -> None:
    shown = views.progress(job(), [STARTED, Cached(1, 1, 1.0), *map(step, range(1, 41))])
    assert shown.share == pytest.approx(0.4)
    assert "step 40 of 100 · 0.50 s a step · about 30 s left" in shown.detail


def test_progress_before_the_first_event() -> None:
    assert views.progress(job(), []).headline == "Loading the base model"
    assert views.progress(job("queued"), []).headline == "Waiting its turn"


def test_only_a_finished_job_is_whole() -> None:
    log = [STARTED, *map(step, range(1, 101))]
    assert views.progress(job("failed"), log).headline == "Failed"
    assert views.progress(job("finished"), [*log, Finished(100, "a.safetensors", 50.0, 1.0)]).share == 1.0


def test_names_are_escaped() -> None:
    assert "<img" not in views.progress_html(HOSTILE, views.Progress(HOSTILE, HOSTILE, 0.5, HOSTILE))


def test_curve_has_three_series_and_stays_small() -> None:
    log = [STARTED, *(step(number, 1 / number) for number in range(1, 20_001)), Validated(20_000, 0.4, 0.5, 0.2, 0.1, 0.3, 0.9, 40)]
    table = views.curve(log)
    assert set(table["of"]) == {views.RAW, views.SMOOTHED, views.HELDOUT} and len(table) <= 700
    assert table[table["of"] == views.HELDOUT].values.tolist() == [[0, 0.5, views.HELDOUT], [20_000, 0.4, views.HELDOUT]]
    assert table[table["of"] == views.RAW]["step"].max() == 20_000


def test_smoothing_of_a_constant_is_the_constant() -> None:
    table = views.curve([step(number, 0.3) for number in range(1, 50)])
    assert table["loss"].tolist() == pytest.approx([0.3] * len(table))


def test_samples_come_newest_first_and_never_from_outside(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "samples").mkdir(parents=True)
    for name in ("samples/1.png", "samples/2.png", "../outside.png"):
        (folder / name).write_bytes(b"x")
    found = views.samples(
        folder, [Sampled(0, "a", "samples/1.png"), Sampled(50, "b", "samples/2.png"), Sampled(60, "c", "../outside.png"), Sampled(70, "d", "gone.png")]
    )
    assert [caption for _, caption in found] == ["step 50 · b", "step 0 · a"]


def test_gain_says_when_it_is_not_sure() -> None:
    assert "not yet sure" in views.gain([Validated(50, 0.5, 0.5, 0.01, -0.02, 0.03, 0.5, 40)])
    assert "not yet sure" not in views.gain([Validated(50, 0.4, 0.5, 0.2, 0.1, 0.3, 0.9, 40)])
    assert views.gain([]) == ""


def test_messages_name_errors_first() -> None:
    text = views.messages(job("failed", error="the rank is 0"), [Warned("x.png is damaged"), Failed("ConfigError", "the rank is 0")])
    assert text.splitlines() == ["the rank is 0", "look: x.png is damaged"]


@pytest.mark.parametrize("seconds, words", [(12, "12 s"), (600, "10 min"), (12_000, "3 h 20 min")])
def test_durations_in_words(seconds: float, words: str) -> None:
    assert views.duration(seconds) == words


def test_log_grows_and_is_read_once(tmp_path: Path) -> None:
    path, logs = tmp_path / "events.jsonl", EventLogs()
    assert logs.read(path) == []
    events.append(path, STARTED)
    assert logs.read(path) == [STARTED]
    with path.open("ab") as file:
        file.write(events.to_line(step(1)).encode()[:-5])
    assert logs.read(path) == [STARTED]  # the line is still on its way
    with path.open("ab") as file:
        file.write(events.to_line(step(1)).encode()[-5:])
    assert logs.read(path) == [STARTED, step(1)]


def test_log_of_a_resumed_run_is_read_anew(tmp_path: Path) -> None:
    path, logs = tmp_path / "events.jsonl", EventLogs()
    for event in (STARTED, step(1), step(2), step(3)):
        events.append(path, event)
    logs.read(path)
    events.rewind(path, 2)
    events.append(path, step(3, 0.5))
    assert logs.read(path) == events.read(path)
