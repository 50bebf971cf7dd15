"""Views and logs: the same events, the same page; nothing from outside becomes markup."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from app import loss_charts, views
from app.job_table import Job, State
from app.logs import EventLogs
from trainer import events, report
from trainer.events import (
    Adjusted,
    Cached,
    Event,
    Failed,
    Finished,
    Folded,
    Overtrained,
    Planned,
    Recommended,
    Sampled,
    Started,
    Step,
    Validated,
    Warned,
)
from trainer.phases import Phase

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
    assert views.progress(job(), []).headline == "Starting"
    assert views.progress(job("queued"), []).headline == "Waiting its turn"


def test_only_a_finished_job_is_whole() -> None:
    log = [STARTED, *map(step, range(1, 101))]
    assert views.progress(job("failed"), log).headline == "Failed"
    assert views.progress(job("finished"), [*log, Finished(100, "a.safetensors", 50.0, 1.0)]).share == 1.0


def test_names_are_escaped() -> None:
    assert "<img" not in views.progress_html(HOSTILE, views.Progress(HOSTILE, HOSTILE, 0.5, HOSTILE))


def test_the_loss_is_drawn_with_its_mean_and_what_is_held_out_and_stays_small() -> None:
    log = [
        STARTED,
        *(step(number, 1 / number) for number in range(1, 20_001)),
        Validated(20_000, 0.4, 0.5, 0.2, 0.1, 0.3, 0.9, 40),
    ]
    drawn = loss_charts.html(log)
    assert all(f'polyline class="{style}"' in drawn for style in ("quiet", "own", "held")) and len(drawn) < 20_000
    assert "step 0: 0.5" in drawn and "step 20000: 0.4" in drawn
    assert loss_charts.html([STARTED]) == ""


def test_the_learning_rate_is_drawn_below_the_loss() -> None:
    """It was in the report alone."""
    drawn = loss_charts.html([STARTED, *(Step(number, 1.0, 1e-4 * number, 0.1, 0.5) for number in range(1, 50))])
    assert drawn.count("<svg") == 2 and "Learning rate by step" in drawn


def test_the_mean_of_a_constant_loss_is_the_constant() -> None:
    drawn = report.training_loss([step(number, 0.3) for number in range(1, 50)])
    heights = {place.split(",")[1] for line in re.findall('points="([^"]+)"', drawn) for place in line.split()}
    assert len(heights) == 1


def test_samples_come_newest_first_and_never_from_outside(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "samples").mkdir(parents=True)
    for name in ("samples/1.png", "samples/2.png", "../outside.png"):
        (folder / name).write_bytes(b"x")
    shown = views.samples(
        folder,
        [
            Sampled(0, "a", "samples/1.png"),
            Sampled(50, "b", "samples/2.png"),
            Sampled(60, "c", "../outside.png"),
            Sampled(70, "d", "gone.png"),
        ],
    )
    assert [caption for _, caption in shown] == ["step 50 · b", "step 0 · a"]


def test_gain_says_when_it_is_not_sure() -> None:
    assert "not yet sure" in views.gain([Validated(50, 0.5, 0.5, 0.01, -0.02, 0.03, 0.5, 40)])
    assert "not yet sure" not in views.gain([Validated(50, 0.4, 0.5, 0.2, 0.1, 0.3, 0.9, 40)])
    assert views.gain([]) == ""


def test_messages_name_errors_first() -> None:
    text = views.messages(
        job("failed", error="the rank is 0"), [Warned("x.png is damaged"), Failed("ConfigError", "the rank is 0")]
    )
    assert text.splitlines() == ["the rank is 0", "look: x.png is damaged"]


@pytest.mark.parametrize("seconds, words", [(12, "12 s"), (600, "10 min"), (12_000, "3 h 20 min")])
def test_durations_in_words(seconds: float, words: str) -> None:
    assert views.duration(seconds) == words


def test_log_grows_and_is_read_once(tmp_path: Path) -> None:
    path, logs = tmp_path / "events.jsonl", EventLogs()
    assert logs.read(path) == []
    events.Log(path).write(STARTED)
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
        events.Log(path).write(event)
    logs.read(path)
    events.rewind(path, 2)
    events.Log(path).write(step(3, 0.5))
    assert logs.read(path) == events.read(path)


def test_plan_is_drawn_with_the_fullest_bucket_first() -> None:
    html = views.plan_html([Planned([[160, 96, 9], [128, 128, 30], [0, 1]], 7, 2)])
    assert html.index("128 x 128") < html.index("160 x 96") and "7 batches an epoch; 2 lose more than a tenth" in html
    assert views.plan_html([]) == ""


def test_alarm_and_changes_for_memory_are_noticed() -> None:
    log: list[Event] = [Adjusted(3, "gradient checkpointing is on"), Overtrained(100, 50, "it learns by heart.")]
    html = views.notices_html(log)
    assert "It over-trains from step 50 on" in html and "At step 3: gradient checkpointing is on." in html
    assert views.notices_html([STARTED]) == ""
    text = views.messages(job(), log)
    assert "over-training, seen at step 100" in text and "memory ran out at step 3" in text


def test_recommendation_has_its_reason_and_advice_once_it_is_done() -> None:
    log: list[Event] = [STARTED, Overtrained(100, 50, "x"), Recommended(50, "best.safetensors", "step 50 is best.")]
    assert "Use step 50: best.safetensors" in views.recommendation_html(
        log, None
    ) and "Next time" not in views.recommendation_html(log, None)
    assert "“Steps” at 50 is" in views.recommendation_html([*log, Finished(100, "a.safetensors", 1.0, 1.0)], None)
    assert views.recommendation_html([STARTED], None) == ""


def test_heldout_chart_appears_with_the_first_measurement() -> None:
    measured = Validated(50, 0.4, 0.5, 0.2, 0.1, 0.3, 0.9, 40, train_gain=0.3, drift=0.01)
    assert views.heldout_html([STARTED]) == "" and "<svg" in views.heldout_html([STARTED, measured, measured])


def test_what_the_log_says_is_never_markup() -> None:
    log: list[Event] = [
        Overtrained(1, 1, HOSTILE),
        Adjusted(1, HOSTILE),
        Recommended(1, HOSTILE, HOSTILE),
        Finished(1, HOSTILE, 1.0, 1.0),
    ]
    failed = views.rehearsal_html(job("failed", error=HOSTILE), {})
    rehearsal = views.rehearsal_html(job("finished"), {"settings": [f"{HOSTILE}={HOSTILE}"]})
    assert "<img" not in views.notices_html(log) + views.recommendation_html(log, None) + failed + rehearsal


def test_files_are_offered_only_from_the_run_and_once_they_are_there(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("run/best.safetensors", "outside.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    log: list[Event] = [Recommended(1, "best.safetensors", "x"), Finished(2, "../outside.safetensors", 1.0, 1.0)]
    assert views.files(tmp_path / "run", log) == [tmp_path / "run" / "best.safetensors", None, None]


def test_likely_copy_is_named_under_its_preview(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"x")
    (_, caption), (_, plain) = views.samples(
        tmp_path, [Sampled(50, "a cat", "1.png", 0.99, "x.png"), Sampled(10, "a cat", "1.png", 0.5, "x.png")]
    )
    assert caption == "step 50 · a cat · looks like a copy of x.png" and plain == "step 10 · a cat"


def test_folds_are_told_before_the_run_begins() -> None:
    assert (
        views.progress(job(), [STARTED, Cached(1, 1, 1.0), step(5)], fold=2).headline
        == "Training fold 2 to find the best step"
    )
    assert "fold 1: trained without 4 pictures" in views.messages(job(), [Folded(1, 4, [50], [0.4], 0.5)])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            {"step_s": 0.256, "eta_s": 600, "peak_bytes": 2 << 30, "disk_bytes": 5 << 20, "fits": True, "settings": []},
            ["Tried: it goes through<", "0.26 s a step, about 10 min in all, at most 2.0 GiB of memory, 5 MiB on disk"],
        ),
        (
            {
                "fits": True,
                "budget_bytes": 3 << 30,
                "settings": ["memory.gradient_checkpointing=true", "memory.micro_batch=2"],
            },
            ["it fits into 3.0 GiB", "With “Checkpointing” on, “Micro-batch” 2."],
        ),
        (
            {"fits": False, "settings": ["memory.offload=blocks"]},
            ["it does not fit into memory", "Even with “Offload” blocks."],
        ),
        ({"step_s": "fast", "eta_s": None, "settings": [1, "odd"], "peak_bytes": True}, ["It went through."]),
        ({}, ["It went through."]),
    ],
)
def test_rehearsal_in_words_whatever_it_answers(answer: dict[str, Any], words: list[str]) -> None:
    html = views.rehearsal_html(job("finished"), answer)
    assert all(word in html for word in words)
    assert "Trying a few steps" in views.rehearsal_html(
        job("running"), {}
    ) and "waits its turn" in views.rehearsal_html(job("queued"), {})


def test_implausible_lines_of_a_log_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(
        '{"event": "step", "step": "x", "loss": 1, "learning_rate": 1, "grad_norm": 1, "seconds": 1}\n'
        + events.to_line(STARTED)
    )
    assert EventLogs().read(path) == [STARTED]


def test_phases_before_the_first_step_are_named() -> None:
    """Harm 15: "Training, step 0" for tens of seconds while pictures were encoded."""
    told = [
        (None, [], "Starting"),
        (Phase("loading"), [], "Loading the base"),
        (Phase("encoding", 12, 44), [], "Encoding 12 of 44"),
        (Phase("adapting"), [], "Putting the adapter on the base"),
        (None, [STARTED], "Preparing pictures and captions"),
        (None, [STARTED, Cached(1, 1, 1.0)], "Measuring and drawing before the first step"),
        (None, [STARTED, Cached(1, 1, 1.0), Sampled(0, "a", "0.png")], "Taking the first step"),
    ]
    assert [views.progress(job(), events, 0, phase).headline for phase, events, _ in told] == [row[2] for row in told]
    assert views.progress(job(), [], 0, Phase("encoding", 12, 44)).share == 12 / 44


def test_nothing_on_the_page_speaks_as_the_command_does() -> None:
    """Harm 14: advice said `validation.folds=3`, `--json` and `write basketball.txt`."""
    ways = "(write basketball.txt, or set data.trigger to train it on the trigger alone)"
    bare = f"basketball.png has no caption: left out {ways}."
    log: list[Event] = [
        Started("a", 100, 0, 9, 0, 1, "cpu", "float32", "b"), Warned(bare), Warned("and 9 more (--json lists all)"),
        Finished(100, "a.safetensors", 1.0, 1.0),
    ]  # fmt: skip
    page = views.recommendation_html(log, None) + views.messages(job(), log)
    assert "Set “Folds” at 3" in page and "write its caption in Dataset, or give a Trigger" in page
    assert not re.search(r"[a-z]+\.[a-z_]+ ?=|--[a-z]|basketball\.txt|data\.trigger", page), page
