"""What a training step works with: the frozen base, what is trained on it, and the encoded pictures and captions.

State lives here so that `loop.train` reads as the algorithm. Nothing in it decides when something happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer import against_stack, base_match, bases, choices, data, families, methods, objective, optim, system, validation
from trainer.adapter import ADAPTER, Attachment, attach, refuse_ranks_of_nothing
from trainer.checkpoint import Checkpoint
from trainer.config import MemoryConfig, StackConfig, TrainConfig
from trainer.data import Dataset, has_trigger
from trainer.distributed import World
from trainer.encoded_data import Batch, Conditioning, EncodedData, Part
from trainer.errors import ConfigError
from trainer.events import Event, Sampled, Warned
from trainer.families.contract import Family
from trainer.memory import arranging, compiling, convolving, fused_lora, mechanics, quantising
from trainer.new_word import Word
from trainer.optim import scaling
from trainer.runs import Run


def base_digest(config: TrainConfig) -> str:
    """sha256 of the weights that training depends on. Raises: ModelError."""
    family = families.registry()[config.family]
    folder = bases.resolve(config.base, family)
    parts = dict.fromkeys([*family.components, *bases.parts(folder, "text_encoder"), "vae"])
    return "".join(bases.digest(folder, part)[:16] for part in parts)


@dataclass
class TrainingModel:
    """Made by `open`, filled by `prepare`, ready to train after `attach`."""

    config: TrainConfig
    family: Family
    folder: Path  # of the base
    pipe: Any  # the family's diffusers pipeline
    device: str
    dtype: torch.dtype
    world: World
    schedule: objective.Schedule
    file_keys: dict[str, str]  # of the base as it was before the adapter was attached
    is_v2: bool  # of Stable Diffusion, by the width of its text encoder: what `ss_v2` says
    memory: MemoryConfig  # as it is now; the out-of-memory ladder may change it
    fetched: bool = False  # the denoiser was loaded on the CPU, and text encoders bring their own layers
    attachments: dict[str, Attachment] = field(default_factory=dict)  # by component
    word: Word | None = None
    spans: against_stack.Bases = field(default_factory=dict)
    span_energy: float = 0.0
    needs_autocast: bool = True  # some adapter layer computes in float32 by itself
    scaler: torch.amp.GradScaler = field(default_factory=lambda: scaling.scaler("cpu", False))  # of a float16 base's loss
    trained: dict[str, nn.Parameter] = field(default_factory=dict)  # what `parameters` gives, walked once
    kernels: tuple[str, ...] | None = None  # of attention on a GPU, fastest first; see `attention_probe`
    faults: tuple[str, ...] = ()  # a sentence for each kernel that must not be used
    lasting: ExitStack = field(default_factory=ExitStack)  # what holds until memory is arranged anew
    ahead: dict[int, list[Part]] = field(default_factory=dict)  # by step: what was prepared before it was asked for

    @classmethod
    def open(cls, config: TrainConfig, world: World | None = None, settings: MemoryConfig | None = None) -> TrainingModel:
        """The frozen base on its device, as these memory settings say, or the config's. Raises: ModelError, ConfigError."""
        world = world or World()
        choices.check(config if settings is None else config.model_copy(update={"memory": settings}))
        family = families.registry()[config.family]
        folder = bases.resolve(config.base, family)
        device, dtype = bases.hardware(config.device, config.dtype, folder)
        if world.device and world.device.startswith(device):  # each process has a GPU of its own
            device = world.device
        settings = settings or config.memory
        arranging.limit(device, settings.budget_gib)
        fetched = settings.offload == "blocks"  # a base larger than the GPU never lies on it whole
        pipe = bases.open_pipeline(family, folder, "cpu" if fetched else device, dtype)
        if fetched:
            arranging.fetch_encoders(pipe, family.denoiser, device)
        return cls(config, family, folder, pipe, device, dtype, world, family.schedule(pipe), family.file_keys(pipe), family.is_v2(pipe), settings, fetched)

    @cached_property
    def trained_on(self) -> base_match.Origin:
        """The base as LoRA files tell of it."""
        return base_match.of_base(self.config.base, self.folder, self.config.family)

    @property
    def denoiser(self) -> nn.Module:
        denoiser: nn.Module = getattr(self.pipe, self.component)
        return denoiser

    @property
    def component(self) -> str:
        """The denoiser's name in the pipeline."""
        return self.family.denoiser

    @property
    def trains_text(self) -> bool:
        """True if what a caption means changes while training."""
        return bool(getattr(self.config.adapter, "text_encoder", False) or self.config.inversion.token)

    def prepare(self, store: Path, dataset: Dataset, heldout: Dataset | None, stop: Callable[[], bool] = lambda: False) -> tuple[int, int]:
        """Plan the steps and encode what they need; (entries, computed). The first process computes, the others read.

        Raises: ConfigError if nothing would train the new word, KeyboardInterrupt once `stop` says so.
        """
        self.encoded = EncodedData(self.config, self.family, self.pipe, self.folder, store)
        self.encoded.lay_out(dataset, heldout)
        word = self.config.inversion.token
        if word and not any(has_trigger(caption, word) for caption in self.encoded.all_captions()):
            raise ConfigError(f"inversion.token is {word!r}, which is in no caption, so nothing would train it; write it in the captions.")
        if not self.world.first:
            self.world.wait()
        counted = self.encoded.fill(with_text=not self.trains_text, stop=stop)
        system.give_back_freed()  # what encoding took
        if self.world.first:
            self.world.wait()
        return counted

    def attach(self, checkpoint: Checkpoint | None) -> dict[str, nn.Parameter]:
        """Put on the base what it is trained against, then the adapter and the new word, at their start or as saved; the parameters by name."""
        config, method = self.config, methods.registry()[self.config.adapter.method]
        saved = checkpoint.tensors["adapter"] if checkpoint else None
        if checkpoint:
            self.kernels = tuple(checkpoint.state["kernels"]) if checkpoint.state.get("kernels") else None
        if config.against.adapters:
            self.spans, self.span_energy = against_stack.fold(config.against.adapters, self.base_weights(), self.file_keys)
        quantising.quantise(self.denoiser, self.memory.quantise)
        targets = {self.component: self.family.targets[config.adapter.targets]}
        if getattr(config.adapter, "text_encoder", False):
            targets |= dict.fromkeys([*self.family.components][1:], self.family.text_targets)
        refuse_ranks_of_nothing(config.adapter, [(getattr(self.pipe, component), pattern) for component, pattern in targets.items()])
        for number, (component, pattern) in enumerate(targets.items()):
            part = {name.partition("/")[2]: tensor for name, tensor in saved.items() if name.startswith(f"{component}/")} if saved else None
            seed = objective.generator(config.seed, "init", number).initial_seed()
            samples = self._sampler() if component == self.component else None
            self.attachments[component] = attach(getattr(self.pipe, component), method, config.adapter, pattern, seed, part, samples)
        if config.inversion.token:
            self.word = Word(self.pipe, config.inversion, saved)
        self.scaler = scaling.scaler(self.device, self.dtype == torch.float16, checkpoint.state["loss_scale"] if checkpoint else None)
        self.needs_autocast = not self._fuse()
        self.trained = self.parameters()
        if self.sharded:
            self.world.shard(self.denoiser, self.trained.values())
        else:
            self._lay_out()
        arranging.arrange(self)  # last: it goes by what each layer has become
        system.give_back_freed()
        return self.trained

    def release(self) -> None:
        """Let go of the encoders where all is encoded and no picture will be drawn."""
        draws = (self.config.preview.prompts and self.config.preview_every_steps) or self.config.validation.neutral_prompts
        if draws or self.trains_text or self.encoded.store.problem:
            return
        self.encoded.is_complete = True
        for name, part in self.pipe.components.items():
            if isinstance(part, nn.Module) and part is not self.denoiser:
                setattr(self.pipe, name, None)

    @property
    def sharded(self) -> bool:
        """True if the base is spread over processes, which then do every forward together."""
        return self.memory.shard and self.world.size > 1

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The base whole in every process, for the body."""
        parts: list[Any] = [module for module in self.denoiser.modules() if hasattr(module, "unshard")] if self.sharded else []
        for part in parts:
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.reshard()

    # Speed choices that every run takes (`velatura bench train --without` measures each).

    def _fuse(self) -> bool:
        """One product a LoRA layer; False if some adapter layer still computes in float32 by itself."""
        return all([fused_lora.fuse(attached.layers.values(), ADAPTER, self.dtype) for attached in self.attachments.values()])

    def _lay_out(self) -> None:
        """Frozen convolutions in channels-last order, which they compute in anyway, some as products; an adapter's own stay as PEFT reads them."""
        for module in self.denoiser.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.requires_grad:
                before = module.weight.data
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                if module.weight.data_ptr() != before.data_ptr():
                    mechanics.forget(before)
        convolving.as_products(self.denoiser)

    def _sampler(self) -> Callable[[], None]:
        """Runs a few batches through the denoiser, for methods whose start depends on what flows there."""

        def run() -> None:
            for step in range(4):
                for batch in self.encoded.batches(step):
                    noise = objective.noise_like(batch.latents, objective.generator(self.config.seed, "init noise", batch.number))
                    timesteps = objective.sample_timesteps(self.schedule, len(batch), objective.generator(self.config.seed, "init timesteps", batch.number))
                    with torch.no_grad():
                        self.predict(objective.add_noise(self.schedule, batch.latents, noise, timesteps), timesteps, batch.captions, batch.frames)

        return run

    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything that is trained by name, in a fixed order."""
        found = {f"{component}/{name}": parameter for component, attached in self.attachments.items() for name, parameter in attached.parameters().items()}
        return found | (self.word.parameters() if self.word else {})

    def constants(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside the parameters."""
        return {f"{component}/{name}": tensor for component, attached in self.attachments.items() for name, tensor in attached.constants().items()}

    def base_weights(self) -> dict[str, Tensor]:
        """The base's weights by module path, adapters attached or not."""
        weights = {}
        for component in self.family.components:
            for path, module in getattr(self.pipe, component).named_modules() if getattr(self.pipe, component) is not None else ():
                weight = getattr(getattr(module, "base_layer", module), "weight", None)
                if f"{component}.{path}" in self.file_keys and weight is not None:
                    weights[f"{component}.{path}"] = weight.data
        return weights

    def pass_each_shape(self) -> None:
        """One pass of the denoiser for each shape and number of pictures that steps will have."""
        order, seen = self.encoded.order, set[tuple[Any, int]]()
        for number in range(order.num_batches):
            samples = order.batch(number)
            for size in {len(rows) for rows in self.parts(len(samples))} - {size for bucket, size in seen if bucket == samples[0].bucket}:
                seen.add((samples[0].bucket, size))
                batch = self.encoded.batch(number, samples)
                timesteps = torch.full((size,), self.schedule.num_timesteps // 2)
                self.predict(batch.latents[:size], timesteps, batch.captions[:size], batch.frames[:size])

    # What a step asks.

    def parts(self, num: int) -> Iterator[list[int]]:
        """This process's rows of a batch of `num`, a micro-batch at a time."""
        rows = self.world.rows(num)
        size = self.memory.micro_batch or len(rows)
        yield from (rows[start : start + size] for start in range(0, len(rows), max(1, size)))

    def image_tokens(self, latents: Tensor) -> int:
        """How many tokens the denoiser makes of latents (B, C, h, w); what a resolution-aware shift goes by."""
        return int(latents.shape[-1] * latents.shape[-2]) // 4

    def whole_frames(self, latents: Tensor) -> Tensor:
        """The frames (B, 6) of latents (B, C, h, w) of pictures as they are, nothing scaled and nothing cut off."""
        size = [side * self.pipe.vae_scale_factor for side in latents.shape[-2:]]
        return torch.tensor([[*size, 0, 0, *size]] * len(latents))

    def part(self, batch: Batch, rows: list[int], noised: Tensor, timesteps: Tensor, target: Tensor, weights: Tensor) -> Part:
        """These rows of a batch, sent to the device without waiting for it."""
        captions, frames = [batch.captions[row] for row in rows], batch.frames[rows]
        return Part(
            batch.number * 1000 + rows[0], self._send(noised[rows]).to(self.dtype), self._send(timesteps[rows]), self._send(target[rows]),
            self._send(weights[rows]), None if batch.masks is None else self._send(batch.masks[rows]),
            None if self.trains_text else self._condition(captions, frames), captions,
            [batch.class_captions[row] for row in rows], frames, [batch.names[row] for row in rows],
        )  # fmt: skip

    def _send(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU's on the device; from pinned memory, so that the copy waits for nothing."""
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.startswith("cuda") else tensor.to(self.device)

    def predict_part(self, part: Part) -> Tensor:
        """The denoiser's prediction for what a step predicts at once."""
        compiling.begin_pass(self.memory)
        with self._precision():
            conditioning = self._condition(part.captions, part.frames) if part.conditioning is None else part.conditioning
            prediction: Tensor = self.family.denoise(self.denoiser, part.noised, part.timesteps, conditioning)
        return prediction

    def predict(self, noised: Tensor, timesteps: Tensor, captions: list[str], frames: Tensor | None = None) -> Tensor:
        """The denoiser's prediction for noised latents (B, C, h, w), computed in the base's dtype; without frames, of whole pictures."""
        with self._precision():
            conditioning = self._condition(captions, self.whole_frames(noised) if frames is None else frames)
            prediction: Tensor = self.family.denoise(self.denoiser, noised.to(self.device, self.dtype), timesteps.to(self.device), conditioning)
        return prediction

    def _condition(self, captions: list[str], frames: Tensor) -> Conditioning:
        if self.trains_text:
            distinct = list(dict.fromkeys(captions))
            encoded = dict(zip(distinct, self.family.encode_text(self.pipe, distinct, self.encoded.chunks), strict=True))
            rows = [encoded[caption] for caption in captions]
        else:
            rows = [self.encoded.conditioning(caption) for caption in captions]
        batch: Conditioning = self.family.prepare_batch([{**row, "frame": frame} for row, frame in zip(rows, frames, strict=True)])
        return {
            key: (tensor if tensor.device.type != "cpu" else self._send(tensor)).to(self.dtype if tensor.is_floating_point() else tensor.dtype)
            for key, tensor in batch.items()
        }

    def _precision(self) -> Any:
        """Adapters are float32; beside a smaller base their products are computed in its dtype."""
        kind = self.device.partition(":")[0]
        return torch.autocast(kind, dtype=self.dtype, enabled=self.needs_autocast and self.dtype != torch.float32)

    @contextmanager
    def dropping(self, stream: str, number: int) -> Iterator[None]:
        """Adapter dropout drawn from (seed, stream, number), for the body; nothing if there is none."""
        if not getattr(self.config.adapter, "dropout", 0.0):
            yield
            return
        devices = [torch.device(self.device)] if self.device.startswith("cuda") else []
        layers = [layer for attached in self.attachments.values() for layer in attached.dropouts()]
        with torch.random.fork_rng(devices=devices), arranging.training(layers):
            torch.manual_seed(objective.generator(self.config.seed, stream, number).initial_seed())
            yield

    @contextmanager
    def base(self) -> Iterator[None]:
        """The base alone for the body: no adapter, the new word as it started."""
        with ExitStack() as stack:
            for attached in self.attachments.values():
                stack.enter_context(attached.off())
            if self.word:
                stack.enter_context(self.word.off())
            yield

    def overlap(self) -> Tensor:
        """How much of the update lies where the stack's is (see `against_stack`), with its gradient."""
        pairs = {
            f"{component}.{path}": pair for component, attached in self.attachments.items() for path, pair in attached.factors().items()
        }  # fmt: skip
        return against_stack.overlap(self.spans, self.span_energy, pairs)

    def forgotten(self, noised: Tensor, timesteps: Tensor, captions: list[str], frames: Tensor) -> Tensor:
        """How far the prediction for the class captions has moved from the base's own (B,), with its gradient."""
        with torch.no_grad(), self.base():
            wanted = self.predict(noised, timesteps, captions, frames).float()
        return (self.predict(noised, timesteps, captions, frames).float() - wanted).square().flatten(1).mean(1)

    @torch.no_grad()
    def limit_norms(self) -> None:
        """Scale back updates longer than the limit."""
        if limit := self.config.optimizer.max_weight_norm:
            optim.limit_norms([pair for attached in self.attachments.values() for pair in attached.factors().values()], limit)

    # Looking, without changing anything.

    def questions(self, dataset: Dataset | None, limit: int | None = None) -> validation.Questions | None:
        """What is asked of the first `limit` pictures of a set; None without one."""
        items = [item for item in dataset.items if not item.regular][:limit] if dataset else []
        if not items:
            return None
        latents = [self.encoded.latents(item, self.encoded.own_bucket(item), 0, False) for item in items]
        frames = [torch.tensor(data.frame(item, self.encoded.own_bucket(item), 0, False)) for item in items]
        return validation.Questions(latents, [self.encoded.measured_caption(item) for item in items], frames)

    def losses(self, questions: validation.Questions, with_adapter: bool = True) -> Tensor:
        """Loss by picture and timestep (N, 10), with or without the adapter."""
        size = 2 * (self.memory.micro_batch or self.config.batch_size)
        with arranging.eagerly(self), nullcontext() if with_adapter else self.base():
            return mechanics.halving(size, lambda size: validation.losses(questions, self.schedule, self.predict, size))

    def preview(self, run: Run, step: int) -> Iterator[Event]:
        """A picture per preview prompt with the adapter as it is; one that fails is a warning, never the run's end."""
        settings = self.config.preview
        for number, prompt in enumerate(settings.prompts if self.config.preview_every_steps else ()):
            try:
                name = f"samples/step-{step:06d}-{number + 1}.png"
                (run.folder / "samples").mkdir(exist_ok=True)
                picture = self.draw(prompt)
                if self.world.first:
                    picture.save(run.folder / name)
                yield Sampled(step, prompt, name, *self.likeness(picture))
            except (RuntimeError, OSError, ValueError, MemoryError) as error:
                yield Warned(f"preview {prompt!r} at step {step} failed: {error}")

    def draw(self, prompt: str) -> Any:
        """The preview settings' picture for a prompt."""
        from trainer.render.draw import draw

        settings, size = self.config.preview, self.config.resolution_px
        stack = StackConfig(
            family=self.config.family, base=self.config.base, prompt=prompt, seed=settings.seed, steps=settings.steps,
            guidance_scale=settings.guidance_scale, guidance_rescale=settings.guidance_rescale, width_px=size, height_px=size,
        )  # fmt: skip
        with arranging.eagerly(self), arranging.drawing(self), self._precision():
            return draw(self.pipe, stack)

    def likeness(self, picture: Any) -> tuple[float, str]:
        """The training picture that a preview is most like, and how much (see `likeness`)."""
        from trainer.data.likeness import Album

        if not hasattr(self, "_album"):
            self._album = Album([item for item in self.encoded.dataset.items if not item.regular], self.config.data.background)
        return self._album.nearest(picture)
