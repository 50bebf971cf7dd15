"""train(): settings and pictures in, events out, a LoRA file at the end. Read it top to bottom.

Everything random is drawn from (seed, stream, index), so a run that was killed and resumed takes the very steps an
unbroken one takes and writes the same bytes. Previews and validation draw from streams of their own and change nothing.
Several processes run this function side by side; all but the first are silent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from trainer import against, bases, checkpoint, claiming, events, export, loss, objective, optim, watching
from trainer.config import MemoryConfig, TrainConfig, digest
from trainer.data import Dataset
from trainer.errors import ConfigError, RunError
from trainer.events import Adjusted, Event, Finished, Saved, Started, Step, Stopped, Warned
from trainer.material import Part
from trainer.memory import arranging, ladder, mechanics
from trainer.runs import Run
from trainer.studio import Studio, base_digest
from trainer.world import World


def train(
    config: TrainConfig, run: Run, dataset: Dataset, heldout: Dataset | None, stop: Callable[[], bool] = lambda: False, world: World | None = None
) -> Iterator[Event]:
    """Train one adapter, yielding what happens. `stop` is asked after every step; True saves and ends the run there.

    Starts from the run's newest good checkpoint if there is one. Raises: UserError for what the user can mend,
    RunError when a number stops being one (the last good checkpoint stays).
    """
    # Where we are.
    began, world = time.monotonic(), world or World()
    saved, problems = checkpoint.load_latest(run.checkpoints)
    identity = {"config": digest(config), "dataset": dataset.digest, "heldout": heldout.digest if heldout else None, "base": base_digest(config)}
    identity["against"] = against.digest(config.against.adapters)
    first = checkpoint.expect(saved, identity, run.name)
    if world.first:
        events.rewind(run.events_file, first)
        checkpoint.tidy(run.checkpoints, first, config.keep_checkpoints)
        claiming.sweep(run.folder)

    # Frozen base, cached pictures and captions, adapter, optimizer.
    seconds = time.monotonic()
    studio, cached, changes = _load(config, run, dataset, heldout, saved, stop, world)
    parameters = studio.trained
    yield Started(
        run.name, config.max_steps, first, sum(not item.regular for item in dataset.items), len(heldout.items) if heldout else 0,
        sum(parameter.numel() for parameter in parameters.values()), studio.device, str(studio.dtype).removeprefix("torch."), config.base,
    )  # fmt: skip
    problems = [*problems, *against.strangers(config.against.adapters, studio.trained_on), *optim.advice(config)]
    yield from watching.opening(studio, run, problems, cached, time.monotonic() - seconds)
    yield from (Adjusted(first + 1, changed) for changed in changes)
    optimizer = optim.build(optim.groups(parameters, config), config)
    mean = optim.Mean(parameters, config.optimizer.ema_decay) if config.optimizer.ema_decay else None
    watch = watching.Watch(studio, run, optimizer, mean)
    studio.release()
    if saved:
        yield Saved(first, saved.folder.relative_to(run.folder).as_posix())
        optim.load_state(optimizer, saved.tensors.get("optimizer", {}), saved.state["optimizer"])
        watch.load(saved)

    def save(step: int, needed: bool) -> Event:
        _refuse_broken(step, float(length))
        tensors, values = optim.state(optimizer)
        groups = {"adapter": {**parameters, **studio.constants()}, "optimizer": tensors, **watch.tensors()}
        state = {**identity, "optimizer": values, **watch.state()}
        try:
            if world.first:
                checkpoint.save(run.checkpoints, step, groups, state, config.keep_checkpoints)
        except OSError as error:
            if needed:
                raise
            left = f"{checkpoint.standing(run.checkpoints)}, and the run goes on. Free some room; should it not reach its end: {run.again}"
            return Warned(f"the checkpoint of step {step} could not be written ({error.strerror}); {left}.")
        return Saved(step, f"checkpoints/{checkpoint.name(step)}")

    # The loop. What a killed run had not yet looked at, it looks at now.
    yield from watch.look(first)
    step, length = first, torch.zeros((), device=studio.device)  # of the adapter; read with the next step's numbers
    while step < config.max_steps and not watch.enough():
        seconds = time.monotonic()
        learning_rate = optim.set_rate(optimizer, config, step)
        try:
            learned = learn(studio, step)
            optim.unscale(parameters.values(), studio.loss_scale)
            gradient = torch.nn.utils.clip_grad_norm_(parameters.values(), config.optimizer.max_grad_norm)
            total = world.sum(learned.losses.sum())
            if step + 1 < config.max_steps:  # while the device computes
                studio.ahead = {step + 1: prepare(studio, step + 1)}
        except (RuntimeError, MemoryError) as error:
            if not mechanics.is_shortage(error) or world.size > 1:
                raise
            changed = ladder.climb(studio)
            if changed is None:
                raise RunError(ladder.exhausted(f"in step {step + 1}", error)) from error
            optimizer.zero_grad(set_to_none=True)
            yield Adjusted(step + 1, changed)
            continue

        # The step's one wait for the device.
        *each, total_loss, grad_norm, last_length = torch.cat([learned.losses, torch.stack([total, gradient, length])]).tolist()
        value = total_loss / learned.num
        _refuse_broken(step, last_length)
        if bad := [name for name, one in zip(learned.names, each, strict=True) if not math.isfinite(one)]:
            raise RunError(f"step {step + 1} gave a loss of {value} for {', '.join(bad[:5])}; {_MEND}")
        if not math.isfinite(grad_norm) and studio.loss_scale > 1:  # float16 has no room for it: the step again, smaller
            studio.loss_scale /= 2
            optimizer.zero_grad(set_to_none=True)
            continue
        if not math.isfinite(grad_norm) or not math.isfinite(value):
            raise RunError(f"step {step + 1} gave a loss of {value} and a gradient of {grad_norm}; {_MEND}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        studio.limit_norms()
        length = torch.nn.utils.get_total_norm(parameters.values())
        if mean:
            mean.update()
        step += 1
        yield Step(step, value, learning_rate, grad_norm, round(time.monotonic() - seconds, 4))

        if step == first + 1 and (said := ladder.over_budget(studio)):
            yield Warned(said)

        # Save first, look afterwards: a preview that fails loses nothing.
        last = step == config.max_steps
        stopping = world.any(stop()) and not last
        if last or stopping or step % config.checkpoint_every_steps == 0:
            yield save(step, needed=stopping)
        if stopping:
            yield Stopped(step)
            return
        yield from watch.look(step)

    # Export, open again, compare.
    with studio.whole():
        yield from watch.recommend()
        if not world.first:
            return
        with watch.shown():
            norm = export.write(studio, run.lora_file, dataset, {"ss_steps": str(step)})
    yield Finished(step, run.lora_file.name, round(time.monotonic() - began, 2), norm, mechanics.peak_bytes())


def _load(
    config: TrainConfig, run: Run, dataset: Dataset, heldout: Dataset | None, saved: checkpoint.Checkpoint | None, stop: Callable[[], bool], world: World
) -> tuple[Studio, tuple[int, int], list[str]]:
    """The base with what is encoded and the adapter on it, how much was encoded, and what was changed where memory ran out meanwhile."""

    def attempt(settings: MemoryConfig) -> tuple[Studio, tuple[int, int]]:
        studio = Studio.open(config, world, settings)
        cached = studio.prepare(run.cache, dataset, heldout, stop)
        studio.attach(saved)
        return studio, cached

    settings, changes = MemoryConfig.model_validate(saved.state["memory"]) if saved else config.memory, list[str]()
    while True:
        try:
            return *attempt(settings), changes
        except (RuntimeError, MemoryError) as error:
            if not mechanics.is_shortage(error) or world.size > 1:
                raise
            rung = ladder.loading_rung(settings, config, bases.hardware(config.device, "float32")[0])
            if rung is None:
                raise RunError(ladder.exhausted("while the base was loaded", error)) from error
            mechanics.let_go()
        settings, changed = rung
        changes.append(changed)


_MEND = "the last checkpoint is good. Lower learning_rate, or use dtype=float32."


def _refuse_broken(step: int, length: float) -> None:
    """Raises: RunError if the adapter of this step has a length that is no number."""
    if not math.isfinite(length):
        raise RunError(f"step {step} gave an adapter with weights that are no numbers; {_MEND}")


class Learned(NamedTuple):
    """What a step gave: the loss of each of this process's pictures (N,) on the device and their names; `num` are all processes' pictures."""

    losses: Tensor
    num: int
    names: list[str]


def prepare(studio: Studio, step: int) -> list[Part]:
    """What a step is given but its weights' own, micro-batch by micro-batch, on its way to the device: nothing of it depends on the step before."""
    config, schedule, parts = studio.config.objective, studio.schedule, []
    for batch in studio.material.batches(step):
        # Noise and target, drawn for the whole batch so that every process and micro-batch sees the same.
        rng = objective.generator(studio.config.seed, "noise", batch.number)
        noise = loss.draw_noise(config, batch.latents, rng)  # (B, C, h, w)
        timesteps = loss.draw_timesteps(config, schedule, len(batch), rng, studio.image_tokens(batch.latents))  # (B,)
        noised = objective.add_noise(schedule, batch.latents, loss.perturb(config, noise, rng), timesteps)
        target = objective.target(schedule, batch.latents, noise, timesteps)
        weights = loss.weights(config, schedule, timesteps) * batch.weights
        parts += [studio.part(batch, rows, noised, timesteps, target, weights) for rows in studio.parts(len(batch))]
    return parts


def learn(studio: Studio, step: int) -> Learned:
    """Add a step's gradients up, a micro-batch at a time."""
    config, losses, names = studio.config.objective, [], []
    num = sum(len(samples) for _, samples in studio.material.order.step(step))
    for part in studio.ahead.pop(step, None) or prepare(studio, step):
        # Predict, weigh, backward.
        with arranging.kept_away(studio):
            with studio.dropping("dropout", part.number):
                prediction = studio.predict_part(part)
            errors = loss.elements(config, prediction, part.target)
            each = loss.per_picture(errors, part.masks, config.unmasked_weight) * part.weights
            if config.preservation_weight:
                each = each + config.preservation_weight * studio.forgotten(part.noised, part.timesteps, part.class_captions, part.frames)
            (each.sum() * (studio.loss_scale / num)).backward()
        losses.append(each.detach())
        names += part.names
    if studio.config.against.overlap_penalty and studio.world.first:
        overlap = studio.overlap()
        if not overlap.requires_grad:
            raise ConfigError("against.overlap_penalty is set, but nothing trained shares a layer with a plain LoRA of against.adapters; leave it out.")
        (studio.config.against.overlap_penalty * studio.loss_scale * overlap).backward()
    studio.world.sum_gradients(studio.trained.values())
    return Learned(torch.cat(losses) if losses else torch.zeros(0, device=studio.device), num, names)
