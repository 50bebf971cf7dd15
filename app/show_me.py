"""Show me: the sample pictures become a style and a character, and the two are stacked, while somebody looks on.

Nothing is kept in the page: three ordinary jobs do it, each a process of its own, and one small file of the workspace
says which they are. So a reload, a second page or a killed server shows the same, further on.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tomli_w

from app import batches, dataset_sets, views
from app.context import Context
from app.job_table import Job
from app.jobs import LIVE, WAITING
from app.texts import say
from trainer import file_names, files, presets
from trainer.config import BatchConfig, StackConfig, parse
from trainer.errors import ConfigError, UserError
from trainer.events import Started, Step

_FILE = "show-me.json"
STYLE_PROMPT = "a red apple, outline style"
CHARACTER_PROMPT = "mokka, a smiling cat face"
PROMPT = "mokka, a smiling cat with heart-eyes, outline style"
_SEED = 4
_WEIGHT = 0.8
# Fewer than the presets' 100: both are learned well enough to be seen, and it takes less than two minutes.
STEPS = 80
_PREVIEW_EVERY = 20


@dataclass(frozen=True)
class Shown:
    """The numbers of its jobs, and whether it was closed by whoever saw it."""

    style: int
    character: int
    both: int
    closed: bool = False


@dataclass(frozen=True)
class Scene:
    """What there is to see now: pictures with a caption each, the newest first, and how far it is."""

    pictures: list[tuple[Path, str]]
    progress: views.Progress
    is_over: bool


def read(context: Context) -> Shown | None:
    """The show that was begun here last, if there was any."""
    try:
        values = json.loads((context.workspace / _FILE).read_bytes()[:4096])
        shown = Shown(**values)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    numbers = (shown.style, shown.character, shown.both)
    return shown if all(type(number) is int for number in numbers) and type(shown.closed) is bool else None


def begin(context: Context) -> Shown:
    """The jobs, on their way. Raises: ConfigError, DataError, RunError."""
    # A second press, or a second page, shows what is under way.
    earlier = read(context)
    if earlier and not scene(context, earlier).is_over:
        return earlier
    style = _train(context, "show-me-style", "imprimatura-style", "outline-style", STYLE_PROMPT)
    character = _train(context, "show-me-cat", "imprimatura-character", "grey-cat", CHARACTER_PROMPT, "mokka")
    # Their files aren't there yet: the batch waits behind both trainings.
    loras = [
        {"file": str(context.runs / job.name / f"{job.name}.safetensors"), "weight": _WEIGHT}
        for job in (style, character)
    ]
    jobs = {"base": "imprimatura", "prompts": [PROMPT], "seeds": [_SEED], "stacks": [loras]}
    text = tomli_w.dumps(
        parse(BatchConfig, jobs, "show me").model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    )
    both = context.runner.submit("show-me", text, batches.KINDS[".toml"])
    shown = Shown(style.id, character.id, both.id)
    _write(context, shown)
    return shown


def cancel(context: Context) -> None:
    """Its jobs, asked to end, the last first, so that none begins meanwhile."""
    shown = read(context)
    for job in reversed(_jobs(context, shown) if shown else []):
        if job.state in (*LIVE, *WAITING):
            with suppress(UserError):  # it ended meanwhile
                context.runner.stop(job.id)


def close(context: Context) -> None:
    """Have no page show it any more."""
    if shown := read(context):
        _write(context, replace(shown, closed=True))


def scene(context: Context, shown: Shown) -> Scene:
    """What there is to see of it now."""
    jobs = _jobs(context, shown)
    pictures = _examples(context) if len(jobs) == 3 else []
    # The previews of both trainings, from the untrained base on.
    steps = 0
    for job, what in zip(jobs[:2], (say("start.style"), say("start.character")), strict=False):
        folder = context.runs / job.name
        events = context.logs.read(folder / file_names.EVENTS)
        samples = views.samples(folder, events)[::-1]
        for path, caption in samples:
            when = caption.split(" · ")[0]
            is_untrained = when == say("run.step", step=0)
            when = say("start.before") if is_untrained else when
            pictures.append((path, say("start.picture", what=what, when=when)))
        step = views.last(events, Step)
        steps += STEPS if job.state == "finished" else min(step.step, STEPS) if step else 0
    # The picture of both, which is the last to come.
    if len(jobs) == 3:
        drawn, _ = batches.pictures(context.batches / jobs[2].name, 4)
        pictures += [
            (path, say("start.both_together")) for path in drawn if path.parent == context.batches / jobs[2].name
        ]
    states = [job.state for job in jobs]
    is_over = len(jobs) < 3 or states[2] == "finished" or bool({"failed", "stopped"} & set(states))
    return Scene(pictures[::-1], _progress(context, jobs, steps), is_over)


def keep_result(context: Context, job: Job) -> None:
    """Put the stacked picture where the other tabs find it, once this job, which has ended, has drawn it."""
    shown = read(context)
    if shown and shown.both == job.id:
        with suppress(OSError):  # a full disk is no reason to call the job failed
            result(context, shown)


def result(context: Context, shown: Shown) -> Path | None:
    """The stacked picture once it is drawn, among the pictures that the other tabs know."""
    jobs = _jobs(context, shown)
    if len(jobs) < 3 or jobs[2].state != "finished":
        return None
    folder = context.batches / jobs[2].name
    picture = next((path for path in batches.pictures(folder, 4)[0] if path.parent == folder), None)
    if picture is None:
        return None
    target = context.renders / f"show-me-{jobs[2].id}.png"
    if not target.is_file():
        with files.replacing(target) as unnamed:
            unnamed.write_bytes(picture.read_bytes())
        # Whoever opens it in Stack finds the base loaded. Not earlier: the trainings need the processor.
        threading.Thread(target=_load_base, args=(context,), name="show-me", daemon=True).start()
    return target


def _progress(context: Context, jobs: list[Job], steps: int) -> views.Progress:
    """One bar for all three jobs."""
    if len(jobs) < 3:
        return views.Progress(say("start.gone"), say("start.jobs_removed"), 0.0, "stopped")
    states = [job.state for job in jobs]
    share = 0.95 * steps / (2 * STEPS)  # the rest is the drawing
    if states[2] == "finished":
        return views.Progress(say("start.here_it_is"), say("start.here_it_is_long"), 1.0, "finished")
    if "failed" in states:
        return views.Progress(say("start.failed"), jobs[states.index("failed")].error[:300], share, "failed")
    if "stopped" in states or "stopping" in states:
        return views.Progress(say("job.cancelled"), say("start.begins_anew"), share, "stopped")
    for job, words in zip(jobs[:2], (say("start.learning_style"), say("start.learning_character")), strict=True):
        if job.state != "finished":
            events = context.logs.read(context.runs / job.name / file_names.EVENTS)
            step, started = views.last(events, Step), views.last(events, Started)
            detail = say("job.step", step=step.step, all=STEPS) if step else say("start.loading_base")
            if step is None and started:
                detail = say("start.preparing")
            if job.state in WAITING:
                detail = views.STATES[job.state]
            return views.Progress(words, _with_time_left(context, jobs, steps, detail), share, "running")
    return views.Progress(say("start.drawing_both"), "", share, "running")


def _with_time_left(context: Context, jobs: list[Job], steps: int, detail: str) -> str:
    """The detail and about how long it takes yet, by the pace of its steps; nothing of that before there are any."""
    events = [event for job in jobs[:2] for event in context.logs.read(context.runs / job.name / file_names.EVENTS)]
    paces = [event.seconds for event in events if isinstance(event, Step)][-20:]
    first = jobs[0]
    if not paces or first.started is None:
        return detail
    # Each job also opens the base, measures and draws, as the first has shown or shows.
    pace = statistics.median(paces)
    beside = max((first.ended or time.time()) - first.started - pace * min(steps, STEPS), 0.0)
    to_come = sum(job.started is None for job in jobs[1:])
    left = say("job.time_left", time=views.duration(pace * (2 * STEPS - steps) + beside * to_come))
    return f"{detail} · {left}" if detail else left


def _jobs(context: Context, shown: Shown) -> list[Job]:
    """Its jobs in their order, without those that are gone."""
    by_id = {job.id: job for job in context.runner.every()}
    return [by_id[number] for number in (shown.style, shown.character, shown.both) if number in by_id]


def _examples(context: Context) -> list[tuple[Path, str]]:
    """A picture of each sample set, to be seen at once."""
    shown = []
    for name, words in (("outline-style", say("start.learns_style")), ("grey-cat", say("start.learns_character"))):
        if name in context.dataset_names() and (pictures := context.pictures(context.datasets / name)):
            shown.append((pictures[0], words))
    return shown


def _train(context: Context, name: str, preset: str, sample: str, prompt: str, trigger: str = "") -> Job:
    """A training of a sample set, copied here if it isn't yet. Raises: ConfigError, DataError, RunError."""
    if sample not in context.dataset_names():
        dataset_sets.copy_sample(context, sample)
    settings = {
        "data.folder": str(context.datasets / sample),
        "data.trigger": trigger,
        "max_steps": STEPS,
        "preview_every_steps": _PREVIEW_EVERY,
        "validate_every_steps": STEPS,
        "preview.prompts": [prompt],
    }
    if not context.pictures(context.datasets / sample):
        raise ConfigError(say("start.no_pictures", dataset=sample))
    config = presets.load(preset, settings)
    return context.runner.submit(name, tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))


def _load_base(context: Context) -> None:
    with suppress(UserError, OSError), context.engine(StackConfig.model_validate({})):
        pass


def _write(context: Context, shown: Shown) -> None:
    with files.replacing(context.workspace / _FILE) as unnamed:
        unnamed.write_text(json.dumps(asdict(shown)), encoding="utf-8")
