"""Everything a run does to be trusted that is not training: measuring, previewing, remembering the best, saying so.

None of it changes what is learned: it draws from streams of its own, and what it needs to go on after a stop is in
the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from trainer import export, objective, optim, validation
from trainer.checkpoint import Checkpoint
from trainer.data import buckets, folds
from trainer.events import Cached, Event, Planned, Recommended, Warned
from trainer.memory import arranging, mechanics
from trainer.runs import Run
from trainer.training_model import TrainingModel

BEST = "best.safetensors"


def opening(model: TrainingModel, run: Run, problems: list[str], cached: tuple[int, int], seconds: float) -> Iterator[Event]:
    """What is said before the first step: the plan, and every line the user should read."""
    encoded = model.encoded
    sizes: dict[buckets.Bucket, int] = {}
    for entry in encoded.entries:
        sizes[entry.bucket] = sizes.get(entry.bucket, 0) + 1
    yield Planned(
        [[*bucket, count] for bucket, count in sorted(sizes.items())], encoded.order.num_batches, buckets.num_cropped(encoded.entries, encoded.dataset.items)
    )
    yield from folds.results(run)
    sets = [one for one in (encoded.dataset, encoded.heldout) if one and one.problems]
    yield from (Warned(line) for line in [*problems, *(one.message for one in sets)])
    yield from (Warned(line) for line in model.faults)
    if num := encoded.store.num_damaged:
        said = "1 entry of the cache was damaged and was" if num == 1 else f"{num} entries of the cache were damaged and were"
        yield Warned(f"{said} made anew; if this comes again, look at the disk that holds {encoded.store.folder}.")
    if encoded.store.problem:
        yield Warned(f"{encoded.store.problem}; latents are made again whenever they are needed, which is slow.")
    if long := encoded.long_captions():
        yield Warned(f"{len(long)} captions are cut off:\n" + "\n".join(f"  {line}" for line in long[:20]))
    yield Cached(*cached, round(seconds, 3))


class Evaluation:
    """What is measured, shown and kept of one run while it trains."""

    def __init__(self, model: TrainingModel, run: Run, optimizer: torch.optim.Optimizer, mean: optim.Mean | None) -> None:
        self.model, self.run, self.optimizer, self.mean = model, run, optimizer, mean
        self.judge = validation.Judge()
        self.best: dict[str, Tensor] = {}
        self.here = model.world.first or model.sharded  # a sharded base is looked at by all processes together, or by none
        encoded = model.encoded
        self.questions = model.questions(encoded.heldout) if self.here else None
        self.own = model.questions(encoded.dataset, min(validation.MAX_TRAINING_PICTURES, len(self.questions.latents))) if self.questions else None
        self.base = model.losses(self.questions, with_adapter=False) if self.questions else None
        self.own_base = model.losses(self.own, with_adapter=False) if self.own else None
        self.last: tuple[Any, Tensor] | None = None  # of the last measurement: the event, the losses
        self.neutral = self._neutral() if self.here else None
        self.folded = folds.verdict(folds.results(run)) if model.config.validation.folds else None

    # For the checkpoint.

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"mean": self.mean.tensors() if self.mean else {}, "best": self.best}

    def state(self) -> dict[str, Any]:
        model = self.model
        return {"judge": self.judge.state(), "memory": model.memory.model_dump(mode="json"), "loss_scale": model.scaler.state_dict(), "kernels": model.kernels}

    def load(self, saved: Checkpoint) -> None:
        self.judge = validation.Judge(**saved.state["judge"])
        self.best = saved.tensors.get("best", {})
        if self.mean:
            self.mean.load(saved.tensors["mean"])

    # While training.

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The adapter as it is to be used, for the body: the running mean where there is one."""
        with ExitStack() as stack:
            stack.enter_context(optim.evaluation(self.optimizer))
            if self.mean:
                stack.enter_context(self.mean.swapped())
            yield

    def look(self, step: int) -> Iterator[Event]:
        """Measure and preview if it is time; the first process only."""
        config = self.model.config
        if not self.here:
            return
        last = step == config.max_steps
        with self.shown():
            if self.questions and step and (last or step % config.validate_every_steps == 0):
                try:
                    yield from self._measure(step)
                except (RuntimeError, MemoryError) as error:
                    if not mechanics.is_shortage(error):
                        raise
                    yield Warned(f"memory ran out while measuring at step {step}, which is left out; the run goes on.")
            if self.folded and step == self.folded[0]:
                self.best = self._snapshot()
            if config.preview_every_steps and (last or step % config.preview_every_steps == 0):
                yield from self.model.preview(self.run, step)

    def _measure(self, step: int) -> Iterator[Event]:
        assert self.questions and self.base is not None and self.own and self.own_base is not None
        now = self.model.losses(self.questions)
        event = validation.compare(step, self.base, now, validation.gain(self.own_base, self.model.losses(self.own)), self._drift())
        self.last = event, now
        if self.judge.hear(step, self.base, now) and not self.folded:
            self.best = self._snapshot()
        yield event
        if alarm := self.judge.alarm(step):
            yield alarm

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: parameter.detach().cpu().clone() for name, parameter in self.model.parameters().items()}

    def enough(self) -> bool:
        """True if the run should end here because it over-trains and was told to stop then."""
        wanted = self.model.config.validation.stop_when_overtrained
        return wanted and self.model.world.any(self.judge.num_worse >= validation.PATIENCE)

    def recommend(self) -> Iterator[Event]:
        """Write best.safetensors and say why it is that step."""
        if not self.best:
            return
        assert self.folded or self.last
        step, reason = self.folded or (self.judge.best_step, self.judge.reason(*self.last))  # type: ignore[misc]
        parameters = self.model.parameters()
        kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        try:
            _put(parameters, self.best)
            if self.model.world.first:
                export.write(
                    self.model,
                    self.run.folder / BEST,
                    self.model.encoded.dataset,
                    {"velatura.step": str(step), "velatura.reason": reason, "ss_steps": str(step)},
                )
        finally:
            _put(parameters, kept)
        yield Recommended(step, BEST, reason)

    # Drift of the base on prompts that have nothing to do with the dataset.

    def _neutral(self) -> tuple[validation.Questions, list[Tensor]] | None:
        """What the base draws for the neutral prompts, as questions, and what it says to them."""
        prompts = list(self.model.config.validation.neutral_prompts)
        if not prompts:
            return None
        with self.model.base(), torch.no_grad():
            family, pipe = self.model.family, self.model.pipe
            pictures = [pipe.image_processor.preprocess(self.model.draw(prompt)) for prompt in prompts]  # (1, 3, H, W) in [-1, 1]
            latents = [family.encode_image(pipe, picture)[0].float().cpu() for picture in pictures]
            questions = validation.Questions(latents, prompts, [self.model.whole_frames(one[None])[0] for one in latents])
            return questions, self._answers(questions)

    def _answers(self, questions: validation.Questions) -> list[Tensor]:
        """The prediction for each neutral prompt at three noise levels."""
        found, schedule = [], self.model.schedule
        for number, (latents, prompt, frame) in enumerate(zip(questions.latents, questions.captions, questions.frames, strict=True)):
            noise = objective.noise_like(latents, objective.generator(0, "neutral", number))
            timesteps = (torch.tensor([0.25, 0.5, 0.75]) * schedule.num_timesteps).long()
            noised = objective.add_noise(schedule, latents.expand(3, *latents.shape), noise, timesteps)
            with arranging.eagerly(self.model):
                found.append(self.model.predict(noised, timesteps, [prompt] * 3, frame.expand(3, 6)).float().cpu())
        return found

    @torch.no_grad()
    def _drift(self) -> float | None:
        if self.neutral is None:
            return None
        questions, base = self.neutral
        now = self._answers(questions)
        moved = sum(float((after - before).square().sum()) for before, after in zip(base, now, strict=True))
        return math.sqrt(moved / sum(float(before.square().sum()) for before in base))


@torch.no_grad()
def _put(parameters: Any, values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
