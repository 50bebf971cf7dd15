"""Start a run or go on with one: everything that can be refused is refused here, before a model is loaded."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import Timeout

from trainer import (
    against_stack,
    bases,
    checkpoint,
    choices,
    data,
    events,
    families,
    file_names,
    methods,
    more_steps,
    optim,
    predicted_cost,
    presets,
    printing,
    report,
    run_facts,
    runs,
    schema,
    start_weights,
    system,
    tracking,
)  # fmt: skip
from trainer.config import Settings, TrainConfig, ValidationConfig, digest
from trainer.data import archives, buckets, cross_validation
from trainer.distributed import World, alone
from trainer.errors import ConfigError, RunError, UserError
from trainer.events import Event, Failed, Finished, Stopped, Warned
from trainer.lora_file import is_there
from trainer.runs import Run
from trainer.stopping import StopRequest

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


def absolute(config: TrainConfig) -> TrainConfig:
    """The same settings with the folders they name spelled out, so that a run can go on from anywhere."""
    # Pictures and masks.
    named = ("folder", "heldout", "regularisation", "mask_folder")
    folders = {key: str(Path(getattr(config.data, key)).resolve()) for key in named if getattr(config.data, key)}

    # The base, where it is a path and not a name.
    is_path = config.base != "imprimatura" and Path(config.base).exists()
    base = str(Path(config.base).resolve()) if is_path else config.base

    # What it goes on from, and the LoRAs that are trained against.
    source = config.start.source
    source = os.path.abspath(start_weights.place(source)) if source and os.path.exists(source) else source
    start = config.start.model_copy(update={"source": source})
    lines = tuple(_absolute_line(line) for line in config.against.adapters)
    stack = config.against.model_copy(update={"adapters": lines})
    sections = {"data": config.data.model_copy(update=folders), "start": start, "against": stack}
    return config.model_copy(update={"base": base, **sections})


def _absolute_line(line: str) -> str:
    """FILE:WEIGHT with its file spelled out, if there is one."""
    file, colon, weight = line.rpartition(":")
    if colon and is_there(Path(file)):
        return f"{Path(file).resolve()}:{weight}"
    return str(Path(line).resolve()) if is_there(Path(line)) else line


# Which run.


def choose(parent: Path, name: str | None, wanted: TrainConfig | None, world: World) -> Run | None:
    """What `resumable` finds in the first process, for all of them."""
    run = resumable(parent, name, wanted) if world.first else None
    run_name = world.share(run.name if run else "")
    return Run(parent / run_name) if run_name else None


def resumable(parent: Path, name: str | None, wanted: TrainConfig | None) -> Run | None:
    """The run to go on with, or None to start anew; it is extended if `wanted` are its settings with more steps.

    Raises: RunError, ConfigError if its settings are others.
    """
    run = runs.find_resumable(parent, name)
    if run is None:
        if wanted is None:
            what = f"no run called {name!r}" if name else "no unfinished run"
            raise RunError(
                f"there is {what} in {parent} to resume; start one with: velatura train PRESET --data DIR --name N."
            )
        return None
    if wanted is not None and more_steps.extends(run.config(), wanted):
        more_steps.apply(run, wanted)
    elif wanted is not None and (differing := _differences(run.config(), wanted)):
        raise ConfigError(
            f"run {run.name} was started with other settings; resume it without settings, or start a new one:\n"
            + "\n".join(f"  {line}" for line in differing)
        )
    return run


def _differences(saved: Settings, wanted: Settings) -> list[str]:
    """A line for each setting that was another one when the run was started."""
    before, after = _flat(saved.model_dump(mode="json")), _flat(wanted.model_dump(mode="json"))
    return [
        f"{key} was {before.get(key)!r}, now {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings within sections as one table with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


# What can be refused, and the run's folder.


def refuse(
    config: TrainConfig, download: bool = False, run: Run | None = None
) -> tuple[data.Dataset, data.Dataset | None]:
    """The pictures that train and those held out, once nothing stands against these settings; nothing is made yet.

    Raises: UserError for anything that can be known before the model is loaded.
    """
    # What pictures, base and machine say against these settings.
    choices.check(config)
    dataset, heldout = data.scan(config), data.scan_heldout(config)
    family = families.registry()[config.family]
    folder = bases.resolve(config.base, family, download)
    refuse_unread(config, folder)
    for size in (config.resolution_px, *config.data.more_resolutions_px):
        bases.check_pixels(folder, {"resolution_px": size})
    if longest := bases.longest_px(folder):
        multiple = max(family.multiple_px, bases.multiple_px(folder))
        buckets.refuse_longer([*dataset.items, *(heldout.items if heldout else [])], config, multiple, longest)
    bases.hardware(config.device, config.dtype)
    start_weights.refuse(config, run)

    # What is held out.
    dataset, left_out = cross_validation.leave_out(dataset, config)
    heldout = left_out or heldout
    if warning := cross_validation.in_both(dataset, heldout):
        dataset = replace(dataset, problems=[*dataset.problems, warning])
    return dataset, heldout


def start(
    config: TrainConfig,
    parent: Path,
    name: str | None,
    run: Run | None,
    download: bool = False,
    world: World | None = None,
) -> tuple[Run, Iterator[Event]]:
    """The run's folder and its events, each logged before it is passed on; nothing has been trained yet.

    In a world of several processes the first makes the folder, and the others' events are the same but not logged.

    Raises: UserError for anything that can be known before the model is loaded.
    """
    dataset, heldout = refuse(config, download, run)
    if config.validation.folds and world and world.size > 1:
        raise ConfigError("validation.folds trains in one process; start it without torchrun.")

    # The run's folder; its name is the first process's, since the name that was asked for may be taken.
    world = world or World()
    if run is not None:
        return run, _events(config, run, dataset, heldout, world)
    wanted_name = name or archives.name_of(Path(config.data.folder))
    run_name = world.share(_created(parent, wanted_name, config).name if world.first else "")
    run = Run(parent / run_name)
    if world.first:
        run_facts.begin(run.folder, config, dataset, heldout)
        predicted_cost.hand_over(config, parent, run.folder)
    return run, _first_events(run, _events(config, run, dataset, heldout, world), world)


def _created(parent: Path, name: str, config: TrainConfig) -> Run:
    """A new run's folder, with a copy of what it goes on from."""
    run = runs.create(parent, name, config)
    try:
        start_weights.keep(config, run)
    except (UserError, OSError):
        runs.discard(run)
        raise
    return run


def _first_events(run: Run, stream: Iterator[Event], world: World) -> Iterator[Event]:
    """The events of a run that was only just made; if it is refused before anything began, its folder goes again."""
    try:
        yield from stream
    except UserError:
        if world.first:
            runs.discard(run)
        raise


def refuse_unread(config: TrainConfig, folder: Path) -> None:
    """Refuse settings that this very base would not read. Raises: ConfigError with the first five of them."""
    from trainer.memory import ladder

    # What is declared with the settings, and what optimizer and memory know of theirs.
    tracking.check(config)
    problems = schema.unread(config, {"prediction": (bases.prediction_of(folder, families.registry()[config.family]),)})
    problems += optim.check(config) + ladder.check(config)

    # What two settings make impossible together.
    method = methods.registry()[config.adapter.method]
    start = method.start(config.adapter)
    if config.optimizer.max_weight_norm and start in method.starts_from_base:
        problems.append(
            f"optimizer.max_weight_norm is set, but adapter.init = {start} starts with long factors; allowed with the "
            f"other inits."
        )
    if config.against.overlap_penalty and not method.overlap_penalty:
        allowed = " and ".join(methods.allowing(lambda method: method.overlap_penalty))
        problems.append(
            f"against.overlap_penalty is set, but adapter.method is {method.name!r}; allowed with {allowed}."
        )
    if config.memory.shard and (config.memory.quantise != "none" or config.memory.offload == "blocks"):
        problems.append(
            "memory.shard is set, but so is memory.quantise or offload=blocks; a base is sharded whole and in its own "
            "dtype."
        )
    if start in method.starts_from_inputs and getattr(config.adapter, "text_encoder", False):
        problems.append(
            f"adapter.init is {start!r}, which looks at the denoiser's inputs; allowed with adapter.text_encoder: the "
            f"other inits."
        )
    if config.captions.long == "chunk" and families.registry()[config.family].num_chunks is None:
        problems.append(f"captions.long is 'chunk', which {config.family} can't; allowed: cut.")

    # All at once; and last the files, which take longest.
    if problems:
        raise ConfigError(f"{len(problems)} settings can't be used:\n" + printing.listed(problems, "  "))
    against_stack.parse(config.against.adapters)


# What happens in a run.


def _events(
    config: TrainConfig, run: Run, dataset: data.Dataset, heldout: data.Dataset | None, world: World
) -> Iterator[Event]:
    """Train, one process at a time; each event is logged before it is passed on, and so is what ends the run."""
    from trainer import loop

    # The other processes of this training: the first one logs, and holds the run.
    system.keep_freed()
    if not world.first:
        yield from loop.train(config, run, dataset, heldout, StopRequest(), world)
        return

    try:
        lock = run.lock().acquire(timeout=2)  # somebody who only looks at the run's state holds it for a moment
    except Timeout:
        raise RunError(f"run {run.name} is being trained by another process; wait for it, or stop it.") from None
    with lock:
        stop, log = StopRequest(), events.Log(run.events_file)
        try:
            yield from _launch_warnings(config, world)

            # Folds, if there are any, each a small run of its own.
            last: Event | None = None
            for last in _train_folds(config, run, dataset, stop) if config.validation.folds else ():
                log.write(last)
                yield last
            if isinstance(last, Stopped):
                deque(_report(run, dataset), maxlen=0)
                return

            # The run. One that says it is finished has its report, wherever it is killed: that is written first.
            for event in tracking.follow(config, run, loop.train(config, run, dataset, heldout, stop, world)):
                if isinstance(event, Finished | Stopped):
                    yield from _report(run, dataset, event)
                log.write(event)
                yield event
        # What the user can mend, or stopped; a full disk; and bugs.
        except (UserError, KeyboardInterrupt) as error:
            log.write(Failed(type(error).__name__, str(error) or "interrupted"))
            deque(_report(run, dataset), maxlen=0)
            raise
        except OSError as error:
            message = _unwritten(run, error)
            log.write(Failed(type(error).__name__, message))
            if error.errno not in _NO_ROOM:
                raise
            raise RunError(message) from None
        except BaseException as error:
            log.write(Failed(type(error).__name__, f"{type(error).__name__}: {error}"))
            raise
        finally:
            stop.restore()


def _launch_warnings(config: TrainConfig, world: World) -> Iterator[Event]:
    """What is to be said of how many processes were started."""
    if message := alone():
        yield Warned(message)
    if config.memory.shard and world.size == 1:
        yield Warned(
            "memory.shard spreads the base over several processes, and this is one; start it with torchrun "
            "--nproc_per_node N."
        )


def _unwritten(run: Run, error: OSError) -> str:
    """What could not be written, which checkpoint stays, and how to go on."""
    what = Path(str(error.filename)).name if error.filename else "what was made"
    standing = checkpoint.standing(run.checkpoints)
    standing = standing.replace("that of", "the checkpoint of").replace("none before it", "no checkpoint yet")
    return f"{what} could not be written ({error.strerror or error}); {standing}. Free some room, then: {run.again}."


def _report(run: Run, dataset: data.Dataset, ends: Event | None = None) -> Iterator[Event]:
    """Write the report, of a run that `ends` so; a warning if it can't be written, which never ends the run."""
    try:
        report.write(run, dataset, ends)
    except (OSError, MemoryError, RuntimeError) as error:  # a full disk; no memory or threads for its thumbnails
        yield Warned(f"the report could not be written: {error}")


def _train_folds(config: TrainConfig, run: Run, dataset: data.Dataset, stop: Callable[[], bool]) -> Iterator[Event]:
    """Train every fold that isn't finished, saying which; ends with Stopped if it was asked to stop."""
    from trainer import loop

    order, count = cross_validation.shuffled(dataset, config.seed), config.validation.folds
    settings = config.model_copy(update={"validation": ValidationConfig(), "preview_every_steps": 0})
    for number in range(count):
        # A run of its own below this run, whose cache it shares.
        folder = run.folder / file_names.FOLDS / str(number + 1)
        folder.mkdir(parents=True, exist_ok=True)
        fold = Run(folder, cache_folder=run.cache)
        presets.save(settings, fold.config_file)
        kept, left_out = cross_validation.split(dataset, sorted(order[number::count]))

        # One that is finished must have been made from the same.
        if fold.state() == "finished":
            saved, _ = checkpoint.load_latest(fold.checkpoints)
            identity = saved.state if saved else {}
            identity = {**identity, "config": digest(settings), "dataset": kept.digest, "heldout": left_out.digest}
            checkpoint.expect(saved, identity, f"{run.name}, fold {number + 1},")
            continue

        # Any other is trained, or goes on.
        yield Warned(f"fold {number + 1} of {count}: trained without {len(left_out.items)} of {len(order)} pictures.")
        log = events.Log(fold.events_file)
        for event in loop.train(settings, fold, kept, left_out, stop):
            log.write(event)
            if isinstance(event, Stopped):
                yield Warned(f"stopped in fold {number + 1} of {count}, at its step {event.step}.")
                yield Stopped(0)
                return
        assert isinstance(event, Finished)


def preset_config(
    preset: str | None, folder: str | None, heldout: str | None, overrides: list[str], source: str | None = None
) -> TrainConfig:
    """A preset with the command line's overrides, folders made absolute; of a `source` by default its own settings.

    Raises: ConfigError, AdapterError.
    """
    values = presets.parse_overrides(overrides)
    if source is not None:
        preset = preset or start_weights.preset_of(source)
        family = str(values.get("family") or presets.values(preset).get("family", ""))
        values = start_weights.changes(source, family) | values
    if preset is None:
        raise ConfigError(
            f"no preset was named; allowed: {', '.join(presets.names())}, or a path to a .toml or to a LoRA of ours."
        )
    folders = {"data.folder": folder, "data.heldout": heldout}
    values |= {key: value for key, value in folders.items() if value is not None}
    return absolute(presets.load(preset, values))
