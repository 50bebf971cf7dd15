"""What happens in a run: frozen dataclasses, one JSON line each in `events.jsonl`.

The command line's progress bar, the UI and the report all read these; nothing else passes between trainer and app.
A line is written whole with one `write`; a kill in the middle leaves at most one torn last line, which `read` drops.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, ClassVar, TypeVar

from trainer import files


@dataclass(frozen=True)
class Started:
    """A run begins, or goes on from `from_step`."""

    kind: ClassVar[str] = "started"
    name: str
    max_steps: int
    from_step: int
    num_pictures: int
    num_heldout: int
    num_trainable: int  # parameters, not tensors
    device: str
    dtype: str
    base: str


@dataclass(frozen=True)
class Cached:
    """Latents and text embeddings are ready; `num_computed` of them were not in the cache."""

    kind: ClassVar[str] = "cached"
    num_entries: int
    num_computed: int
    seconds: float


@dataclass(frozen=True)
class Step:
    """One step is done."""

    kind: ClassVar[str] = "step"
    step: int  # 1..max_steps, counted when done
    loss: float
    learning_rate: float
    grad_norm: float
    seconds: float


@dataclass(frozen=True)
class Validated:
    """Held-out loss at fixed pictures, noise and timesteps; `gain` is the fall against the base, 0.1 = 10 %."""

    kind: ClassVar[str] = "validated"
    step: int
    loss: float
    base_loss: float
    gain: float
    gain_low: float  # 95 % bootstrap interval over pictures
    gain_high: float
    share_better: float  # of pictures whose loss fell
    num_pictures: int
    deciles: list[float] = field(default_factory=list)  # mean loss at each of the ten timesteps, the least noisy first
    base_deciles: list[float] = field(default_factory=list)
    train_gain: float | None = None  # the same on as many training pictures: far above `gain` means it learns by heart
    drift: float | None = None  # how far predictions on neutral prompts moved, relative to their length; 0 is the base


@dataclass(frozen=True)
class Sampled:
    """A preview was drawn."""

    kind: ClassVar[str] = "sampled"
    step: int
    prompt: str
    file: str  # relative to the run folder
    nearest: float | None = None  # likeness (-1..1) to the training picture it is most like
    nearest_picture: str = ""


@dataclass(frozen=True)
class Planned:
    """How the pictures are cut into batches: `buckets` has (width_px, height_px, pictures), repeats counted."""

    kind: ClassVar[str] = "planned"
    buckets: list[list[int]]
    num_batches: int  # an epoch
    num_cropped: int  # pictures that lose more than a tenth to the crop


@dataclass(frozen=True)
class Adjusted:
    """Memory ran out at `step` and the run goes on with a setting changed; the step is taken again."""

    kind: ClassVar[str] = "adjusted"
    step: int
    message: str
    settings: list[str] = field(default_factory=list)  # such as `memory.offload=blocks`: what the run goes on with


@dataclass(frozen=True)
class Overtrained:
    """The held-out loss has clearly risen above its best."""

    kind: ClassVar[str] = "overtrained"
    step: int
    best_step: int
    message: str


@dataclass(frozen=True)
class Recommended:
    """Which checkpoint to use and why, in words; `file` is relative to the run folder."""

    kind: ClassVar[str] = "recommended"
    step: int
    file: str
    reason: str


@dataclass(frozen=True)
class Folded:
    """One fold of a small set was trained without `num_left_out` pictures; `losses` are theirs at each of `steps`."""

    kind: ClassVar[str] = "folded"
    fold: int
    num_left_out: int
    steps: list[int]
    losses: list[float]
    base_loss: float


@dataclass(frozen=True)
class Saved:
    """A checkpoint was written."""

    kind: ClassVar[str] = "saved"
    step: int
    file: str  # relative to the run folder


@dataclass(frozen=True)
class Warned:
    """Something that the user should read; the run goes on."""

    kind: ClassVar[str] = "warned"
    message: str


@dataclass(frozen=True)
class Stopped:
    """Stopped on request after `step`, which is saved; the run can go on."""

    kind: ClassVar[str] = "stopped"
    step: int


@dataclass(frozen=True)
class Finished:
    """The exported file was opened again, complete and not empty."""

    kind: ClassVar[str] = "finished"
    step: int
    file: str
    seconds: float
    adapter_norm: float
    peak_memory_bytes: int = 0


@dataclass(frozen=True)
class Failed:
    """The run was ended by an error."""

    kind: ClassVar[str] = "failed"
    error_class: str
    message: str


# One member for each class above: `read` knows an event by its kind.
Event = (
    Started
    | Planned
    | Cached
    | Step
    | Validated
    | Sampled
    | Saved
    | Warned
    | Adjusted
    | Overtrained
    | Recommended
    | Folded
    | Stopped
    | Finished
    | Failed
)
KINDS = {cls.kind: cls for cls in Event.__args__}


# Their file.


def to_line(event: Event) -> str:
    """The event as one JSON line, keys in the order of the fields."""
    return json.dumps({"event": event.kind, **dataclasses.asdict(event)}) + "\n"


def read(path: Path) -> list[Event]:
    """All whole events of a file, oldest first; a torn last line and kinds of a newer version are passed over."""
    # Whatever a line can't be made an event of, by damage or by age, must not cost the others.
    events: list[Event] = []
    if not path.exists():
        return events
    for line in path.read_bytes().split(b"\n"):
        try:
            fields = json.loads(line)
            events.append(KINDS[fields.pop("event")](**fields))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return events


_E = TypeVar("_E")


def last(log: list[Event], kind: type[_E]) -> _E | None:
    """The newest event of a kind."""
    return next((event for event in reversed(log) if isinstance(event, kind)), None)


class Log:
    """A file of events that only grows. On a full disk lines wait in memory, whole, until there is room again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[bytes] = []

    def write(self, event: Event) -> None:
        """Add the event's line, and those that wait; never raises for a disk that is full."""
        # With every line that waits; of a write that fails half-way nothing stays.
        self._waiting.append(to_line(event).encode())
        try:
            with self.path.open("a+b") as file:
                size = file.seek(0, 2)
                try:
                    file.write(b"".join([_end_of_torn_line(file, size), *self._waiting]))
                    file.flush()
                except OSError:
                    file.truncate(size)
                    raise
        except OSError:
            return
        self._waiting.clear()


def _end_of_torn_line(file: BinaryIO, size: int) -> bytes:
    """A line's end if the file ends without one, as a kill may leave it: the torn line must not swallow the next."""
    if size:
        file.seek(size - 1)
    return b"\n" if size and file.read(1) != b"\n" else b""


def rewind(path: Path, step: int) -> None:
    """Drop what a resumed run will log again, so that its log equals an unbroken run's.

    Kept: everything up to the last step before the checkpoint of `step`. That it was saved is logged anew, since a kill
    may have come between the two; validation and previews of that step are made anew.
    """

    def keep(event: Event) -> bool:
        if step == 0 or isinstance(event, (Planned, Folded, Recommended, Stopped, Failed, Finished)):
            return False
        # Events without a step count as before the first one, and are kept.
        at = getattr(event, "step", -1)
        return at < step or (at == step and isinstance(event, Step))

    files.write(path, "".join(to_line(event) for event in read(path) if keep(event)).encode())
