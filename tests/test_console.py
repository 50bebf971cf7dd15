"""A run in words: one line for each thing worth reading, the alarm once, and plain lines where there is no terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer import console, events
from trainer.events import (
    Adjusted,
    Event,
    Finished,
    Folded,
    Overtrained,
    Planned,
    Recommended,
    Sampled,
    Saved,
    Started,
    Step,
    Validated,
)

FOLDER = Path("outputs/runs/cat")
MEASURED = Validated(50, 0.4, 0.5, 0.2, 0.1, 0.3, 0.9, 40, train_gain=0.31, drift=0.042)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            Planned([[160, 96, 9], [128, 128, 30], [96, 160, 5]], 7, 2),
            "plan: 44 pictures in 3 buckets, 7 batches an epoch: 128x128 30, 160x96 9, 96x160 5; 2 lose more than a "
            "tenth to the crop",
        ),
        (Planned([[128, 128, 1]], 1, 0), "plan: 1 picture in 1 bucket, 1 batch an epoch: 128x128 1"),
        (
            Adjusted(12, "gradient checkpointing is on"),
            "step 12: memory ran out, so from here on gradient checkpointing is on",
        ),
        (
            Recommended(40, "best.safetensors", "it is best."),
            f"use step 40, {FOLDER / 'best.safetensors'}: it is best.",
        ),
        (
            Folded(2, 3, [50, 100], [0.45, 0.48], 0.5),
            "fold 2: trained without 3 pictures, whose loss was lowest at step 50, 10.0 % below the base's",
        ),
        (
            Folded(2, 1, [50], [0.6], 0.5),
            "fold 2: trained without 1 picture, whose loss was lowest at step 50, 20.0 % above the base's",
        ),
        (Folded(2, 3, [], [], 0.0), "fold 2: trained without 3 pictures"),
        (Saved(50, "checkpoints/step-50"), ""),
        (Sampled(50, "a cat", "samples/1.png"), ""),
    ],
)
def test_event_in_words(event: Event, words: str) -> None:
    assert console.line(event, FOLDER) == words


def test_measurement_names_what_else_was_measured() -> None:
    assert console.line(MEASURED, FOLDER).endswith("; gain on training pictures 31.0 %; drift on neutral prompts 4.2 %")
    assert "drift" not in console.line(Validated(50, 0.4, 0.5, 0.2, 0.1, 0.3, 0.9, 40), FOLDER)


def test_peak_memory_is_said_where_it_is_known() -> None:
    assert "at most 2.5 GiB" in console.line(Finished(50, "cat.safetensors", 9.0, 1.0, 2_684_354_560), FOLDER)
    assert "at most" not in console.line(Finished(50, "cat.safetensors", 9.0, 1.0), FOLDER)
    assert console.memory(512 << 20) == "512 MiB"


def test_long_plan_is_cut_after_the_fullest_buckets() -> None:
    text = console.plan(Planned([[64 * number, 64, number] for number in range(1, 21)], 30, 0))
    assert "in 20 buckets" in text and "1280x64 20" in text and text.endswith(", and 12 more sizes")


def test_every_kind_of_event_has_its_line() -> None:
    silent = {"saved", "sampled"}
    sample: list[Event] = [
        events.Started("cat", 100, 0, 44, 40, 1000, "cpu", "float32", "imprimatura"), Planned([[128, 128, 4]], 1, 0),
        events.Cached(8, 8, 1.0),
        Step(1, 0.5, 1e-4, 0.1, 0.1), MEASURED, Sampled(0, "a", "a.png"), Saved(50, "a"), events.Warned("look"),
        Adjusted(1, "less at once"),
        Overtrained(60, 50, "it over-trains."), Recommended(50, "best.safetensors", "why."),
        Folded(1, 3, [50], [0.4], 0.5), events.Stopped(10),
        Finished(100, "a", 1.0, 1.0), events.Failed("X", "no"),
    ]  # fmt: skip
    assert {event.kind for event in sample} == set(events.KINDS)
    assert all(bool(console.line(event, FOLDER)) == (event.kind not in silent) for event in sample)


def test_alarm_is_printed_once_and_steps_are_thinned_out(capsys: pytest.CaptureFixture[str]) -> None:
    alarm = Overtrained(60, 50, "it over-trains.")
    stream: list[Event] = [
        Started("cat", 100, 0, 44, 0, 1, "cpu", "float32", "imprimatura"),
        *(Step(step, 0.5, 1e-4, 0.1, 0.2) for step in range(1, 51)),
    ]
    last = console.show([*stream, alarm, alarm, Finished(100, "a.safetensors", 1.0, 1.0)], FOLDER)
    lines = capsys.readouterr().out.splitlines()
    assert isinstance(last, Finished)
    assert [line for line in lines if line.startswith("step ")] == [
        "step 25: loss 0.5000, 0.20 s a step",
        "step 50: loss 0.5000, 0.20 s a step",
    ]
    assert sum("over-training at step 60" in line for line in lines) == 1
