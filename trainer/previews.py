"""Previews of a run: pictures that the adapter draws as it is, and the training picture that each is most like."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from trainer import file_names
from trainer.config import StackConfig
from trainer.data.likeness import Album
from trainer.events import Event, Sampled, Warned
from trainer.memory import arranging
from trainer.render import pipeline_call
from trainer.runs import Run
from trainer.training_model import TrainingModel


class Previews:
    """What one run draws while it trains."""

    def __init__(self, model: TrainingModel, run: Run) -> None:
        self.model, self.run = model, run

    @property
    def prompts(self) -> tuple[str, ...]:
        """What is drawn; nothing in a run that was started without previews, as the encoders are let go of then."""
        config = self.model.config
        return config.preview.prompts if config.preview_every_steps else ()

    def draw_all(self, step: int) -> Iterator[Event]:
        """A picture per preview prompt with the adapter as it is; a failure is a warning, never the run's end."""
        for number, prompt in enumerate(self.prompts):
            try:
                # One file a step and prompt: a resumed run draws the same pictures again over the old files.
                name = file_names.preview(step, number + 1)
                (self.run.folder / name).parent.mkdir(exist_ok=True)
                picture = self.draw(prompt)  # in every process, where the base is sharded
                if self.model.world.first:
                    picture.save(self.run.folder / name)
                yield Sampled(step, prompt, name, *self.likeness(picture))
            except (RuntimeError, OSError, ValueError, MemoryError) as error:
                yield Warned(f"preview {prompt!r} at step {step} failed: {error}")

    def draw(self, prompt: str) -> Any:
        """The preview settings' picture for a prompt."""
        config = self.model.config
        settings, size = config.preview, config.resolution_px
        stack = StackConfig(
            family=config.family,
            base=config.base,
            prompt=prompt,
            seed=settings.seed,
            steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            guidance_rescale=settings.guidance_rescale,
            width_px=size,
            height_px=size,
        )
        # Compiled blocks would be compiled again for the picture's size, which takes longer than the picture.
        with arranging.eagerly(self.model), arranging.drawing(self.model), self.model.precision():
            return pipeline_call.draw(self.model.pipe, stack)

    def likeness(self, picture: Any) -> tuple[float, str]:
        """The training picture that a preview is most like, and how much (see `likeness`)."""
        return self._album.nearest(picture)

    @cached_property
    def _album(self) -> Album:
        """The training pictures; read when the first preview asks for them, as many runs draw none."""
        encoded = self.model.encoded
        items = [item for item in encoded.dataset.items if not item.regular]
        return Album(items, self.model.config.data.background)
