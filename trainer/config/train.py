"""Settings of one training, the groups put together and held against each other."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import reduce
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Field, field_validator, model_validator

from trainer import families, methods
from trainer.config import starting
from trainer.config.data import CaptionsConfig, DataConfig
from trainer.config.learning import AgainstConfig, InversionConfig, ObjectiveConfig, OptimizerConfig
from trainer.config.running import MemoryConfig, PreviewConfig, ValidationConfig
from trainer.config.starting import StartConfig
from trainer.families.contract import Family
from trainer.schema import Settings, setting, unread

if TYPE_CHECKING:  # built from the registry below; what every method has

    class Adapter(Settings):
        method: str
        rank: int
        alpha: float
        targets: str
else:
    _KINDS = [module.Config for module in methods.registry().values()]
    # A discriminated union of a single kind is no union to pydantic; it is then the method's Config itself.
    Adapter = Annotated[reduce(operator.or_, _KINDS), Discriminator("method")] if len(_KINDS) > 1 else _KINDS[0]


class TrainConfig(Settings):
    """Settings of one LoRA's training."""

    # What is trained.
    version: Literal[1] = Field(
        1, title="Version", description="Of this list of settings.", json_schema_extra={"advanced": True}
    )
    family: str = Field(title="Family", description="Architecture of the base model.")
    base: str = Field(
        title="Base",
        description=(
            "imprimatura, a diffusers folder, a checkpoint file, a name from `velatura models list`, or a "
            "downloaded hub id."
        ),
        min_length=1,
        json_schema_extra={"path": "base"},
    )

    # How long, and on how much at a time.
    max_steps: int = setting(
        200, "Steps", "How long to train; about 4-8 steps a picture at batch 8.", ge=1, le=1_000_000
    )
    batch_size: int = setting(4, "Batch size", "Pictures at once, all of one shape; 1-8.", ge=1, le=256)
    accumulation: int = setting(
        1,
        "Accumulation",
        "Batches a step; with 2, a step learns from twice the pictures in the same memory.",
        ge=1,
        le=256,
        advanced=True,
    )
    learning_rate: float = setting(
        1e-4, "Learning rate", "Size of a step; 1e-4 for big bases, 5e-4 to 1e-3 for Imprimatura.", gt=0, le=1
    )
    resolution_px: int = setting(
        512,
        "Resolution",
        "Pictures are scaled to about this many pixels squared, each in its own shape.",
        ge=8,
        le=4096,
    )
    seed: int = setting(0, "Seed", "The same seed, settings and pictures give the same file.", ge=0, le=2**32 - 1)

    # How often it is saved, drawn and measured.
    checkpoint_every_steps: int = setting(50, "Checkpoint every", "Steps between saved states to resume from.", ge=1)
    preview_every_steps: int = setting(50, "Preview every", "Steps between previews; 0 for none.", ge=0)
    validate_every_steps: int = setting(
        50, "Validate every", "Steps between measurements on the held-out set.", ge=1, advanced=True
    )
    keep_checkpoints: int = setting(2, "Keep checkpoints", "Older ones are removed.", ge=1, le=1000, advanced=True)

    # What it is computed with and written as.
    device: Literal["auto", "cpu", "cuda", "mps"] = setting(
        "auto", "Device", "Where to train; auto takes the GPU if there is one.", advanced=True
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        "Base dtype",
        "Of the frozen base; the adapter is float32. auto: bfloat16 where this machine computes it faster.",
        advanced=True,
    )
    track: Literal["none", "tensorboard", "trackio"] = setting(
        "none",
        "Tracker",
        "Also log to TensorBoard or trackio, in the run's folder; the extra 'track' installs them.",
        advanced=True,
    )
    save_dtype: Literal["float32", "float16", "bfloat16"] = setting(
        "float32", "File dtype", "Of the LoRA file; float16 halves it.", advanced=True
    )

    # Groups.
    start: StartConfig = StartConfig()
    adapter: Adapter
    data: DataConfig = DataConfig()
    captions: CaptionsConfig = CaptionsConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    inversion: InversionConfig = InversionConfig()
    against: AgainstConfig = AgainstConfig()
    validation: ValidationConfig = ValidationConfig()
    preview: PreviewConfig = PreviewConfig()
    memory: MemoryConfig = MemoryConfig()

    @field_validator("family")
    @classmethod
    def _known_family(cls, value: str) -> str:
        return families.known(value)

    @field_validator("adapter", mode="before")
    @classmethod
    def _known_method(cls, value: Any) -> Any:
        name = value.get("method") if isinstance(value, dict) else getattr(value, "method", None)
        if isinstance(value, dict) and isinstance(name, str) and name not in methods.registry():
            raise ValueError(f"adapter.method is {name[:80]!r}; allowed: {', '.join(methods.registry())}.")
        return value

    @model_validator(mode="after")
    def _fits_family(self) -> TrainConfig:
        facts = families.registry()[self.family]
        problems = [
            *unread(self, {"prediction": facts.prediction}),
            *_size_problems(self, facts),
            *_family_problems(self, facts),
            *_pair_problems(self),
            *_validation_problems(self),
            *_target_problems(self, facts),
            *_warmup_problems(self),
            *starting.problems(self.optimizer.extended, self.max_steps),
        ]
        if problems:
            raise ValueError("\n  ".join(problems))  # `refusals` makes a line of each again
        return self


# What single fields can't tell: each is a sentence on settings that don't go together.


def _size_problems(config: TrainConfig, facts: Family) -> Iterator[str]:
    sizes = [("resolution_px", config.resolution_px)]
    sizes += [("data.more_resolutions_px", size) for size in config.data.more_resolutions_px]
    for name, size in sizes:
        if size % facts.multiple_px or not 8 <= size <= 4096:
            yield f"{name} is {size}; allowed: a multiple of {facts.multiple_px} for {facts.title}."
    step = config.data.bucket_step_px
    if step % facts.multiple_px:
        yield f"data.bucket_step_px is {step}; allowed: a multiple of {facts.multiple_px} for {facts.title}."

    # The range.
    objective = config.objective
    if objective.timesteps_low >= objective.timesteps_high:
        yield (
            f"objective.timesteps_low is {objective.timesteps_low}; allowed: less than objective.timesteps_high "
            f"({objective.timesteps_high})."
        )


def _family_problems(config: TrainConfig, facts: Family) -> Iterator[str]:
    token = config.inversion.token
    if token and not facts.words:
        yield f"inversion.token is {token!r}; new words are not known for {facts.title}, leave it empty."
    if getattr(config.adapter, "text_encoder", False) and len(facts.components) == 1:
        yield (
            f"adapter.text_encoder is on, but no text encoder of {facts.title} is adapted by any tool; leave it off."
        )


def _pair_problems(config: TrainConfig) -> Iterator[str]:
    if config.optimizer.name == "other" and not config.optimizer.other:
        yield (
            "optimizer.other is not set; optimizer.name = other takes the name of a class of pytorch-optimizer there."
        )
    if config.objective.preservation_weight and not config.data.class_caption:
        yield (
            "data.class_caption is not set; preservation holds the base to what it says to that caption, such as cat."
        )


def _validation_problems(config: TrainConfig) -> Iterator[str]:
    validation, heldout = config.validation, config.data.heldout
    if validation.leave_out and heldout:
        yield (
            f"validation.leave_out is {validation.leave_out}, but data.heldout names a held-out set; set one of the "
            "two."
        )
    if validation.folds and (heldout or validation.leave_out):
        yield (
            "validation.folds is set, but so is data.heldout or validation.leave_out; folds are for sets that have "
            "neither."
        )
    if validation.folds == 1:
        yield "validation.folds is 1; allowed: 0, or 2 to 20."


def _target_problems(config: TrainConfig, facts: Family) -> Iterator[str]:
    adapter = config.adapter
    if adapter.targets not in facts.targets:
        yield f"adapter.targets is {adapter.targets!r}; allowed for {facts.title}: {', '.join(facts.targets)}."

    # Some methods, and some ways to start, are for linear layers only.
    if adapter.targets in facts.convolution_targets and getattr(adapter, "linear_only", False):
        start = getattr(adapter, "init", "")
        chosen = f"adapter.init = {start}" if start else f"adapter.method = {adapter.method}"
        linear = [name for name in facts.targets if name not in facts.convolution_targets and name != "all"]
        yield (
            f"adapter.targets is {adapter.targets!r}, which takes in convolutions of {facts.title}; allowed with "
            f"{chosen}: {', '.join(linear)}."
        )


def _warmup_problems(config: TrainConfig) -> Iterator[str]:
    warmup_steps = config.optimizer.warmup_steps
    if warmup_steps >= config.max_steps:
        yield f"optimizer.warmup_steps is {warmup_steps}; allowed: less than max_steps ({config.max_steps})."
