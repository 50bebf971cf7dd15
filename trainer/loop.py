"""train(): settings and pictures in, events out, a LoRA file at the end. Read it top to bottom.

Everything random is drawn from (seed, stream, index), so a run that was killed and resumed takes the very steps an
unbroken one takes and writes the same bytes. Previews and validation draw from streams of their own and change nothing.
Several processes run this function side by side; all but the first are silent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from trainer import (
    against_stack,
    checkpoint,
    checkpoint_contents,
    events,
    export,
    loading,
    loss,
    objective,
    optim,
    run_evaluation,
    start_weights,
    unique_names,
)
from trainer.config import TrainConfig
from trainer.data import Dataset
from trainer.distributed import World
from trainer.encoded_data import Part
from trainer.errors import ConfigError, RunError
from trainer.events import Adjusted, Event, Finished, Saved, Started, Step, Stopped, Warned
from trainer.memory import arranging, ladder, mechanics
from trainer.optim import scaling
from trainer.runs import Run
from trainer.training_model import TrainingModel


def train(
    config: TrainConfig,
    run: Run,
    dataset: Dataset,
    heldout: Dataset | None,
    stop: Callable[[], bool] = lambda: False,
    world: World | None = None,
) -> Iterator[Event]:
    """Train one adapter, yielding what happens. `stop` is asked after every step; True saves and ends the run there.

    Starts from the run's newest good checkpoint if there is one. Raises: UserError for what the user can mend,
    RunError when a number stops being one (the last good checkpoint stays).
    """
    # Where the run stands: at its beginning, or at its newest checkpoint.
    began, world = time.monotonic(), world or World()
    saved, problems = checkpoint.load_latest(run.checkpoints)
    identity = checkpoint_contents.identity(config, dataset, heldout)
    first = checkpoint.expect(saved, identity, run.name)
    source = None if saved else start_weights.of_config(config, run)
    if source and config.start.optimizer:
        saved, first = start_weights.going_on(source, config, identity)
    if world.first:  # what a killed process logged or wrote beyond the checkpoint goes
        events.rewind(run.events_file, first)
        checkpoint.tidy(run.checkpoints, first, config.keep_checkpoints)
        unique_names.sweep(run.folder)

    # Frozen base, cached pictures and captions, adapter.
    seconds = time.monotonic()
    model, cached, changes = loading.load(config, run, dataset, heldout, (saved, source), stop, world)
    parameters = model.trained
    yield _started(model, run, dataset, heldout, first)
    problems = [*problems, *against_stack.strangers(config.against.adapters, model.trained_on), *optim.advice(config)]
    yield from run_evaluation.opening(model, run, problems, cached, time.monotonic() - seconds)
    yield from (Adjusted(first + 1, *change) for change in changes)

    # Optimizer, running mean, and what measures and saves; each as it was when the run was stopped.
    optimizer = optim.build(optim.groups(parameters, config), config)
    mean = optim.Mean(parameters, config.optimizer.ema_decay) if config.optimizer.ema_decay else None
    evaluation = run_evaluation.Evaluation(model, run, optimizer, mean)
    model.release()
    if source:
        yield Warned(f"it goes on from {source.name}.")
    if saved:
        yield Saved(first, saved.folder.relative_to(run.folder).as_posix())
        optim.load_state(optimizer, saved.tensors.get("optimizer", {}), saved.state["optimizer"])
        evaluation.load(saved)
    saver = checkpoint_contents.Saver(run, identity, evaluation)

    # The loop. A killed run may not have measured at its last checkpoint; that comes first.
    yield from evaluation.look(first)
    step, length = first, torch.zeros((), device=model.device)  # length of the adapter, read one step later
    while step < config.max_steps and not evaluation.enough():
        # Forward and backward. Where memory or the compiler fails, a setting is changed and the step taken again:
        # nothing was learned yet.
        seconds = time.monotonic()
        learning_rate = optim.set_rate(optimizer, config, step)
        try:
            learned = learn(model, step)
            # Divided by the loss scale before they are clipped, so that the limit means the same in every dtype.
            model.scaler.unscale_(optimizer)
            gradient = torch.nn.utils.clip_grad_norm_(parameters.values(), config.optimizer.max_grad_norm)
            total = world.sum(learned.losses.sum())
            if step + 1 < config.max_steps:  # while the device computes
                model.ahead = {step + 1: prepare(model, step + 1)}
        except (RuntimeError, MemoryError) as error:
            yield _changed(model, optimizer, step, error)
            continue

        # The step's one wait for the device: every number of it in one copy. What is no number ends the run.
        numbers = torch.cat([learned.losses, torch.stack([total, gradient, length])])
        *losses, total_loss, grad_norm, last_length = numbers.tolist()
        mean_loss = total_loss / learned.num
        _refuse_broken(step, last_length)
        _refuse_losses(step, mean_loss, learned.names, losses)
        if not math.isfinite(grad_norm) and scaling.backed_off(model.scaler):
            optimizer.zero_grad(set_to_none=True)  # float16 had no room for it: the step again, at a smaller scale
            continue
        if not math.isfinite(grad_norm) or not math.isfinite(mean_loss):
            raise RunError(f"step {step + 1} gave a loss of {mean_loss} and a gradient of {grad_norm}; {_MEND}")

        # Update.
        optimizer.step()
        model.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        # After the limits, so that what is logged and checked is what is saved.
        model.limit_norms()
        length = torch.nn.utils.get_total_norm(parameters.values())
        if mean:
            mean.update()
        step, seconds = step + 1, time.monotonic() - seconds
        if model.watch:
            model.watch.add(seconds)
        yield Step(step, mean_loss, learning_rate, grad_norm, round(seconds, 4))
        if step == first + 1 and (warning := ladder.over_budget(model)):
            yield Warned(warning)

        # Save first, measure and preview afterwards: a preview that fails loses nothing.
        is_last = step == config.max_steps
        is_stopping = world.any(stop()) and not is_last
        if is_last or is_stopping or step % config.checkpoint_every_steps == 0:
            _refuse_broken(step, float(length))
            yield saver.save(step, needed=is_stopping)
        if is_stopping:
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


class Learned(NamedTuple):
    """What a step's backward passes gave."""

    losses: Tensor  # (N,) of this process's pictures, on the device
    num: int  # pictures of all processes
    names: list[str]  # of this process's pictures


def prepare(model: TrainingModel, step: int) -> list[Part]:
    """What a step is given beside the weights, micro-batch by micro-batch, on its way to the device.

    Nothing of it depends on the step before, so that it is made while the device still computes that step.
    """
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


def _learn_part(model: TrainingModel, part: Part, num: int) -> Tensor:
    """Predict, weigh, backward: the losses (n,) of a part of a step that has `num` pictures in all."""
    config = model.config.objective
    with arranging.kept_away(model):
        with model.dropping("dropout", part.number):
            prediction = model.predict_part(part)
        errors = loss.elements(config, prediction, part.target)  # (n, C, h, w)
        each = loss.per_picture(errors, part.masks, config.unmasked_weight) * part.weights  # (n,)
        if config.preservation_weight:
            change = model.forgotten(part.noised, part.timesteps, part.class_captions, part.frames)
            each = each + config.preservation_weight * change
        # Divided by the whole step's pictures, so that micro-batches and processes add up to one batch's mean.
        model.scaler.scale(each.sum() * (1 / num)).backward()
    return each.detach()


def learn(model: TrainingModel, step: int) -> Learned:
    """Add a step's gradients up, a micro-batch at a time."""
    losses, names, learn = [], [], partial(_learn_part, model)
    num = sum(len(samples) for _, samples in model.encoded.order.step(step))
    for part in model.ahead.pop(step, None) or prepare(model, step):
        losses.append(model.recorder(learn, part, num) if model.recorder else learn(part, num))
        names += part.names
    _learn_overlap(model)
    model.world.sum_gradients(model.trained.values())
    return Learned(torch.cat(losses) if losses else torch.zeros(0, device=model.device), num, names)


def _learn_overlap(model: TrainingModel) -> None:
    """Add the gradient of the penalty for doing what the stack does, if there is one."""
    # In one process only: gradients are summed over the processes, and the penalty is to count once.
    if not model.config.against.overlap_penalty or not model.world.first:
        return
    overlap = model.overlap()
    if not overlap.requires_grad:
        raise ConfigError(
            "against.overlap_penalty is set, but nothing trained shares a layer with a plain LoRA of "
            "against.adapters; leave it out."
        )
    model.scaler.scale(model.config.against.overlap_penalty * overlap).backward()


def _started(model: TrainingModel, run: Run, dataset: Dataset, heldout: Dataset | None, first: int) -> Started:
    """The event that opens a run."""
    return Started(
        name=run.name,
        max_steps=model.config.max_steps,
        from_step=first,
        num_pictures=sum(not item.regular for item in dataset.items),
        num_heldout=len(heldout.items) if heldout else 0,
        num_trainable=sum(parameter.numel() for parameter in model.trained.values()),
        device=model.device,
        dtype=str(model.dtype).removeprefix("torch."),
        base=model.config.base,
    )


def _changed(model: TrainingModel, optimizer: torch.optim.Optimizer, step: int, error: BaseException) -> Event:
    """Change a memory setting after the step ran out of memory, or its blocks did not compile; the event that says so.

    Raises: `error` if it is about something else, RunError if no setting is left.
    """
    # One of several processes can't change its settings alone: the others would wait for it forever.
    if model.world.size > 1:
        raise error
    if mechanics.is_shortage(error):
        change = ladder.climb(model)
        if change is None:
            raise RunError(ladder.exhausted(f"in step {step + 1}", error)) from error
        event: Event = Adjusted(step + 1, *change)
    else:
        sentence = ladder.without_compiling(model, error)
        if sentence is None:
            raise error
        event = Warned(sentence)
    optimizer.zero_grad(set_to_none=True)
    # A new scaler with the old scale: the old scaler may have begun to divide this step's gradients.
    model.scaler = scaling.scaler(model.device, model.scaler.is_enabled(), model.scaler.state_dict())
    return event


_MEND = "the last checkpoint is good. Lower learning_rate, or use dtype=float32."


def _refuse_broken(step: int, length: float) -> None:
    """Raises: RunError if the adapter of this step has a length that is no number."""
    if not math.isfinite(length):
        raise RunError(f"step {step} gave an adapter with weights that are no numbers; {_MEND}")


def _refuse_losses(step: int, mean_loss: float, names: list[str], losses: list[float]) -> None:
    """Raises: RunError naming the pictures of a step whose loss is no number."""
    if broken := [name for name, value in zip(names, losses, strict=True) if not math.isfinite(value)]:
        raise RunError(f"step {step + 1} gave a loss of {mean_loss} for {', '.join(broken[:5])}; {_MEND}")
