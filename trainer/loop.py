"""train(): settings and pictures in, events out, a LoRA file at the end. Read it top to bottom.

Everything random is drawn from (seed, stream, index), so a run that was killed and resumed takes the very steps an
unbroken one takes and writes the same bytes. Previews and validation draw from streams of their own and change nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch

from trainer import checkpoint, events, export, objective, optim, validation
from trainer.config import TrainConfig, digest
from trainer.data import Dataset
from trainer.errors import RunError
from trainer.events import Cached, Event, Finished, Saved, Started, Step, Stopped, Warned
from trainer.runs import Run
from trainer.studio import Studio


def train(config: TrainConfig, run: Run, dataset: Dataset, heldout: Dataset | None, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Train one adapter, yielding what happens. `stop` is asked after every step; True saves and ends the run there.

    Starts from the run's newest good checkpoint if there is one. Raises: UserError for what the user can mend,
    RunError when a loss stops being a number (the last good checkpoint stays).
    """
    # Where we are.
    began = time.monotonic()
    saved, problems = checkpoint.load_latest(run.checkpoints)
    if saved and saved.state["dataset"] != dataset.digest:
        raise RunError(f"the pictures or captions in {dataset.folder} have changed since run {run.name} was started; start a new run, or put them back.")
    if saved and saved.state["heldout"] != (heldout.digest if heldout else None):
        raise RunError(f"the held-out pictures or captions have changed since run {run.name} was started; start a new run, or put them back.")
    if saved and saved.state["config"] != digest(config):
        raise RunError(f"the settings in {run.config_file} are not those that run {run.name} was started with; start a new run with them.")
    first = saved.step if saved else 0
    events.rewind(run.events_file, first)

    # Frozen base, cached pictures and captions, adapter, optimizer.
    studio = Studio.open(config)
    if saved and saved.state["base"] != studio.base_digest:
        raise RunError(f"the base {config.base!r} is another one than when run {run.name} was started; start a new run, or put it back.")
    seconds = time.monotonic()
    cached = studio.fill_cache(run.folder.parent / ".cache", dataset, heldout)
    yield Started(
        run.name, config.max_steps, first, len(dataset.items), len(heldout.items) if heldout else 0,
        sum(parameter.numel() for parameter in studio.attach(saved.adapter if saved else None).values()),
        studio.device, str(studio.dtype).removeprefix("torch."), config.base,
    )  # fmt: skip
    yield from (Warned(line) for line in [*problems, *(one.message for one in (dataset, heldout) if one and one.problems)])
    yield Cached(*cached, round(time.monotonic() - seconds, 3))
    if saved:
        yield Saved(first, saved.folder.relative_to(run.folder).as_posix())
    parameters = studio.parameters()
    optimizer = optim.build(list(parameters.values()), config)
    if saved:
        optim.load_state_tensors(optimizer, saved.optimizer)
    base_losses = studio.heldout_losses(with_adapter=False)

    def save(step: int) -> Saved:
        state = {"config": digest(config), "dataset": dataset.digest, "heldout": heldout.digest if heldout else None, "base": studio.base_digest}
        folder = checkpoint.save(run.checkpoints, step, parameters, optim.state_tensors(optimizer), state, config.keep_checkpoints)  # type: ignore[arg-type]
        return Saved(step, folder.relative_to(run.folder).as_posix())

    def look(step: int) -> Iterator[Event]:
        last = step == config.max_steps
        if base_losses is not None and step and (last or step % config.validate_every_steps == 0):
            losses = studio.heldout_losses(with_adapter=True)
            assert losses is not None
            yield validation.compare(step, base_losses, losses)
        if config.preview_every_steps and (last or step % config.preview_every_steps == 0):
            yield from studio.preview(run, step)

    # The loop. What a killed run had not yet looked at, it looks at now.
    yield from look(first)
    for step in range(first, config.max_steps):
        seconds = time.monotonic()
        learning_rate = config.learning_rate * optim.factor(config.optimizer, step, config.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

        # Noise and target.
        latents, conditioning = studio.batch(step)  # (B, C, h, w)
        rng = objective.generator(config.seed, "noise", step)
        noise = objective.noise_like(latents, rng)
        timesteps = objective.sample_timesteps(studio.schedule, len(latents), rng)
        noised = objective.add_noise(studio.schedule, latents, noise, timesteps)
        target = objective.target(studio.schedule, latents, noise, timesteps)

        # Predict, weigh, backward, update.
        prediction = studio.predict(noised, timesteps, conditioning)
        loss = (prediction.float() - target).square().mean()
        loss.backward()
        grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters.values(), config.optimizer.max_grad_norm))
        if not math.isfinite(grad_norm) or not math.isfinite(loss.item()):
            found = f"a loss of {loss.item()} and a gradient of {grad_norm}"
            raise RunError(f"step {step + 1} gave {found}; the last checkpoint is good. Lower learning_rate, or use dtype=float32.")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield Step(step + 1, loss.item(), learning_rate, grad_norm, round(time.monotonic() - seconds, 4))

        # Save first, look afterwards: a preview that fails loses nothing.
        done, last = step + 1, step + 1 == config.max_steps
        stopping = not last and stop()
        if last or stopping or done % config.checkpoint_every_steps == 0:
            yield save(done)
        if stopping:
            yield Stopped(done)
            return
        yield from look(done)

    # Export, open again, compare.
    norm = export.write(studio, run, dataset)
    yield Finished(config.max_steps, run.lora_file.name, round(time.monotonic() - began, 2), norm)
