"""What a training step works with: the frozen base, the attached adapter, the cached pictures and captions.

State lives here so that `loop.train` reads as the algorithm. Nothing in it decides when something happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from trainer import bases, cache, data, families, methods, objective, validation
from trainer.config import StackConfig, TrainConfig
from trainer.data import Dataset
from trainer.errors import ConfigError
from trainer.events import Event, Sampled, Warned
from trainer.runs import Run

_ADAPTER = "default"
Conditioning = dict[str, Tensor]


@dataclass
class Studio:
    """Made by `open`, filled by `fill_cache`, ready to train after `attach`."""

    config: TrainConfig
    family: ModuleType
    folder: Path  # of the base
    pipe: Any  # the family's diffusers pipeline
    device: str
    dtype: torch.dtype
    schedule: objective.Schedule
    file_keys: dict[str, str]  # of the base as it was before the adapter was attached
    latents: list[list[Tensor]] = field(default_factory=list)  # [picture][mirrored] -> (C, h, w)
    conditionings: list[Conditioning] = field(default_factory=list)
    empty: Conditioning = field(default_factory=dict)  # of the caption ""
    questions: validation.Questions | None = None

    @classmethod
    def open(cls, config: TrainConfig) -> Studio:
        """The frozen base on its device. Raises: ModelError, ConfigError."""
        family = families.registry()[config.family]
        folder = bases.resolve(config.base, family)
        device, dtype = bases.hardware(config.device, config.dtype)
        pipe = bases.open_pipeline(family, folder, device, dtype)
        return cls(config, family, folder, pipe, device, dtype, family.schedule(pipe), family.file_keys(pipe))

    @cached_property
    def base_digest(self) -> str:
        """sha256 of the weights that training depends on."""
        return "".join(bases.digest(self.folder, part)[:16] for part in (*self.family.components, "vae"))

    @property
    def denoiser(self) -> nn.Module:
        denoiser: nn.Module = getattr(self.pipe, next(iter(self.family.components)))
        return denoiser

    def fill_cache(self, folder: Path, dataset: Dataset, heldout: Dataset | None) -> tuple[int, int]:
        """Latents and embeddings of both sets, from disk or computed; (entries, computed)."""
        items = dataset.items + (heldout.items if heldout else [])
        views = [(item, mirrored) for item in items for mirrored in ((False, True) if self.config.data.flip else (False,))]
        size = self.config.resolution_px
        vae, text = bases.digest(self.folder, "vae"), bases.digest(self.folder, "text_encoder") + bases.digest(self.folder, "tokenizer")
        latent_keys = [cache.key("latents-1", self.family.name, vae, self.dtype, size, mirrored, item.sha256) for item, mirrored in views]

        def encode_picture(index: int) -> dict[str, Tensor]:
            item, mirrored = views[index]
            return {"latents": self.family.encode_image(self.pipe, data.load_pixels(item.path, size, mirrored)[None])[0]}

        captions = sorted({item.caption for item in items} | {""})
        caption_keys = [cache.key("text-1", self.family.name, text, self.dtype, caption) for caption in captions]

        def encode_caption(index: int) -> Conditioning:
            found: Conditioning = self.family.encode_text(self.pipe, [captions[index]])[0]
            return found

        pictures, num_pictures = cache.fetch(folder, latent_keys, encode_picture)
        texts, num_texts = cache.fetch(folder, caption_keys, encode_caption)
        if bad := [views[index][0].path.name for index, entry in enumerate(pictures) if not torch.isfinite(entry["latents"]).all()]:
            raise ConfigError(f"the autoencoder gave NaN for {', '.join(bad[:5])}; set dtype=float32.")
        by_caption = dict(zip(captions, texts, strict=True))
        per_item = len(views) // len(items)
        latents = [[pictures[index * per_item + view]["latents"] for view in range(per_item)] for index in range(len(items))]
        num = len(dataset.items)
        self.latents, self.empty = latents[:num], by_caption[""]
        self.conditionings = [by_caption[item.caption] for item in dataset.items]
        if heldout:
            self.questions = validation.Questions(torch.stack([views[0] for views in latents[num:]]), [by_caption[item.caption] for item in heldout.items])
        return len(pictures) + len(texts), num_pictures + num_texts

    def attach(self, saved: dict[str, Tensor] | None) -> dict[str, nn.Parameter]:
        """Attach the adapter through PEFT, zero at start or as saved; its parameters by name, in float32."""
        method = methods.registry()[self.config.adapter.method]
        peft_config = method.peft_config(self.config.adapter, self.family.targets[self.config.adapter.targets])
        init = objective.generator(self.config.seed, "init", 0).initial_seed()
        with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator
            torch.manual_seed(init)
            self.denoiser.add_adapter(peft_config, adapter_name=_ADAPTER)  # type: ignore[operator]
        parameters = self.parameters()
        for name, parameter in parameters.items():
            parameter.data = parameter.data.float() if saved is None else saved[name].to(self.device)
        return parameters

    def parameters(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters by name, in a fixed order."""
        return {name: parameter for name, parameter in self.denoiser.named_parameters() if parameter.requires_grad}

    def batch(self, step: int) -> tuple[Tensor, Conditioning]:
        """Latents (B, C, h, w) and conditioning of one step: each picture once an epoch, in an order of its own."""
        num, seed, size = len(self.latents), self.config.seed, self.config.batch_size
        epochs = range(step * size // num, ((step + 1) * size - 1) // num + 1)
        orders = {epoch: torch.randperm(num, generator=objective.generator(seed, "order", epoch)).tolist() for epoch in epochs}
        rows, conditionings = [], []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, num)
            index = orders[epoch][place]
            dropped, mirrored = torch.rand(2, generator=objective.generator(seed, "caption and mirror", position)).tolist()
            rows.append(self.latents[index][int(mirrored < 0.5) if self.config.data.flip else 0])
            conditionings.append(self.empty if dropped < self.config.data.caption_dropout else self.conditionings[index])
        return torch.stack(rows).to(self.device), self._on_device(conditionings)

    def _on_device(self, conditionings: list[Conditioning]) -> Conditioning:
        batch: Conditioning = self.family.prepare_batch(conditionings)
        return {key: tensor.to(self.device, self.dtype) for key, tensor in batch.items()}

    def predict(self, noised: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's prediction, computed in the base's dtype."""
        prediction: Tensor = self.family.denoise(self.denoiser, noised.to(self.dtype), timesteps.to(self.device), conditioning)
        return prediction

    def heldout_losses(self, with_adapter: bool) -> Tensor | None:
        """Loss per held-out picture (N,), with or without the adapter; None without a held-out set."""
        if self.questions is None:
            return None

        def predict(noised: Tensor, timesteps: Tensor, conditionings: list[Conditioning]) -> Tensor:
            return self.predict(noised.to(self.device), timesteps, self._on_device(conditionings))

        if with_adapter:
            return validation.losses(self.questions, self.schedule, predict)
        self.denoiser.disable_adapters()  # type: ignore[operator]
        try:
            return validation.losses(self.questions, self.schedule, predict)
        finally:
            self.denoiser.enable_adapters()  # type: ignore[operator]

    def preview(self, run: Run, step: int) -> Iterator[Event]:
        """A picture per preview prompt with the adapter as it is; one that fails is a warning, never the run's end."""
        from trainer.render.draw import draw

        settings, size = self.config.preview, self.config.resolution_px
        for number, prompt in enumerate(settings.prompts if self.config.preview_every_steps else ()):
            stack = StackConfig(
                family=self.config.family, base=self.config.base, prompt=prompt, seed=settings.seed, steps=settings.steps,
                guidance_scale=settings.guidance_scale, guidance_rescale=settings.guidance_rescale, width_px=size, height_px=size,
            )  # fmt: skip
            try:
                name = f"samples/step-{step:06d}-{number + 1}.png"
                (run.folder / "samples").mkdir(exist_ok=True)
                draw(self.pipe, stack).save(run.folder / name)
                yield Sampled(step, prompt, name)
            except (RuntimeError, OSError, ValueError) as error:
                yield Warned(f"preview {prompt!r} at step {step} failed: {error}")
