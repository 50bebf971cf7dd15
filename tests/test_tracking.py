"""Trackers are guests: they get what the run says, they stay on this machine, and they never stop a run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from trainer import presets, tracking
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.events import Event, Finished, Sampled, Started, Step, Validated, Warned
from trainer.runs import Run

ROOT = Path(__file__).parents[1]
TRACKERS = sorted(tracking.TRACKERS)


def settings(track: str) -> TrainConfig:
    return presets.load(presets.names()[0], {"track": track})


def log(from_step: int, last: int) -> list[Event]:
    """What a run says from one step to another, with a preview and a measurement at the end."""
    return [
        Started("a", 6, from_step, 8, 2, 10, "cpu", "float32", "imprimatura"),
        *(Step(step, 1.0 / step, 1e-4, 0.5, 0.1) for step in range(from_step + 1, last + 1)),
        Validated(last, 0.4, 0.5, 0.2, 0.1, 0.3, 1.0, 2, train_gain=0.3, drift=0.01),
        Sampled(last, "a/b <i>", "samples/1.png"),
    ]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "a" / "samples").mkdir(parents=True)
    Image.new("RGB", (32, 32), "teal").save(tmp_path / "a" / "samples" / "1.png")
    return Run(tmp_path / "a")


@pytest.mark.parametrize("track", TRACKERS)
def test_missing_package_is_refused_before_the_run(track: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda _: None)
    for name in [name for name in sys.modules if name.split(".")[0] == track]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match=r"pip install 'velatura\[track\]'"):
        tracking.check(settings(track))
    tracking.check(settings("none"))


def test_without_a_tracker_nothing_is_added(run: Run) -> None:
    assert list(tracking.follow(settings("none"), run, iter(log(0, 3)))) == log(0, 3)
    assert sorted(path.name for path in run.folder.iterdir()) == ["samples"]


def test_tensorboard_has_every_figure_once_after_a_resume(run: Run) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for from_step, last in ((0, 4), (2, 6)):  # killed after step 4, resumed from the checkpoint of step 2
        assert list(tracking.follow(settings("tensorboard"), run, iter(log(from_step, last)))) == log(from_step, last)
    scalars = EventAccumulator(str(run.folder / "tensorboard"))
    scalars.Reload()
    assert [(scalar.step, round(scalar.value, 4)) for scalar in scalars.Scalars("loss")] == [
        (step, round(1 / step, 4)) for step in range(1, 7)
    ]
    assert {
        "learning rate",
        "gradient norm",
        "held-out loss",
        "held-out gain",
        "gain on training pictures",
        "drift",
    } < set(scalars.Tags()["scalars"])
    assert scalars.Tags()["images"] == ["previews/1 a b <i>"]


def test_trackio_stays_in_the_run_and_asks_nothing_of_the_network(run: Run) -> None:
    pytest.importorskip("trackio")
    code = (
        "import socket, sys\n"
        "def refuse(*args): raise AssertionError(f'asked for {args}')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from test_tracking import *\n"
        "at, last = map(int, sys.argv[2:])\n"
        "seen = list(tracking.follow(settings('trackio'), Run(Path(sys.argv[1])), iter(log(at, last))))\n"
        "assert seen == log(at, last), seen\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "print(*[row['step'] for row in SQLiteStorage.get_logs('a', 'a') if 'loss' in row])\n"
    )
    there = os.environ | {
        "TRACKIO_SPACE_ID": "someone/else",
        "TRACKIO_SERVER_URL": "http://203.0.113.1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    for from_step, last in ((0, 4), (2, 6)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(run.folder), str(from_step), str(last)],
            cwd=ROOT,
            env=there,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "2", "3", "4", "5", "6"], "and prints nothing of its own"
    assert list((run.folder / "trackio").glob("*.db"))


class Broken:
    """A tracker that fails at what it is told to."""

    def __init__(self, at: str) -> None:
        self.at, self.calls = at, 0
        self._fail("open")

    def _fail(self, what: str) -> None:
        self.calls += 1
        if what == self.at:
            raise OSError(28, "No space left on device")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._fail("scalars")

    def picture(self, step: int, name: str, path: Path) -> None:
        self._fail("picture")

    def close(self) -> None:
        self._fail("close")


@pytest.mark.parametrize("at", ["open", "scalars", "picture", "close"])
def test_failing_tracker_is_said_once_and_the_run_goes_on(at: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracking.TRACKERS, "tensorboard", lambda *_: Broken(at))
    whole = [*log(0, 4), Finished(4, "a.safetensors", 1.0, 1.0)]
    seen = list(tracking.follow(settings("tensorboard"), run, iter(whole)))
    warnings = [event for event in seen if isinstance(event, Warned)]
    assert len(warnings) == 1 and "No space left" in warnings[0].message and "switched off" in warnings[0].message
    assert [event for event in seen if event not in warnings] == whole and seen[-1] == whole[-1]


def test_tracker_is_closed_when_the_run_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Broken("never")
    closed: list[bool] = []
    monkeypatch.setattr(guest, "close", lambda: closed.append(True))
    monkeypatch.setitem(tracking.TRACKERS, "tensorboard", lambda *_: guest)

    def fails() -> Iterator[Event]:
        yield from log(0, 2)
        raise RuntimeError("out of paint")

    with pytest.raises(RuntimeError, match="out of paint"):
        list(tracking.follow(settings("tensorboard"), run, fails()))
    assert closed == [True]
