"""The report: one whole file, whatever the log holds; nothing from outside becomes markup; advice follows from what was
measured.
"""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer import events, presets, report, runs
from trainer.config import TrainConfig
from trainer.data import Dataset, Item, likeness
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
    Stopped,
    Validated,
    Warned,
)
from trainer.report import advising as advice
from trainer.report import svg_charts as report_charts
from trainer.report.advising import advice as advise
from trainer.report.plausible import plausible
from trainer.runs import Run

HOSTILE = "<img src=x onerror=alert(1)>\"'&"
STARTED = Started("a", 100, 0, 44, 40, 1000, "cpu", "float32", "imprimatura")
UNMEASURED = Started("a", 100, 0, 44, 0, 1000, "cpu", "float32", "imprimatura")
VOID = {"meta", "img", "br"}
OPTIONAL = {"li", "p", "tr", "td", "th"}  # may be left open


def config(**changes: object) -> TrainConfig:
    return presets.load(presets.names()[0], changes)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return runs.create(tmp_path, "a", config(max_steps=100))


def written(run: Run, log: list[Event], dataset: Dataset | None = None) -> str:
    """The report of this log, checked to be one whole page that asks for nothing."""
    run.events_file.write_text("".join(map(events.to_line, log)), encoding="utf-8")
    report.write(run, dataset)
    return whole(run)


class _Page(HTMLParser):
    """Tags that are open, and everything a page could load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.suspicious: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.suspicious += [tag] if tag in ("script", "link", "iframe", "object", "a") else []
        for name, value in attrs:
            loads = name in ("src", "href") and not (value or "").startswith("data:")
            self.suspicious += [f"{name}={value}"] if loads or name.startswith("on") else []
            if tag in ("svg", "path", "polyline", "circle", "rect", "text") and name not in ("aria-label", "class"):
                self.suspicious += [f"{name}={value}"] if "nan" in (value or "") or "inf" in (value or "") else []
        if tag not in VOID | OPTIONAL:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID | OPTIONAL:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in OPTIONAL:
            assert self.open.pop() == tag


def whole(run: Run) -> str:
    text = run.report_file.read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert not page.open and not page.suspicious, page.suspicious
    assert "http" not in text.replace("http-equiv", "")
    return text


def measured(
    step: int, gain: float, spread: float = 0.02, train_gain: float | None = None, drift: float | None = None
) -> Validated:
    deciles = [0.9 - 0.08 * tenth for tenth in range(10)]
    return Validated(
        step,
        0.5 * (1 - gain),
        0.5,
        gain,
        gain - spread,
        gain + spread,
        0.8,
        40,
        [decile * (1 - gain) for decile in deciles],
        deciles,
        train_gain,
        drift,
    )


def log_of(kind: str) -> list[Event]:
    begun: list[Event] = [
        STARTED,
        Cached(8, 8, 1.0),
        *(Step(step, 1 / step, 1e-4, 0.5, 0.1) for step in range(1, 51)),
        measured(50, 0.1),
    ]
    ends: dict[str, list[Event]] = {
        "empty": [],
        "unfinished": begun,
        "stopped": [*begun, Stopped(50)],
        "failed": [*begun, Failed("RuntimeError", "out of paint")],
        "finished": [
            *begun,
            Recommended(50, "best.safetensors", "step 50 is best."),
            Finished(100, "a.safetensors", 60.0, 1.5, 1 << 31),
        ],
    }
    return ends[kind]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "Not finished: no step yet"), ("unfinished", "Not finished: 50 of 100 steps"),
        ("stopped", "Stopped on request after step 50"),
        ("failed", "out of paint"), ("finished", "Finished: 100 steps in 60 s"),
    ],
)  # fmt: skip
def test_run_in_any_state_has_a_report(run: Run, kind: str, words: str) -> None:
    assert words in written(run, log_of(kind))


def test_recommendation_alarm_and_figures_are_shown(run: Run) -> None:
    text = written(
        run, [*log_of("finished"), Overtrained(100, 50, "it learns by heart."), Folded(1, 4, [50], [0.4], 0.5)]
    )
    assert "Use step 50: <code>best.safetensors</code>" in text and "Step 50 is best." in text
    assert "It over-trains from step 50 on" in text and "Fold 1: trained without 4 pictures" in text
    assert text.count("<svg") == 5 and "at most 2.0 GiB" in text  # gain, loss, tenths, training loss, learning rate


def test_previews_are_rows_by_prompt_and_copies_are_named(run: Run) -> None:
    (run.folder / "samples").mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", (64, 64), "teal").save(run.folder / "samples" / name)
    sampled: list[Event] = [
        Sampled(0, "a cat", "samples/1.png", 0.5, "x.png"),
        Sampled(50, "a cat", "samples/2.png", 0.98, f"{HOSTILE}.png"),
    ]
    text = written(
        run,
        [
            *sampled,
            Sampled(50, "a dog", "samples/2.png"),
            Sampled(60, "a dog", "../../outside.png"),
            Sampled(70, "a dog", "gone\0.png"),
        ],
    )
    assert text.count('class="strip"') == 2 and text.count("<figure>") == 3
    assert text.count('class="alarm"') == 1 and "(0.98)" in text and advice.COPY == likeness.COPY


def test_pictures_of_the_dataset_are_listed_with_their_bucket(run: Run, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.png" for name in ("wide", HOSTILE.replace("/", ""), "gone")]
    Image.new("RGB", (256, 128), "navy").save(paths[0])
    Image.new("RGB", (128, 128), "teal").save(paths[1])
    items = [
        Item(paths[0], ("a wide one",), "", 256, 128, repeats=3),
        Item(paths[1], (HOSTILE, "two"), "", 128, 128),
        Item(paths[2], ("x",), "", 128, 128),
    ]
    text = written(run, [Planned([[128, 128, 2]], 2, 1)], Dataset(tmp_path, items, []))
    assert "<td>128 x 128<td>2" in text and "repeats 3" in text and "1 of the pictures lose" in text
    assert text.count("data:image/jpeg") == 2 and "<br>two" in text
    assert "onerror=alert(1)&gt;" in text and "<img src=x" not in text


def test_long_lists_of_pictures_are_cut(run: Run, tmp_path: Path) -> None:
    item = Item(tmp_path / "gone.png", ("x",), "", 128, 128)
    assert "And 50 more pictures." in written(run, [], Dataset(tmp_path, [item] * 250, []))


def test_words_from_outside_stay_words(run: Run) -> None:
    log: list[Event] = [
        Started(HOSTILE, 10, 0, 4, 0, 1, HOSTILE, HOSTILE, HOSTILE), Warned(HOSTILE), Recommended(1, HOSTILE, HOSTILE),
        Overtrained(1, 1, HOSTILE),
        Adjusted(1, HOSTILE), Failed(HOSTILE, HOSTILE),
    ]  # fmt: skip
    presets.save(config(**{"data.trigger": HOSTILE}), run.config_file)
    text = written(run, log)
    assert "<img" not in text and "onerror=alert(1)&gt;" in text


def test_settings_that_differ_come_first(run: Run) -> None:
    presets.save(config(learning_rate=0.0123), run.config_file)
    text = written(run, [])
    changed, every = text.split("All settings", 1)
    assert "0.0123" in changed and "0.0001" in changed and "memory.offload" not in changed and "memory.offload" in every


@pytest.mark.parametrize("text", ["", "not = [toml", "rank = 0", "\0\1", HOSTILE])
def test_unreadable_settings_are_shown_as_they_are(run: Run, text: str) -> None:
    run.config_file.write_text(text)
    written(run, log_of("finished"))


def test_report_is_small_for_a_long_run(run: Run) -> None:
    assert len(written(run, [STARTED, *(Step(step, 1 / step, 1e-4, 0.5, 0.1) for step in range(1, 20_001))])) < 100_000


# Odd logs.

values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.lists(st.integers() | st.floats() | st.text(max_size=5), max_size=4)
)


@st.composite
def lines(draw: st.DrawFn) -> str:
    """A line of a log: an event whose fields are of their kind, or anything."""
    kind = draw(st.sampled_from(sorted(events.KINDS)))
    fields = {}
    for name, annotation in events.KINDS[kind].__annotations__.items():
        fitting = {
            "int": st.integers(-(10**16), 10**16), "float": st.floats(), "str": st.text(st.characters(), max_size=30),
            "float | None": st.none() | st.floats(),
            "list[float]": st.lists(st.floats(), max_size=12), "list[int]": st.lists(st.integers(), max_size=5),
            "list[list[int]]": st.lists(st.lists(st.integers(0, 9999), max_size=4), max_size=4),
        }.get(str(annotation))  # fmt: skip
        if fitting is not None:
            fields[name] = draw(fitting if draw(st.integers(0, 9)) else values)
    return json.dumps({"event": kind, **fields})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(lines() | st.text(max_size=20), max_size=25))
def test_no_log_breaks_the_report(run: Run, log: list[str]) -> None:
    run.events_file.write_bytes("\n".join(log).encode("utf-8", "surrogatepass"))
    report.write(run)
    whole(run)


@settings(max_examples=200, deadline=None)
@given(st.lists(lines(), max_size=20))
def test_advice_is_pure_and_never_fails(log: list[str]) -> None:
    read = plausible([events.KINDS[(fields := json.loads(line)).pop("event")](**fields) for line in log])
    assert advise(read, None) == advise(read, None)
    assert all(isinstance(line, str) and line for line in advise(read, config()))


@pytest.mark.parametrize(
    "event",
    [
        Step("1", 0.5, 1e-4, 0.1, 0.1),
        Step(1, float("nan"), 1e-4, 0.1, 0.1),
        Step(True, 0.5, 1e-4, 0.1, 0.1),
        Planned([[1, "x"]], 1, 0),
    ],
)  # type: ignore[arg-type, list-item]
def test_implausible_events_are_passed_over(event: Event) -> None:
    assert plausible([event, STARTED]) == [STARTED]


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (0.1, 0.1), (0, 0), (-3e-7, 2e-7), (-1e30, 1e30), (1e30, 1e30), (0, 5e-324), (5.0, 5.0000000001)],
)
def test_ticks_are_few_and_span_the_range(low: float, high: float) -> None:
    ticks = report_charts.ticks(low, high)
    assert (
        2 <= len(ticks) <= 12
        and ticks[0] <= low + 1e-9 * abs(low) + 1e-19
        and ticks[-1] >= high - 1e-9 * abs(high) - 1e-19
    )


# Advice.


def advice_of(log: list[Event], **changes: object) -> str:
    return "\n".join(rule.text for rule in advise(log, config(**changes)))


def test_nothing_is_advised_where_nothing_is_wrong() -> None:
    assert advice_of([STARTED, measured(50, 0.2), measured(100, 0.203)]) == ""


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ([STARTED, measured(50, 0.2), measured(100, 0.1), Overtrained(100, 50, "x")], "max_steps=50"),
        ([STARTED, measured(50, 0.1), measured(100, 0.15)], "max_steps=200"),
        ([STARTED, measured(50, 0.05), measured(100, 0.06, train_gain=0.4)], "Keep it from learning by heart"),
        ([STARTED, measured(50, 0.001)], "learning_rate=0.003"),
        ([STARTED, measured(50, -0.2), measured(100, -0.3)], "Learn more gently"),
        ([STARTED, measured(50, 0.2, drift=0.5)], "objective.preservation_weight=0.5"),
        ([STARTED, measured(50, 0.2), Sampled(50, "a", "a.png", 0.99, "x.png")], "copy of a training picture (x.png)"),
        ([STARTED, Adjusted(5, "x", ["memory.micro_batch=4"]), Adjusted(6, "x", ["memory.micro_batch=2"]),
          Adjusted(7, "x", ["memory.offload=blocks"]), Adjusted(8, "x", ["memory.offload_activations=true"])],
         "memory.micro_batch=2, memory.offload=blocks, memory.offload_activations=true"),
        ([STARTED, Adjusted(6, "gradient checkpointing is on")], "gradient checkpointing is on"),
        ([UNMEASURED], "validation.leave_out=8"),
        ([Started("a", 100, 0, 9, 0, 1000, "cpu", "float32", "imprimatura")], "validation.folds=3"),
        ([STARTED, Failed("X", "y")], "resume it"),
    ],
)  # fmt: skip
def test_advice_names_the_setting(log: list[Event], words: str) -> None:
    assert words in advice_of(log, learning_rate=1e-3)


def test_copies_count_only_once_training_has_begun() -> None:
    assert "copy" not in advice_of([STARTED, measured(50, 0.2), Sampled(0, "a", "a.png", 0.99, "x.png")])


def test_one_length_is_advised_at_a_time() -> None:
    log: list[Event] = [STARTED, measured(50, 0.1), measured(100, 0.2), Overtrained(100, 50, "x")]
    assert advice_of(log).count("max_steps=") == 1


def test_the_pointer_finds_the_values_of_every_line_at_its_step() -> None:
    loss = report_charts.Series("loss", "own", [(float(step), 1 / (step + 1)) for step in range(1000)], dots=False)
    held = report_charts.Series("held-out <b>", "held", [(0.0, 0.5), (500.0, 0.25), (999.0, 0.125)])
    chart = report_charts.lines([loss, held], "Loss", lambda value: f"{value:.4g}")
    bands = re.findall(r'd="M(\d+),12H(\d+)V200H\d+z"><title>(.*?)</title>', chart, re.DOTALL)
    said = [html.unescape(text).split("\n") for _, _, text in bands]
    assert len(said) == 20 and said[0] == ["step 0", "loss: 1", "held-out <b>: 0.5"]
    assert said[-1][0] == "step 999" and said[-1][-1] == "held-out <b>: 0.125"
    assert all(line[1].startswith("loss: ") for line in said), "each band has one of its line's many points"
    assert sum("held-out" in " ".join(line) for line in said) == 3 and "<b>" not in chart
    assert [right for _, right, _ in bands[:-1]] == [left for left, _, _ in bands[1:]], "no gap between them"
    assert (bands[0][0], bands[-1][1]) == ("50", "428")
