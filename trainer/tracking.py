"""A run's events in TensorBoard or trackio as well, in the run's own folder; nothing of it leaves this machine.

A tracker that fails is named once and switched off, and the run goes on. A resumed run repeats the steps after its
checkpoint; they have the same values, so that each tracker keeps one of the two.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy

from trainer import data
from trainer.config import TrainConfig
from trainer.errors import ConfigError, UserError
from trainer.events import Event, Failed, Finished, Sampled, Started, Step, Stopped, Validated, Warned
from trainer.runs import Run

_MODULES = {"tensorboard": ("tensorboard",), "trackio": ("trackio",)}
# Variables that would make trackio send what it logs elsewhere.
_PLACES = ("SPACE_ID", "SERVER_URL", "DATASET_ID", "BUCKET_ID", "WEBHOOK_URL", "WRITE_TOKEN")
_ELSEWHERE = tuple(f"TRACKIO_{place}" for place in _PLACES)
_PREVIEW_CHARS = 60  # of a prompt, in a picture's name


class TrackerError(UserError):
    """A tracker did not do as it was asked."""


class Tracker(Protocol):
    """Where figures and pictures go."""

    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    def picture(self, step: int, name: str, path: Path) -> None: ...

    def close(self) -> None: ...


# The trackers.


class TensorBoard:
    """Event files in `<run>/tensorboard`; those of steps after `from_step` that an earlier process wrote are hidden."""

    def __init__(self, run: Run, from_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge: dict[str, Any] = {"purge_step": from_step + 1} if from_step else {}
        self.writer: Any = SummaryWriter(str(run.folder / "tensorboard"), **purge)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, path: Path) -> None:
        self.writer.add_image(name, numpy.asarray(data.open_image(path)), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class Trackio:
    """A database in `<run>/trackio`; see it with `TRACKIO_DIR=<run>/trackio trackio show`.

    trackio reads its folder once, when it is imported, so a process can track one run. It prints, on a stream that may
    be ours for JSON lines; that is caught.
    """

    def __init__(self, run: Run, from_step: int) -> None:
        # Nothing leaves this machine; set before trackio is imported, which reads these once.
        folder = (run.folder / "trackio").resolve()
        for name in _ELSEWHERE:
            os.environ.pop(name, None)
        os.environ["TRACKIO_DIR"] = str(folder)
        with contextlib.redirect_stdout(io.StringIO()):
            self.trackio = importlib.import_module("trackio")
            if Path(self.trackio.TRACKIO_DIR) != folder:
                raise TrackerError(
                    f"trackio already writes to {self.trackio.TRACKIO_DIR}; it can track one run a process."
                )
            self.run = self.trackio.init(
                run.name, name=run.name, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False
            )
            # What an earlier process has logged is not logged again.
            storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
            self.last_step = (storage.get_max_step_for_run(run.name, run.name) or 0) if from_step else 0

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if step > self.last_step:
            self.run.log(values, step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        if step > self.last_step or step == 0 == self.last_step:
            self.run.log({name: self.trackio.Image(str(path))}, step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.trackio.finish()


TRACKERS: dict[str, Callable[[Run, int], Tracker]] = {"tensorboard": TensorBoard, "trackio": Trackio}


# Following a run.


def check(config: TrainConfig) -> None:
    """Raises: ConfigError if the tracker that is wanted is not installed."""
    # Looked for without importing it: a tracker takes seconds to load, and only a run needs it.
    missing = [
        name
        for name in _MODULES.get(config.track, ())
        if name not in sys.modules and importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ConfigError(
            f"track is {config.track}, but the package {missing[0]} is not installed; install it with: pip install "
            f"'velatura[track]'."
        )


def follow(config: TrainConfig, run: Run, stream: Iterator[Event]) -> Iterator[Event]:
    """The same events, each tracked as it passes, with one Warned more if the tracker fails."""
    if config.track == "none":
        yield from stream
        return
    tracking = _Tracking(config.track, run)
    try:
        for event in stream:
            tracking.track(event)
            if isinstance(event, Finished | Stopped | Failed):
                tracking.close()
            if tracking.complaint:  # before the event, so that the last one stays the last
                yield Warned(tracking.complaint)
                tracking.complaint = ""
            yield event
    finally:
        tracking.close()


class _Tracking:
    """The tracker of a run from its start to its end or first failure."""

    def __init__(self, kind: str, run: Run) -> None:
        self.kind, self.run = kind, run
        self.tracker: Tracker | None = None
        self.complaint = ""
        self.names: dict[str, str] = {}  # of pictures, by prompt

    def track(self, event: Event) -> None:
        """Track an event; a failure becomes the complaint and the end of tracking."""
        try:
            with _as_tracker_error():
                if isinstance(event, Started):
                    self.tracker = TRACKERS[self.kind](self.run, event.from_step)
                elif self.tracker is not None:
                    self._send(self.tracker, event)
        except TrackerError as error:
            self._switch_off(error)

    def close(self) -> None:
        """Close the tracker, if it is open."""
        try:
            with _as_tracker_error():
                if self.tracker is not None:
                    self.tracker.close()
        except TrackerError as error:
            self._switch_off(error)
        self.tracker = None

    def _switch_off(self, error: TrackerError) -> None:
        """Track no more, and keep why; said once, with the next event."""
        self.tracker = None
        self.complaint = f"{self.kind} failed and is switched off; the run goes on without it: {error}"

    def _send(self, tracker: Tracker, event: Event) -> None:
        """What of an event is a figure or a picture."""
        match event:
            case Step():
                figures = {"loss": event.loss, "learning rate": event.learning_rate, "gradient norm": event.grad_norm}
                tracker.scalars(event.step, figures)
            case Validated():
                measured = {
                    "held-out loss": event.loss,
                    "held-out gain": event.gain,
                    "gain on training pictures": event.train_gain,
                    "drift": event.drift,
                }
                tracker.scalars(event.step, {name: value for name, value in measured.items() if value is not None})
            case Sampled():
                tracker.picture(event.step, self._name(event.prompt), self.run.folder / event.file)

    def _name(self, prompt: str) -> str:
        """A name for a prompt's pictures, another for each prompt."""
        # Trackers take a slash for a group; a number keeps prompts apart that begin alike.
        short = prompt[:_PREVIEW_CHARS].replace("/", " ")
        return self.names.setdefault(prompt, f"previews/{len(self.names) + 1} {short}".strip())


@contextlib.contextmanager
def _as_tracker_error() -> Iterator[None]:
    """Whatever a tracker raises in the body, as a TrackerError."""
    # Any error: nobody knows what another project's code raises, and none of it is to end a run.
    try:
        yield
    except TrackerError:
        raise
    except Exception as error:
        raise TrackerError(f"{type(error).__name__}: {error}") from error
