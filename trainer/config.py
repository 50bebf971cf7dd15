"""Everything that can be set, as one frozen tree: the CLI's overrides, the UI's form, a preset, a LoRA's header.

`family` and `adapter.method` have no default: a union tag with a default vanishes from `exclude_defaults` dumps.
A run's name and place are not settings: two runs of one config on one dataset give the same bytes, wherever they are.
Every setting here is read by the loop; one that isn't used does not exist.
"""

from __future__ import annotations

import hashlib
import json
import operator
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Discriminator, Field, ValidationError, field_validator, model_validator

from trainer import families, methods
from trainer.schema import Settings, explain, setting

if TYPE_CHECKING:  # built from the registry below; what every method has

    class Adapter(Settings):
        method: str
        rank: int
        alpha: float
        targets: str
else:
    _KINDS = [module.Config for module in methods.registry().values()]
    # A discriminated union of one is no union to pydantic; it is then the method's Config itself.
    Adapter = Annotated[reduce(operator.or_, _KINDS), Discriminator("method")] if len(_KINDS) > 1 else _KINDS[0]


class DataConfig(Settings):
    folder: str = setting("", "Dataset", "Folder of pictures with a caption file of the same name each.")
    heldout: str = setting("", "Held-out set", "Folder of pictures never trained on, to measure what was learned; empty for none.")
    trigger: str = setting("", "Trigger", "Word that calls the adapter; put before captions that lack it. Usual for a character.", max_length=80)
    caption_dropout: float = setting(
        0.05, "Caption dropout", "Share of steps that train without caption, which keeps guidance working; 0-0.1.", ge=0, le=1, advanced=True
    )
    flip: bool = setting(False, "Mirror", "Show every second picture mirrored; not for faces with a parting, lettering or logos.", advanced=True)


class OptimizerConfig(Settings):
    schedule: Literal["constant", "linear", "cosine"] = setting("cosine", "Schedule", "How the learning rate falls after warm-up.", advanced=True)
    warmup_steps: int = setting(0, "Warm-up", "Steps over which the learning rate rises from zero.", ge=0, advanced=True)
    weight_decay: float = setting(0.01, "Weight decay", "Pull of the adapter towards zero; 0-0.1.", ge=0, le=1, advanced=True)
    max_grad_norm: float = setting(1.0, "Gradient clip", "Longest gradient that is used whole.", gt=0, advanced=True)


class PreviewConfig(Settings):
    prompts: tuple[str, ...] = setting((), "Preview prompts", "One a line; each gives a picture at the start and at every preview.", max_length=16)
    seed: int = setting(1, "Preview seed", "The same noise for every preview, so that only training changes them.", ge=0, le=2**32 - 1, advanced=True)
    steps: int = setting(20, "Preview steps", "Sampling steps of a preview.", ge=1, le=200, advanced=True)
    guidance_scale: float = setting(3.0, "Guidance", "How closely pictures follow the prompt; 1 is off.", ge=1, le=30, advanced=True)
    guidance_rescale: float = setting(
        0.0, "Guidance rescale", "Tames the contrast of guidance for zero-terminal-SNR bases; 0.7 there.", ge=0, le=1, advanced=True
    )


class TrainConfig(Settings):
    """Settings of one LoRA's training."""

    version: Literal[1] = Field(1, title="Version", description="Of this list of settings.", json_schema_extra={"advanced": True})
    family: str = Field(title="Family", description="Architecture of the base model.")
    base: str = Field(title="Base", description="imprimatura, a diffusers folder, or the hub id of a model already downloaded.", min_length=1)
    max_steps: int = setting(200, "Steps", "How long to train; about 4-8 steps a picture at batch 8.", ge=1, le=1_000_000)
    batch_size: int = setting(4, "Batch size", "Pictures a step; 1-8.", ge=1, le=256)
    learning_rate: float = setting(1e-4, "Learning rate", "Size of a step; 1e-4 for big bases, 5e-4 to 1e-3 for Imprimatura.", gt=0, le=1)
    resolution_px: int = setting(512, "Resolution", "Pictures are scaled and centre-cropped to this square, in pixels.", ge=8, le=4096)
    seed: int = setting(0, "Seed", "The same seed, settings and pictures give the same file.", ge=0, le=2**32 - 1)
    checkpoint_every_steps: int = setting(50, "Checkpoint every", "Steps between saved states to resume from.", ge=1)
    preview_every_steps: int = setting(50, "Preview every", "Steps between previews; 0 for none.", ge=0)
    validate_every_steps: int = setting(50, "Validate every", "Steps between measurements on the held-out set.", ge=1, advanced=True)
    keep_checkpoints: int = setting(2, "Keep checkpoints", "Older ones are removed.", ge=1, le=1000, advanced=True)
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "Device", "Where to train; auto takes the GPU if there is one.", advanced=True)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "Base dtype", "Of the frozen base; the adapter is float32. auto: bfloat16 on a GPU that has it.", advanced=True
    )
    save_dtype: Literal["float32", "float16", "bfloat16"] = setting("float32", "File dtype", "Of the LoRA file; float16 halves it.", advanced=True)
    adapter: Adapter
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    preview: PreviewConfig = PreviewConfig()

    @field_validator("family")
    @classmethod
    def _known_family(cls, value: str) -> str:
        if value not in families.registry():
            raise ValueError(f"family is {value!r}; allowed: {', '.join(families.registry())}.")
        return value

    @field_validator("adapter", mode="before")
    @classmethod
    def _known_method(cls, value: Any) -> Any:
        found = value.get("method") if isinstance(value, dict) else getattr(value, "method", None)
        if isinstance(value, dict) and found is not None and found not in methods.registry():
            raise ValueError(f"adapter.method is {found!r}; allowed: {', '.join(methods.registry())}.")
        return value

    @model_validator(mode="after")
    def _fits_family(self) -> TrainConfig:
        facts = families.registry()[self.family]
        problems = []
        if self.resolution_px % facts.multiple_px:
            problems.append(f"resolution_px is {self.resolution_px}; allowed: a multiple of {facts.multiple_px} for {facts.title}.")
        if self.adapter.targets not in facts.targets:
            problems.append(f"adapter.targets is {self.adapter.targets!r}; allowed for {facts.title}: {', '.join(facts.targets)}.")
        if self.optimizer.warmup_steps >= self.max_steps:
            problems.append(f"optimizer.warmup_steps is {self.optimizer.warmup_steps}; allowed: less than max_steps ({self.max_steps}).")
        if problems:
            raise ValueError("\n  ".join(problems))
        return self


class AdapterChoice(Settings):
    """One LoRA of a stack: by file on this machine, and by hash wherever the recipe travels."""

    file: str = setting("", "File", "The LoRA file.")
    name: str = setting("", "Name", "As in <lora:name:weight>.")
    sha256: str = setting("", "Hash", "sha256 of the tensors, as sshs_model_hash; found by it when the file has moved.", pattern=r"^([0-9a-f]{64})?$")
    weight: float = setting(1.0, "Weight", "Factor of this LoRA; 0 is as if it were absent.", ge=-2, le=2)


class StackConfig(Settings):
    """One picture: a base, any number of LoRAs with a weight each, a prompt, a seed."""

    version: Literal[1] = 1
    family: str = setting("sd", "Family", "Architecture of the base model.")
    base: str = setting("imprimatura", "Base", "imprimatura, a diffusers folder, or the hub id of a model already downloaded.", min_length=1)
    adapters: tuple[AdapterChoice, ...] = setting((), "Adapters", "LoRAs and their weights; the order does not matter.", max_length=32)
    prompt: str = setting("", "Prompt", "What to draw.", max_length=8000)
    negative_prompt: str = setting("", "Negative prompt", "What to keep out.", max_length=8000)
    seed: int = setting(1, "Seed", "The same seed and settings give the same picture.", ge=0, le=2**32 - 1)
    steps: int = setting(25, "Steps", "Sampling steps; 20-30.", ge=1, le=500)
    guidance_scale: float = setting(3.0, "Guidance", "How closely the picture follows the prompt; 1 is off.", ge=1, le=30)
    guidance_rescale: float = setting(0.7, "Guidance rescale", "Tames the contrast of guidance for zero-terminal-SNR bases.", ge=0, le=1)
    width_px: int = setting(128, "Width", "In pixels.", ge=8, le=4096, multiple_of=8)
    height_px: int = setting(128, "Height", "In pixels.", ge=8, le=4096, multiple_of=8)

    @field_validator("family")
    @classmethod
    def _known_family(cls, value: str) -> str:
        return TrainConfig._known_family(value)


AnyConfig = TypeVar("AnyConfig", bound=Settings)


def parse(model: type[AnyConfig], values: dict[str, Any], where: str) -> AnyConfig:
    """The config of plain values. Raises: ConfigError with every problem, each naming its field."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise explain(error, model, where) from None


def digest(config: Settings) -> str:
    """sha256 of the settings as canonical JSON: equal settings, equal digest."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def recipe(config: TrainConfig) -> dict[str, Any]:
    """The settings as they travel in a file: folders by their last name only, since paths are nobody else's business."""
    values = config.model_dump(mode="json")
    for key in ("folder", "heldout"):
        values["data"][key] = Path(values["data"][key]).name
    if values["base"] not in ("", "imprimatura") and Path(values["base"]).is_dir():
        values["base"] = Path(values["base"]).name
    return values
