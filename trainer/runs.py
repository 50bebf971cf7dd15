"""Run folders: `<runs>/<name>/` with `config.toml events.jsonl samples/ checkpoints/ <name>.safetensors report.html`.

A name never overwrites: the next is `<name>-2`. One process at a time works on a run: a file lock, which the
system lets go of when its owner dies, however it dies. What a run's state is, is read from what is there, never
from a flag that a crash could leave behind.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from trainer import events, file_names, presets, system, unique_names
from trainer.config import TrainConfig, parse
from trainer.errors import RunError

DEFAULT = Path("outputs") / "runs"
State = Literal["running", "finished", "unfinished"]


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    folder: Path
    cache_folder: Path | None = None  # where latents and embeddings are kept, if not beside the run

    @property
    def cache(self) -> Path:
        """Shared by all runs beside each other."""
        return self.cache_folder or self.folder.parent / ".cache"

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def config_file(self) -> Path:
        return self.folder / file_names.CONFIG

    @property
    def events_file(self) -> Path:
        return self.folder / file_names.EVENTS

    @property
    def lora_file(self) -> Path:
        return file_names.lora(self.folder)

    @property
    def checkpoints(self) -> Path:
        return self.folder / file_names.CHECKPOINTS

    @property
    def report_file(self) -> Path:
        return self.folder / file_names.REPORT

    @property
    def again(self) -> str:
        """The command that goes on with it."""
        return f"velatura train --resume --name {self.name}" + (
            "" if self.folder.parent == DEFAULT else ", with the --out it was started with"
        )

    def config(self) -> TrainConfig:
        """The settings it was started with. Raises: RunError, ConfigError."""
        if not self.config_file.is_file():
            raise RunError(f"run {self.folder} has no config.toml; it can't be resumed.")
        return parse(TrainConfig, presets.read_toml(self.config_file), str(self.config_file))

    def inside(self, file: str) -> Path | None:
        """A file of the run that its log names, which may have been edited; None for anything else."""
        try:
            path = (self.folder / file).resolve()
            return path if path.is_relative_to(self.folder.resolve()) and path.is_file() else None
        except (OSError, ValueError):
            return None

    def best(self, log: list[events.Event]) -> tuple[Path, events.Recommended | None]:
        """The LoRA file that the log recommends, and why; else the last file, which need not be there."""
        recommended = events.last(log, events.Recommended)
        path = self.inside(recommended.file) if recommended else None
        return (path, recommended) if path else (self.lora_file, None)

    def events(self) -> list[events.Event]:
        return events.read(self.events_file)

    def lock(self) -> FileLock:
        return FileLock(str(self.folder / ".lock"))

    def state(self) -> State:
        """running: a process holds it. finished: it says so and its file is there. unfinished: it can be resumed."""
        # Whoever trains it holds the lock; a killed process has let it go.
        try:
            with self.lock().acquire(timeout=0):
                log = self.events()
                done = bool(log) and isinstance(log[-1], events.Finished) and self.lora_file.is_file()
                return "finished" if done else "unfinished"
        except Timeout:
            return "running"


# Making a run.


def slug(name: str) -> str:
    """A safe folder name: letters, digits, dot, dash, underscore; at most 80. Raises: RunError if nothing is left."""
    cleaned = re.sub(r"[^\w.-]+", "-", name, flags=re.UNICODE).strip("-. ")[:80]
    # File systems count bytes: 255 a name, of which endings and numbers take some. A cut letter is dropped.
    cleaned = cleaned.encode()[:200].decode(errors="ignore").strip("-. ")
    if not cleaned:
        raise RunError(f"name {name!r} has no letter or digit; allowed: letters, digits, '.', '-' and '_'.")
    return system.usable_name(cleaned)


def create(parent: Path, name: str, config: TrainConfig) -> Run:
    """A new run folder `parent/name`, or `name-2`, `name-3` ... if there is one.

    Made under another name with its settings inside, then renamed: there is never a run without settings.
    """
    # The folder, whole, under a hidden name.
    wanted = slug(name)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        unique_names.sweep(parent)
        unnamed = Run(Path(tempfile.mkdtemp(prefix=unique_names.unfinished(), dir=parent)))
    except OSError as error:
        raise RunError(f"--out is {str(parent)!r}, where no run folder can be made: {error.strerror}.") from None
    system.let_others_read(unnamed.folder)
    presets.save(config, unnamed.config_file)

    # Its name: the first that is free. To rename it onto a folder that has files is an error on every system.
    for number in range(1, 100_000):
        folder = parent / (wanted if number == 1 else f"{wanted}-{number}")
        try:
            unnamed.folder.rename(folder)
            return Run(folder)
        except OSError:
            if not folder.exists():
                raise
    raise RunError(f"{parent} has too many runs called {wanted!r}; choose another name.")


def discard(run: Run) -> None:
    """Remove the folder of a run in which nothing was begun and that no process holds; any other stays."""
    # Anything that a user could miss, or that another process is at.
    begun = (
        run.state() == "running"
        or run.checkpoints.exists()
        or (run.folder / file_names.FOLDS).exists()
        or any(isinstance(event, events.Started) for event in run.events())
    )
    if not begun:
        shutil.rmtree(run.folder, ignore_errors=True)


# Finding runs.


def every(parent: Path) -> list[Run]:
    """The runs in a folder, newest first."""
    times: dict[Path, float] = {}
    for path in parent.glob("[!.]*"):
        with suppress(OSError):  # taken away meanwhile, or another user's
            if (path / file_names.CONFIG).is_file():
                times[path] = path.stat().st_mtime
    return [Run(path) for path in sorted(times, key=lambda path: times[path], reverse=True)]


def named(name: str) -> Run:
    """The run in a folder, or below outputs by its name. Raises: RunError, which names those there are."""
    for folder in (Path(name), DEFAULT / name):
        if (folder / file_names.CONFIG).is_file():
            return Run(folder.resolve())
    names = ", ".join(run.name for run in every(DEFAULT)[:20]) or "(none)"
    raise RunError(f"there is no run {name[:200]!r}; allowed: a run's folder, or one of {names}.")


def find_resumable(parent: Path, name: str | None) -> Run | None:
    """The run of that name, else the newest unfinished one, else None."""
    if name is not None:
        run = Run(parent / slug(name))
        return run if run.config_file.is_file() else None
    return next((run for run in every(parent) if run.state() == "unfinished"), None)
