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

from trainer import against_stack, bases, checkpoint, events, export, loss, objective, optim, run_evaluation, unique_names
from trainer.config import MemoryConfig, TrainConfig, digest
from trainer.data import Dataset
from trainer.distributed import World
from trainer.encoded_data import Part
from trainer.errors import ConfigError, RunError
from trainer.events import Adjusted, Event, Finished, Saved, Started, Step, Stopped, Warned
from trainer.memory import arranging, ladder, mechanics
from trainer.optim import scaling
from trainer.runs import Run
from trainer.training_model import TrainingModel, base_digest


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
    identity["against"] = against_stack.digest(config.against.adapters)
    first = checkpoint.expect(saved, identity, run.name)
    if world.first:
        events.rewind(run.events_file, first)
        checkpoint.tidy(run.checkpoints, first, config.keep_checkpoints)
        unique_names.sweep(run.folder)

    # Frozen base, cached pictures and captions, adapter, optimizer.
    seconds = time.monotonic()
    model, cached, changes = _load(config, run, dataset, heldout, saved, stop, world)
    parameters = model.trained
    yield Started(
        run.name, config.max_steps, first, sum(not item.regular for item in dataset.items), len(heldout.items) if heldout else 0,
        sum(parameter.numel() for parameter in parameters.values()), model.device, str(model.dtype).removeprefix("torch."), config.base,
    )  # fmt: skip
    problems = [*problems, *against_stack.strangers(config.against.adapters, model.trained_on), *optim.advice(config)]
    yield from run_evaluation.opening(model, run, problems, cached, time.monotonic() - seconds)
    yield from (Adjusted(first + 1, changed) for changed in changes)
    optimizer = optim.build(optim.groups(parameters, config), config)
    mean = optim.Mean(parameters, config.optimizer.ema_decay) if config.optimizer.ema_decay else None
    evaluation = run_evaluation.Evaluation(model, run, optimizer, mean)
    model.release()
    if saved:
        yield Saved(first, saved.folder.relative_to(run.folder).as_posix())
        optim.load_state(optimizer, saved.tensors.get("optimizer", {}), saved.state["optimizer"])
        evaluation.load(saved)

    def save(step: int, needed: bool) -> Event:
        _refuse_broken(step, float(length))
        tensors, values = optim.state(optimizer)
        groups = {"adapter": {**parameters, **model.constants()}, "optimizer": tensors, **evaluation.tensors()}
        state = {**identity, "optimizer": values, **evaluation.state()}
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
    yield from evaluation.look(first)
    step, length = first, torch.zeros((), device=model.device)  # of the adapter; read with the next step's numbers
    while step < config.max_steps and not evaluation.enough():
        seconds = time.monotonic()
        learning_rate = optim.set_rate(optimizer, config, step)
        try:
            learned = learn(model, step)
            model.scaler.unscale_(optimizer)
            gradient = torch.nn.utils.clip_grad_norm_(parameters.values(), config.optimizer.max_grad_norm)
            total = world.sum(learned.losses.sum())
            if step + 1 < config.max_steps:  # while the device computes
                model.ahead = {step + 1: prepare(model, step + 1)}
        except (RuntimeError, MemoryError) as error:
            if not mechanics.is_shortage(error) or world.size > 1:
                raise
            changed = ladder.climb(model)
            if changed is None:
                raise RunError(ladder.exhausted(f"in step {step + 1}", error)) from error
            optimizer.zero_grad(set_to_none=True)
            model.scaler = scaling.scaler(model.device, model.scaler.is_enabled(), model.scaler.state_dict())  # whatever it had begun to divide
            yield Adjusted(step + 1, changed)
            continue

        # The step's one wait for the device.
        *each, total_loss, grad_norm, last_length = torch.cat([learned.losses, torch.stack([total, gradient, length])]).tolist()
        value = total_loss / learned.num
        _refuse_broken(step, last_length)
        if bad := [name for name, one in zip(learned.names, each, strict=True) if not math.isfinite(one)]:
            raise RunError(f"step {step + 1} gave a loss of {value} for {', '.join(bad[:5])}; {_MEND}")
        if not math.isfinite(grad_norm) and scaling.backed_off(model.scaler):  # float16 has no room for it: the step again
            optimizer.zero_grad(set_to_none=True)
            continue
        if not math.isfinite(grad_norm) or not math.isfinite(value):
            raise RunError(f"step {step + 1} gave a loss of {value} and a gradient of {grad_norm}; {_MEND}")
        optimizer.step()
        model.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        model.limit_norms()
        length = torch.nn.utils.get_total_norm(parameters.values())
        if mean:
            mean.update()
        step += 1
        yield Step(step, value, learning_rate, grad_norm, round(time.monotonic() - seconds, 4))

        if step == first + 1 and (said := ladder.over_budget(model)):
            yield Warned(said)

        # Save first, look afterwards: a preview that fails loses nothing.
        last = step == config.max_steps
        stopping = world.any(stop()) and not last
        if last or stopping or step % config.checkpoint_every_steps == 0:
            yield save(step, needed=stopping)
        if stopping:
            yield Stopped(step)
            return
        yield from evaluation.look(step)

    # Export, open again, compare.
    with model.whole():
        yield from evaluation.recommend()
        if not world.first:
            return
        with evaluation.shown():
            norm = export.write(model, run.lora_file, dataset, {"ss_steps": str(step)})
    yield Finished(step, run.lora_file.name, round(time.monotonic() - began, 2), norm, mechanics.peak_bytes())


def _load(
    config: TrainConfig, run: Run, dataset: Dataset, heldout: Dataset | None, saved: checkpoint.Checkpoint | None, stop: Callable[[], bool], world: World
) -> tuple[TrainingModel, tuple[int, int], list[str]]:
    """The base with what is encoded and the adapter on it, how much was encoded, and what was changed where memory ran out meanwhile."""

    def attempt(settings: MemoryConfig) -> tuple[TrainingModel, tuple[int, int]]:
        model = TrainingModel.open(config, world, settings)
        cached = model.prepare(run.cache, dataset, heldout, stop)
        model.attach(saved)
        return model, cached

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


def prepare(model: TrainingModel, step: int) -> list[Part]:
    """What a step is given but its weights' own, micro-batch by micro-batch, on its way to the device: nothing of it depends on the step before."""
    config, schedule, parts = model.config.objective, model.schedule, []
    for batch in model.encoded.batches(step):
        # Noise and target, drawn for the whole batch so that every process and micro-batch sees the same.
        rng = objective.generator(model.config.seed, "noise", batch.number)
        noise = loss.draw_noise(config, batch.latents, rng)  # (B, C, h, w)
        timesteps = loss.draw_timesteps(config, schedule, len(batch), rng, model.image_tokens(batch.latents))  # (B,)
        noised = objective.add_noise(schedule, batch.latents, loss.perturb(config, noise, rng), timesteps)
        target = objective.target(schedule, batch.latents, noise, timesteps)
        weights = loss.weights(config, schedule, timesteps) * batch.weights
        parts += [model.part(batch, rows, noised, timesteps, target, weights) for rows in model.parts(len(batch))]
    return parts


def learn(model: TrainingModel, step: int) -> Learned:
    """Add a step's gradients up, a micro-batch at a time."""
    config, losses, names = model.config.objective, [], []
    num = sum(len(samples) for _, samples in model.encoded.order.step(step))
    for part in model.ahead.pop(step, None) or prepare(model, step):
        # Predict, weigh, backward.
        with arranging.kept_away(model):
            with model.dropping("dropout", part.number):
                prediction = model.predict_part(part)
            errors = loss.elements(config, prediction, part.target)
            each = loss.per_picture(errors, part.masks, config.unmasked_weight) * part.weights
            if config.preservation_weight:
                each = each + config.preservation_weight * model.forgotten(part.noised, part.timesteps, part.class_captions, part.frames)
            model.scaler.scale(each.sum() * (1 / num)).backward()
        losses.append(each.detach())
        names += part.names
    if model.config.against.overlap_penalty and model.world.first:
        overlap = model.overlap()
        if not overlap.requires_grad:
            raise ConfigError("against.overlap_penalty is set, but nothing trained shares a layer with a plain LoRA of against.adapters; leave it out.")
        model.scaler.scale(model.config.against.overlap_penalty * overlap).backward()
    model.world.sum_gradients(model.trained.values())
    return Learned(torch.cat(losses) if losses else torch.zeros(0, device=model.device), num, names)
