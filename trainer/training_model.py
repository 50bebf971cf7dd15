"""What a training step works with: the frozen base, what is trained on it, and the encoded pictures and captions.

State lives here so that `loop.train` reads as the algorithm. Nothing in it decides when something happens. What goes
on the base is put there by `attaching`, what is drawn with it in `previews`, what is measured in `run_evaluation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer import against_stack, base_match, bases, choices, families, objective, optim, system
from trainer.adapter import Attachment
from trainer.config import MemoryConfig, TrainConfig
from trainer.data import Dataset, has_trigger
from trainer.distributed import World
from trainer.encoded_data import Batch, Conditioning, EncodedData, Part
from trainer.errors import ConfigError
from trainer.families.contract import Family
from trainer.memory import before_loading, compile_times, graphing
from trainer.new_word import Word
from trainer.optim import scaling
from trainer.pipelines import LENGTHS
from trainer.train_mode import in_training


@dataclass
class TrainingModel:
    """Made by `open`, filled by `prepare`, ready to train after `attaching.attach`."""

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
    # Of a float16 base's loss, whose gradients would else be rounded to zero; off for every other base.
    scaler: torch.amp.GradScaler = field(default_factory=lambda: scaling.scaler("cpu", False))
    trained: dict[str, nn.Parameter] = field(default_factory=dict)  # what `parameters` gives, walked once
    kernels: tuple[str, ...] | None = None  # of attention on a GPU, fastest first; see `attention_probe`
    faults: tuple[str, ...] = ()  # a sentence for each kernel that must not be used
    lasting: ExitStack = field(default_factory=ExitStack)  # what holds until memory is arranged anew
    accumulation: int = 1  # batches of a step of the run: a rehearsal's own steps are a batch each
    compile_reason: str = ""  # what `memory.compile=auto` went by
    watch: compile_times.Watch | None = None  # of how long steps take, where that says if compiling is worth it
    recorder: graphing.Recorder | None = None  # of passes, under memory.compile=graphs
    ahead: dict[int, list[Part]] = field(default_factory=dict)  # by step: what was prepared before it was asked for

    @classmethod
    def open(
        cls, config: TrainConfig, world: World | None = None, settings: MemoryConfig | None = None
    ) -> TrainingModel:
        """The frozen base on its device, as these memory settings say, or else the config's.

        Raises: ModelError, ConfigError.
        """
        # Which base, and on what it is to be computed.
        world = world or World()
        choices.check(config if settings is None else config.model_copy(update={"memory": settings}))
        family = families.registry()[config.family]
        folder = bases.resolve(config.base, family)
        device, dtype = bases.hardware(config.device, config.dtype, folder)
        if world.device and world.device.startswith(device):  # each process has a GPU of its own
            device = world.device

        # The base, frozen.
        settings = settings or config.memory
        before_loading.limit(device, settings.budget_gib)
        fetched = settings.offload == "blocks"  # a base larger than the GPU never lies on it whole
        pipe = bases.open_pipeline(family, folder, "cpu" if fetched else device, dtype)
        if fetched:
            before_loading.fetch_encoders(pipe, family.denoiser, device)
        return cls(
            config=config,
            family=family,
            folder=folder,
            pipe=pipe,
            device=device,
            dtype=dtype,
            world=world,
            schedule=family.schedule(pipe),
            file_keys=family.file_keys(pipe),
            is_v2=family.is_v2(pipe),
            memory=settings,
            fetched=fetched,
            accumulation=config.accumulation,
        )

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

    def prepare(
        self,
        store: Path,
        dataset: Dataset,
        heldout: Dataset | None,
        stop: Callable[[], bool] = lambda: False,
        tell: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[int, int]:
        """Plan the steps and encode what they need; (entries, computed). The first process computes, the others read.

        Raises: ConfigError if nothing would train the new word, KeyboardInterrupt once `stop` says so.
        """
        self.encoded = EncodedData(self.config, self.family, self.pipe, self.folder, store)
        self.encoded.lay_out(dataset, heldout)
        word = self.config.inversion.token
        if word and not any(has_trigger(caption, word) for caption in self.encoded.all_captions()):
            raise ConfigError(
                f"inversion.token is {word!r}, which is in no caption, so nothing trains it; write it in the captions."
            )

        # The first process fills the cache while the others wait; they then find everything in it. Hence two waits: the
        # others stand at theirs before they read, the first process at its own after it has written.
        if not self.world.first:
            self.world.wait()
        counted = self.encoded.fill(not self.trains_text, stop, tell)
        system.give_back_freed()  # what encoding took
        if self.world.first:
            self.world.wait()
        return counted

    def release(self) -> None:
        """Let go of the encoders where all is encoded and no picture will be drawn."""
        config = self.config
        draws = (config.preview.prompts and config.preview_every_steps) or config.validation.neutral_prompts
        # Without a cache that can be written, what has left memory is encoded again.
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
        modules = self.denoiser.modules() if self.sharded else ()
        shards: list[Any] = [module for module in modules if hasattr(module, "unshard")]
        for shard in shards:
            shard.unshard()
        try:
            yield
        finally:
            for shard in shards:
                shard.reshard()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything that is trained by name, in a fixed order."""
        # The order decides in which gradients and norms are added up, and so the last bits of a run.
        parameters = {
            f"{component}/{name}": parameter
            for component, attached in self.attachments.items()
            for name, parameter in attached.parameters().items()
        }
        return parameters | (self.word.parameters() if self.word else {})

    def constants(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside the parameters."""
        return {
            f"{component}/{name}": tensor
            for component, attached in self.attachments.items()
            for name, tensor in attached.constants().items()
        }

    def base_weights(self) -> dict[str, Tensor]:
        """The base's weights by module path, adapters attached or not."""
        weights = {}
        for component in self.family.components:
            part = getattr(self.pipe, component)
            for path, module in part.named_modules() if part is not None else ():
                weight = getattr(getattr(module, "base_layer", module), "weight", None)
                if f"{component}.{path}" in self.file_keys and weight is not None:
                    weights[f"{component}.{path}"] = weight.data
        return weights

    # What a step computes with.

    def parts(self, num: int) -> Iterator[list[int]]:
        """This process's rows of a batch of `num`, a micro-batch at a time."""
        rows = self.world.rows(num)
        size = self.memory.micro_batch or len(rows)  # no rows where there are more processes than pictures
        yield from (rows[start : start + size] for start in range(0, len(rows), max(1, size)))

    def image_tokens(self, latents: Tensor) -> int:
        """How many tokens the denoiser makes of latents (B, C, h, w); what a resolution-aware shift goes by."""
        return int(latents.shape[-1] * latents.shape[-2]) // 4  # a token for 2 x 2 latents

    def whole_frames(self, latents: Tensor) -> Tensor:
        """The frames (B, 6) of latents (B, C, h, w) of pictures as they are, nothing scaled and nothing cut off."""
        size = [side * self.pipe.vae_scale_factor for side in latents.shape[-2:]]
        return torch.tensor([[*size, 0, 0, *size]] * len(latents))

    def part(
        self, batch: Batch, rows: list[int], noised: Tensor, timesteps: Tensor, target: Tensor, weights: Tensor
    ) -> Part:
        """These rows of a batch, sent to the device without waiting for it."""
        captions, frames = [batch.captions[row] for row in rows], batch.frames[rows]
        return Part(
            number=batch.number * 1000 + rows[0],  # seeds its dropout: no two parts of a run share a seed
            noised=self._send(noised[rows]).to(self.dtype),
            timesteps=self._send(timesteps[rows]),
            target=self._send(target[rows]),
            weights=self._send(weights[rows]),
            masks=None if batch.masks is None else self._send(batch.masks[rows]),
            conditioning=None if self.trains_text else self._condition(captions, frames),
            captions=captions,
            class_captions=[batch.class_captions[row] for row in rows],
            frames=frames,
            names=[batch.names[row] for row in rows],
        )

    def _send(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU's on the device; from pinned memory, so that the copy waits for nothing."""
        if self.device.startswith("cuda"):
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def predict_part(self, part: Part) -> Tensor:
        """The denoiser's prediction for what a step predicts at once."""
        if self.watch:
            self.watch.saw(part.noised.shape)
        with self.precision():
            conditioning = part.conditioning
            if conditioning is None:  # the text encoder learns, so that a caption means something else each step
                conditioning = self._condition(part.captions, part.frames)
            prediction: Tensor = self.family.denoise(self.denoiser, part.noised, part.timesteps, conditioning)
        return prediction

    def predict(self, noised: Tensor, timesteps: Tensor, captions: list[str], frames: Tensor | None = None) -> Tensor:
        """The denoiser's prediction for noised latents (B, C, h, w), computed in the base's dtype.

        Without `frames` (B, 6) the latents are taken for whole pictures.
        """
        with self.precision():
            conditioning = self._condition(captions, self.whole_frames(noised) if frames is None else frames)
            prediction: Tensor = self.family.denoise(
                self.denoiser, noised.to(self.device, self.dtype), timesteps.to(self.device), conditioning
            )
        return prediction

    def _condition(self, captions: list[str], frames: Tensor) -> Conditioning:
        """The conditioning of a batch of captions (B) and frames (B, 6), on the device."""
        if self.trains_text:
            # Each caption once, however many pictures have it: its gradients add up all the same.
            distinct = list(dict.fromkeys(captions))
            texts = self.family.encode_text(self.pipe, distinct, self.encoded.chunks)
            encoded = dict(zip(distinct, texts, strict=True))
            rows = [encoded[caption] for caption in captions]
        else:
            rows = [self.encoded.conditioning(caption) for caption in captions]
        batch: Conditioning = self.family.prepare_batch(
            [{**row, "frame": frame} for row, frame in zip(rows, frames, strict=True)]
        )
        return {key: tensor if key == LENGTHS else self._as_computed(tensor) for key, tensor in batch.items()}

    def _as_computed(self, tensor: Tensor) -> Tensor:
        """A tensor on the device, in the base's dtype if it holds floats."""
        sent = self._send(tensor) if tensor.device.type == "cpu" else tensor
        return sent.to(self.dtype) if tensor.is_floating_point() else sent

    def precision(self) -> Any:
        """Adapters are float32; beside a smaller base their products are computed in its dtype."""
        # Where every layer has been fused with its adapter, nothing is left for autocast to do.
        kind = self.device.partition(":")[0]
        return torch.autocast(kind, dtype=self.dtype, enabled=self.needs_autocast and self.dtype != torch.float32)

    @contextmanager
    def dropping(self, stream: str, number: int) -> Iterator[None]:
        """Adapter dropout drawn from (seed, stream, number), for the body; nothing if there is none."""
        if not getattr(self.config.adapter, "dropout", 0.0):
            yield
            return
        # PEFT's dropout draws from the global generator, which is put back as it was.
        devices = [torch.device(self.device)] if self.device.startswith("cuda") else []
        layers = [layer for attached in self.attachments.values() for layer in attached.dropouts()]
        with torch.random.fork_rng(devices=devices), in_training(layers):
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
            f"{component}.{path}": pair
            for component, attached in self.attachments.items()
            for path, pair in attached.factors().items()
        }
        return against_stack.overlap(self.spans, self.span_energy, pairs)

    def forgotten(self, noised: Tensor, timesteps: Tensor, captions: list[str], frames: Tensor) -> Tensor:
        """How far the prediction for the class captions has moved from the base's own (B,), with its gradient."""
        with torch.no_grad(), self.base():
            before = self.predict(noised, timesteps, captions, frames).float()
        after = self.predict(noised, timesteps, captions, frames).float()
        return (after - before).square().flatten(1).mean(1)

    @torch.no_grad()
    def limit_norms(self) -> None:
        """Scale back updates longer than the limit."""
        if limit := self.config.optimizer.max_weight_norm:
            pairs = [pair for attached in self.attachments.values() for pair in attached.factors().values()]
            optim.limit_norms(pairs, limit)
