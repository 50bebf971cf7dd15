"""Start a run or go on with one: everything that can be refused is refused here, before a model is loaded."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import Timeout

from trainer import bases, checkpoint, choices, data, events, families, methods, presets, printing, report, runs, schema, system, tracking
from trainer.config import Settings, TrainConfig, ValidationConfig, digest
from trainer.distributed import World, alone
from trainer.errors import ConfigError, RunError, UserError
from trainer.events import Event, Failed, Finished, Stopped, Warned
from trainer.lora_file import is_there
from trainer.runs import Run
from trainer.stopping import StopRequest

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


def absolute(config: TrainConfig) -> TrainConfig:
    """The same settings with the folders they name spelled out, so that a run can go on from anywhere."""
    named = ("folder", "heldout", "regularisation", "mask_folder")
    folders = {key: str(Path(getattr(config.data, key)).resolve()) for key in named if getattr(config.data, key)}
    base = str(Path(config.base).resolve()) if config.base != "imprimatura" and Path(config.base).exists() else config.base
    lines = tuple(_absolute_line(line) for line in config.against.adapters)
    stack = config.against.model_copy(update={"adapters": lines})
    return config.model_copy(update={"data": config.data.model_copy(update=folders), "base": base, "against": stack})


def _absolute_line(line: str) -> str:
    """FILE:WEIGHT with its file spelled out, if there is one."""
    file, colon, weight = line.rpartition(":")
    if colon and is_there(Path(file)):
        return f"{Path(file).resolve()}:{weight}"
    return str(Path(line).resolve()) if is_there(Path(line)) else line


def choose(parent: Path, name: str | None, wanted: TrainConfig | None, world: World) -> Run | None:
    """`resumable` asked by the first process, for all of them."""
    run = resumable(parent, name, wanted) if world.first else None
    found = world.share(run.name if run else "")
    return Run(parent / found) if found else None


def resumable(parent: Path, name: str | None, wanted: TrainConfig | None) -> Run | None:
    """The run to go on with, or None to start anew. Raises: RunError, ConfigError if its settings are not `wanted`."""
    run = runs.find_resumable(parent, name)
    if run is None:
        if wanted is None:
            what = f"no run called {name!r}" if name else "no unfinished run"
            raise RunError(f"there is {what} in {parent} to resume; start one with: velatura train PRESET --data DIR --name N.")
        return None
    if wanted is not None and (differing := _differences(run.config(), wanted)):
        raise ConfigError(
            f"run {run.name} was started with other settings; resume it without settings, or start a new one:\n" + "\n".join(f"  {line}" for line in differing)
        )
    return run


def _differences(saved: Settings, wanted: Settings) -> list[str]:
    before, after = _flat(saved.model_dump(mode="json")), _flat(wanted.model_dump(mode="json"))
    return [f"{key} was {before.get(key)!r}, now {after.get(key)!r}" for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def start(
    config: TrainConfig, parent: Path, name: str | None, run: Run | None, download: bool = False, world: World | None = None
) -> tuple[Run, Iterator[Event]]:
    """The run's folder and its events, each logged before it is passed on; nothing has been trained yet.

    In a world of several processes the first makes the folder, and the others' events are the same but not logged.

    Raises: UserError for anything that can be known before the model is loaded.
    """
    choices.check(config)
    dataset, heldout = data.scan(config), data.scan_heldout(config)
    family = families.registry()[config.family]
    folder = bases.resolve(config.base, family, download)
    refuse_unread(config, folder)
    for size in (config.resolution_px, *config.data.more_resolutions_px):
        bases.check_pixels(folder, {"resolution_px": size})
    _refuse_too_long(config, folder, [*dataset.items, *(heldout.items if heldout else [])])
    bases.hardware(config.device, config.dtype)
    from trainer.data import archives, folds

    dataset, left_out = folds.leave_out(dataset, config)
    if config.validation.folds and world and world.size > 1:
        raise ConfigError("validation.folds trains in one process; start it without torchrun.")
    if twice := folds.in_both(dataset, left_out or heldout):
        dataset = replace(dataset, problems=[*dataset.problems, twice])
    world = world or World()
    if run is not None:
        return run, _events(config, run, dataset, left_out or heldout, world)
    made = Run(parent / world.share(runs.create(parent, name or archives.name_of(Path(config.data.folder)), config).name if world.first else ""))
    return made, _first_events(made, _events(config, made, dataset, left_out or heldout, world), world)


def _first_events(run: Run, stream: Iterator[Event], world: World) -> Iterator[Event]:
    """The events of a run that was only just made; if it is refused before anything began, its folder goes again."""
    try:
        yield from stream
    except UserError:
        if world.first:
            runs.discard(run)
        raise


def _refuse_too_long(config: TrainConfig, folder: Path, items: list[data.Item]) -> None:
    """Refuse pictures whose buckets the base has no positions for. Raises: ConfigError, which names the first."""
    from trainer.data import buckets

    longest = bases.longest_px(folder)
    if longest is None:
        return
    multiple = max(families.registry()[config.family].multiple_px, bases.multiple_px(folder))
    for entry in buckets.plan(items, config, multiple):
        if max(entry.bucket) > longest:
            raise ConfigError(
                f"{items[entry.index].name} would be trained at {entry.bucket[0]}x{entry.bucket[1]} px, but this base has positions for {longest} px "
                "a side; lower resolution_px or data.max_aspect_ratio."
            )


def refuse_unread(config: TrainConfig, folder: Path) -> None:
    """Refuse settings that this very base would not read. Raises: ConfigError with the first five of them."""
    from trainer import against_stack, optim
    from trainer.memory import ladder

    tracking.check(config)
    problems = schema.unread(config, {"prediction": (bases.prediction_of(folder, families.registry()[config.family]),)})
    problems += optim.check(config) + ladder.check(config)
    method = methods.registry()[config.adapter.method]
    start = method.start(config.adapter)
    if config.optimizer.max_weight_norm and start in method.starts_from_base:
        problems.append(f"optimizer.max_weight_norm is set, but adapter.init = {start} starts with long factors; allowed with the other inits.")
    if config.against.overlap_penalty and not method.overlap_penalty:
        allowed = " and ".join(methods.allowing(lambda one: one.overlap_penalty))
        problems.append(f"against.overlap_penalty is set, but adapter.method is {method.name!r}; allowed with {allowed}.")
    if config.memory.shard and (config.memory.quantise != "none" or config.memory.offload == "blocks"):
        problems.append("memory.shard is set, but so is memory.quantise or offload=blocks; a base is sharded whole and in its own dtype.")
    if start in method.starts_from_inputs and getattr(config.adapter, "text_encoder", False):
        problems.append(f"adapter.init is {start!r}, which looks at the denoiser's inputs; allowed with adapter.text_encoder: the other inits.")
    if config.captions.long == "chunk" and families.registry()[config.family].num_chunks is None:
        problems.append(f"captions.long is 'chunk', which {config.family} can't; allowed: cut.")
    if problems:
        raise ConfigError(f"{len(problems)} settings can't be used:\n" + printing.listed(problems, "  "))
    against_stack.parse(config.against.adapters)


def _events(config: TrainConfig, run: Run, dataset: data.Dataset, heldout: data.Dataset | None, world: World) -> Iterator[Event]:
    from trainer import loop

    system.keep_freed()
    if not world.first:  # the first process logs, and holds the run
        yield from loop.train(config, run, dataset, heldout, StopRequest(), world)
        return
    try:
        lock = run.lock().acquire(timeout=2)  # somebody who only looks at the run's state holds it for a moment
    except Timeout:
        raise RunError(f"run {run.name} is being trained by another process; wait for it, or stop it.") from None
    with lock:
        stop, log = StopRequest(), events.Log(run.events_file)
        try:
            if said := alone():
                yield Warned(said)
            if config.memory.shard and world.size == 1:
                yield Warned("memory.shard spreads the base over several processes, and this is one; start it with torchrun --nproc_per_node N.")
            last: Event | None = None
            for last in _train_folds(config, run, dataset, stop) if config.validation.folds else ():
                log.write(last)
                yield last
            if isinstance(last, Stopped):
                deque(_report(run, dataset), maxlen=0)
                return
            for event in tracking.follow(config, run, loop.train(config, run, dataset, heldout, stop, world)):
                if isinstance(event, Finished | Stopped):  # a run that says it is finished has its report, wherever it is killed
                    yield from _report(run, dataset, event)
                log.write(event)
                yield event
        except (UserError, KeyboardInterrupt) as error:
            log.write(Failed(type(error).__name__, str(error) or "interrupted"))
            deque(_report(run, dataset), maxlen=0)
            raise
        except OSError as error:
            said = _unwritten(run, error)
            log.write(Failed(type(error).__name__, said))
            if error.errno not in _NO_ROOM:
                raise
            raise RunError(said) from None
        except BaseException as error:
            log.write(Failed(type(error).__name__, f"{type(error).__name__}: {error}"))
            raise
        finally:
            stop.restore()


def _unwritten(run: Run, error: OSError) -> str:
    """What could not be written, what is left, and how to go on."""
    what = f"{Path(str(error.filename)).name} could not be written" if error.filename else "what was made could not be written"
    left = checkpoint.standing(run.checkpoints).replace("that of", "the checkpoint of").replace("none before it", "no checkpoint yet")
    return f"{what} ({error.strerror or error}); {left}. Free some room, then: {run.again}."


def _report(run: Run, dataset: data.Dataset, ends: Event | None = None) -> Iterator[Event]:
    """Write the report, of a run that `ends` so; a full disk, or no memory or threads left for its thumbnails, cost the report and nothing else."""
    try:
        report.write(run, dataset, ends)
    except (OSError, MemoryError, RuntimeError) as error:
        yield Warned(f"the report could not be written: {error}")


def _train_folds(config: TrainConfig, run: Run, dataset: data.Dataset, stop: Callable[[], bool]) -> Iterator[Event]:
    """Train every fold that isn't finished, saying which; ends with Stopped if it was asked to stop."""
    from trainer import loop
    from trainer.data import folds

    order, count = folds.shuffled(dataset, config.seed), config.validation.folds
    alone = config.model_copy(update={"validation": ValidationConfig(), "preview_every_steps": 0})
    for number in range(count):
        folder = run.folder / "folds" / str(number + 1)
        folder.mkdir(parents=True, exist_ok=True)
        fold = Run(folder, cache_folder=run.cache)
        presets.save(alone, fold.config_file)
        kept, left = folds.split(dataset, sorted(order[number::count]))
        if fold.state() == "finished":
            saved, _ = checkpoint.load_latest(fold.checkpoints)
            identity = {**(saved.state if saved else {}), "config": digest(alone), "dataset": kept.digest, "heldout": left.digest}
            checkpoint.expect(saved, identity, f"{run.name}, fold {number + 1},")
            continue
        yield Warned(f"fold {number + 1} of {count}: trained without {len(left.items)} of {len(order)} pictures.")
        log = events.Log(fold.events_file)
        for event in loop.train(alone, fold, kept, left, stop):
            log.write(event)
            if isinstance(event, Stopped):
                yield Warned(f"stopped in fold {number + 1} of {count}, at its step {event.step}.")
                yield Stopped(0)
                return
        assert isinstance(event, Finished)


def preset_config(preset: str, folder: str | None, heldout: str | None, overrides: list[str]) -> TrainConfig:
    """A preset with the command line's overrides, folders made absolute. Raises: ConfigError."""
    values = presets.parse_overrides(overrides)
    values |= {key: value for key, value in (("data.folder", folder), ("data.heldout", heldout)) if value is not None}
    return absolute(presets.load(preset, values))
