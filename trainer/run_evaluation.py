"""Everything a run does to be trusted that is not training: measuring, previewing, keeping the best, warning.

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

from trainer import export, file_names, objective, optim, preview_request, validation
from trainer.checkpoint import Checkpoint
from trainer.data import buckets, cross_validation
from trainer.events import Cached, Event, Planned, Recommended, Validated, Warned
from trainer.memory import arranging, attention_probe, mechanics
from trainer.previews import Previews
from trainer.runs import Run
from trainer.training_model import TrainingModel


def opening(
    model: TrainingModel, run: Run, problems: list[str], cached: tuple[int, int], seconds: float
) -> Iterator[Event]:
    """What is said before the first step: the plan, and every line the user should read."""
    # The plan: how many pictures each bucket has, and what the crop takes.
    encoded = model.encoded
    sizes: dict[buckets.Bucket, int] = {}
    for entry in encoded.entries:
        sizes[entry.bucket] = sizes.get(entry.bucket, 0) + 1
    yield Planned(
        [[*bucket, count] for bucket, count in sorted(sizes.items())],
        encoded.order.num_batches,
        buckets.num_cropped(encoded.entries, encoded.dataset.items),
    )
    yield from cross_validation.results(run)

    # What is wrong with checkpoints, settings, pictures and attention kernels; and what `auto` went by.
    datasets = [dataset for dataset in (encoded.dataset, encoded.heldout) if dataset and dataset.problems]
    yield from (Warned(line) for line in [*problems, *(dataset.message for dataset in datasets)])
    yield from (Warned(line) for line in model.faults)
    if model.compile_reason:
        yield Warned(model.compile_reason)

    # The cache.
    if num := encoded.store.num_damaged:
        damaged = (
            "1 entry of the cache was damaged and was"
            if num == 1
            else f"{num} entries of the cache were damaged and were"
        )
        yield Warned(f"{damaged} made anew; if this comes again, look at the disk that holds {encoded.store.folder}.")
    if encoded.store.problem:
        yield Warned(f"{encoded.store.problem}; latents are made again whenever they are needed, which is slow.")
    if long := encoded.long_captions():
        yield Warned(f"{len(long)} captions are cut off:\n" + "\n".join(f"  {line}" for line in long[:20]))
    yield Cached(*cached, round(seconds, 3))


class Evaluation:
    """What is measured, shown and kept of one run while it trains."""

    def __init__(
        self, model: TrainingModel, run: Run, optimizer: torch.optim.Optimizer, mean: optim.Mean | None
    ) -> None:
        self.model, self.run, self.optimizer, self.mean = model, run, optimizer, mean
        self.previews = Previews(model, run)
        self.judge = validation.Judge()
        self.best: dict[str, Tensor] = {}
        # One process measures; but a sharded base is passed through by all processes together, or by none.
        self.measures_here = model.world.first or model.sharded

        # The base's losses on held-out pictures, and on as many training pictures, which tells learning by heart.
        encoded = model.encoded
        self.questions = encoded.questions(encoded.heldout) if self.measures_here else None
        num_own = min(validation.MAX_TRAINING_PICTURES, len(self.questions.latents)) if self.questions else 0
        self.own_questions = encoded.questions(encoded.dataset, num_own) if self.questions else None
        self.base_losses = self._losses_of_base(self.questions) if self.questions else None
        self.own_base_losses = self._losses_of_base(self.own_questions) if self.own_questions else None
        self.last_measured: tuple[Validated, Tensor] | None = None  # the event and the losses
        self.neutral = self._neutral() if self.measures_here else None
        self.fold_verdict = (
            cross_validation.verdict(cross_validation.results(run)) if model.config.validation.folds else None
        )

    # For the checkpoint.

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint keeps of it, beside `state`."""
        return {"mean": self.mean.tensors() if self.mean else {}, "best": self.best}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps that is not tensors."""
        model = self.model
        return {
            "judge": self.judge.state(),
            "memory": model.memory.model_dump(mode="json"),
            "loss_scale": model.scaler.state_dict(),
            "kernels": attention_probe.state(model.kernels, model.device),
        }

    def load(self, saved: Checkpoint) -> None:
        """Go on as the checkpoint has it; memory, loss scale and kernels were restored with the model."""
        self.judge = validation.Judge(**saved.state["judge"])
        self.best = saved.tensors.get("best", {})
        if self.mean:
            self.mean.load(saved.tensors["mean"])

    # While training.

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The adapter as it is to be used, for the body: the running mean where there is any."""
        with ExitStack() as stack:
            stack.enter_context(optim.evaluation(self.optimizer))
            if self.mean:
                stack.enter_context(self.mean.swapped())
            yield

    def look(self, step: int) -> Iterator[Event]:
        """Measure and preview if it is time; the first process only."""
        config = self.model.config
        if not self.measures_here:
            return
        is_last = step == config.max_steps
        wants_previews = self._asked_for_previews()
        with self.shown():
            # Measure. Not at step 0, whose losses are the base's.
            if self.questions and step and (is_last or step % config.validate_every_steps == 0):
                try:
                    yield from self._measure(step)
                except (RuntimeError, MemoryError) as error:
                    if not mechanics.is_shortage(error):
                        raise
                    yield Warned(f"memory ran out while measuring at step {step}, which is left out; the run goes on.")
            # Where folds were trained, they have named the best step before the run began.
            if self.fold_verdict and step == self.fold_verdict[0]:
                self.best = self._snapshot()
            is_time = bool(config.preview_every_steps) and (is_last or step % config.preview_every_steps == 0)
            if is_time or wants_previews:
                yield from self.previews.draw_all(step)
        if wants_previews and not self.previews.prompts:
            yield Warned(f"a preview was asked for at step {step}: {preview_request.NONE_TO_DRAW}")

    def _asked_for_previews(self) -> bool:
        """Whether somebody wants previews now; the first process alone sees it, and tells those that draw with it."""
        model = self.model
        asked = model.world.first and preview_request.take(self.run)
        draws_together = model.sharded and self.previews.prompts  # else there is nothing to agree on at every step
        return model.world.any(asked) if draws_together else asked

    def _losses(self, questions: validation.Questions) -> Tensor:
        """Loss by picture and timestep (N, 10); in smaller batches where memory runs out."""
        model = self.model
        size = 2 * (model.memory.micro_batch or model.config.batch_size)  # no gradients: room for twice a step's
        with arranging.eagerly(model):
            return mechanics.halving(
                size, lambda size: validation.losses(questions, model.schedule, model.predict, size)
            )

    def _losses_of_base(self, questions: validation.Questions) -> Tensor:
        """The same without the adapter."""
        with self.model.base():
            return self._losses(questions)

    def _measure(self, step: int) -> Iterator[Event]:
        """Measure at a step and say how it compares with the base and with the best step."""
        assert (
            self.questions and self.base_losses is not None and self.own_questions and self.own_base_losses is not None
        )
        now = self._losses(self.questions)
        own_gain = validation.gain(self.own_base_losses, self._losses(self.own_questions))
        event = validation.compare(step, self.base_losses, now, own_gain, self._drift())
        self.last_measured = event, now
        if self.judge.add(step, self.base_losses, now) and not self.fold_verdict:
            self.best = self._snapshot()
        yield event
        if alarm := self.judge.alarm(step):
            yield alarm

    def _snapshot(self) -> dict[str, Tensor]:
        """A copy of what is trained, on the CPU."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.model.parameters().items()}

    def enough(self) -> bool:
        """True if the run should end here because it over-trains and was told to stop then."""
        wanted = self.model.config.validation.stop_when_overtrained
        return wanted and self.model.world.any(self.judge.num_worse >= validation.PATIENCE)

    def recommend(self) -> Iterator[Event]:
        """Write best.safetensors and say why it is that step."""
        if not self.best:
            return
        assert self.fold_verdict or self.last_measured

        # The best step's weights, exported like any adapter, and then the last step's again.
        step, reason = self.fold_verdict or (self.judge.best_step, self.judge.reason(*self.last_measured))  # type: ignore[misc]
        parameters = self.model.parameters()
        kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        try:
            _copy_into(parameters, self.best)
            if self.model.world.first:
                export.write(
                    self.model,
                    self.run.folder / file_names.BEST,
                    self.model.encoded.dataset,
                    {"velatura.step": str(step), "velatura.reason": reason, "ss_steps": str(step)},
                )
        finally:
            _copy_into(parameters, kept)
        yield Recommended(step, file_names.BEST, reason)

    # Drift of the base on prompts that have nothing to do with the dataset.

    def _neutral(self) -> tuple[validation.Questions, list[Tensor]] | None:
        """What the base draws for the neutral prompts, as questions, and its predictions for them."""
        prompts = list(self.model.config.validation.neutral_prompts)
        if not prompts:
            return None
        with self.model.base(), torch.no_grad():
            family, pipe = self.model.family, self.model.pipe
            # Its own pictures, since there are no others of these prompts.
            pictures = [pipe.image_processor.preprocess(self.previews.draw(prompt)) for prompt in prompts]
            latents = [family.encode_image(pipe, picture)[0].float().cpu() for picture in pictures]  # (C, h, w) each
            frames = [self.model.whole_frames(each[None])[0] for each in latents]
            questions = validation.Questions(latents, prompts, frames)
            return questions, self._answers(questions)

    def _answers(self, questions: validation.Questions) -> list[Tensor]:
        """The prediction for each neutral prompt at three noise levels."""
        predictions, schedule = [], self.model.schedule
        timesteps = (torch.tensor([0.25, 0.5, 0.75]) * schedule.num_timesteps).long()
        rows = zip(questions.latents, questions.captions, questions.frames, strict=True)
        for number, (latents, prompt, frame) in enumerate(rows):
            noise = objective.noise_like(latents, objective.generator(0, "neutral", number))
            noised = objective.add_noise(schedule, latents.expand(3, *latents.shape), noise, timesteps)  # (3, C, h, w)
            with arranging.eagerly(self.model):
                prediction = self.model.predict(noised, timesteps, [prompt] * 3, frame.expand(3, 6))
            predictions.append(prediction.float().cpu())
        return predictions

    @torch.no_grad()
    def _drift(self) -> float | None:
        """How far the predictions for neutral prompts have moved, relative to the base's; None without such prompts."""
        if self.neutral is None:
            return None
        questions, base = self.neutral
        now = self._answers(questions)
        moved = sum(float((after - before).square().sum()) for before, after in zip(base, now, strict=True))
        whole = sum(float(before.square().sum()) for before in base)
        return math.sqrt(moved / whole)


@torch.no_grad()
def _copy_into(parameters: Any, values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
