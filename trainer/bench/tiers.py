"""`velatura bench tiers`: which memory settings a run takes on GPUs of 8 to 40 GB, by arithmetic and not by a GPU.

Rungs are the ladder's, in its order, from the default settings; the first that fits is taken, as a rehearsal does. What
fits is what loading the base and a step take (`estimating`), with something to spare. A rehearsal on the GPU itself
measures instead, and may keep 8 bits where it finds them faster than blocks that are fetched.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from trainer import session
from trainer.bench import by_shape, full_size, training
from trainer.bench.estimating import Step
from trainer.config import MemoryConfig, TrainConfig
from trainer.memory import arranging, fetching, ladder, quantising

TIERS_GIB = (8, 12, 16, 24, 40)
MULTIPLE_PX = 64  # of the small picture whose latents are scaled
_GIB = 1 << 30
# A run may hold so much of a GPU: the rest is its context and what the allocator can't use again.
_SHARE, _CONTEXT_GIB = 0.95, 0.6
# Parameters of the published text encoders and autoencoders, in millions; the bench's own are small.
_ENCODERS = {
    "sdxl": 123 + 695 + 84,  # CLIP L, OpenCLIP bigG
    "sd35-medium": 124 + 695 + 4762 + 84,  # and T5 XXL
    "flux": 123 + 4762 + 84,
    "flux2-klein": 4022 + 84,  # Qwen3 4B
    "zimage": 4022 + 84,
    "qwen": 8292 + 127,  # Qwen2.5-VL 7B
}


@dataclass(frozen=True)
class Row:
    """What a run of a model takes on a GPU of so many GiB; all figures are estimates."""

    model: str
    tier_gib: int
    settings: tuple[str, ...]  # changed, as `--set` takes them
    weights_gib: float  # of the base on the GPU in a step
    step_gib: float  # the most a step holds, weights included
    loading_gib: float  # to load the base with its encoders
    fits: bool


class Model:
    """What one model takes under memory settings; each kind of step is computed once."""

    def __init__(self, name: str, config: TrainConfig, depth: int | None, folder: Path) -> None:
        self.name, self.step = name, Step(name, config, depth, folder)
        shapes = by_shape.all_bases().get(name)
        self.encoders_bytes = (shapes.encoders if shapes else _ENCODERS[name]) * 2_000_000
        self.batch_size = config.batch_size
        self._activations: dict[tuple[bool, bool], int] = {}

    def weights_bytes(self, settings: MemoryConfig) -> int:
        """Of the denoiser on the GPU during a step."""
        narrow = {id(layer): layer for _, layer in quantising._layers(self.step.denoiser)}
        fetched = {id(layer): layer for layer in arranging._in_blocks(self.step.denoiser)}
        away = fetched if settings.offload == "blocks" else {}
        layers = narrow | fetched
        # Everything else is in the base's own dtype.
        total = 2 * (self.step.num_weights - sum(layer.weight.numel() for layer in layers.values()))
        sizes = {
            key: _layer_bytes(layer, settings.quantise if key in narrow else "none") for key, layer in layers.items()
        }
        total += sum(size for key, size in sizes.items() if key not in away)
        if away:
            total += fetching.ring_bytes([sizes[key] for key in away])
        return total

    def step_bytes(self, settings: MemoryConfig) -> int:
        """The most a step holds."""
        kind = (settings.gradient_checkpointing, settings.offload_activations)
        if kind not in self._activations:
            self._activations[kind] = self.step.activation_bytes(*kind)  # of one picture
        activations = self._activations[kind] * (settings.micro_batch or self.batch_size)
        total = self.weights_bytes(settings) + self.step.adapter_bytes() + activations
        if settings.quantise != "none":  # a layer's weight as it is computed with
            total += max(2 * layer.weight.numel() for _, layer in quantising._layers(self.step.denoiser))
        return total + (self.encoders_bytes if settings.offload == "none" else 0)

    def loading_bytes(self, settings: MemoryConfig) -> int:
        """Of the base as it is loaded: whole and unquantised, or nearly nothing where blocks wait on the CPU."""
        return 0 if settings.offload == "blocks" else 2 * self.step.num_weights + self.encoders_bytes

    def most_gib(self, settings: MemoryConfig) -> float:
        """The most that a run takes, of loading and of a step."""
        return max(self.step_bytes(settings), self.loading_bytes(settings)) / _GIB


def _layer_bytes(layer: nn.Linear | nn.Conv2d, kind: str) -> int:
    """A layer's weight as it is kept: 8 bits with a scale a row, or NF4 with its scales in 8 bits."""
    count = layer.weight.numel()
    if kind == "none":
        return 2 * count
    if kind == "nf4":
        return count // 2 + count // 64 + 4 * (count // (64 * 256))
    return count + 4 * len(layer.weight)


def fits(gib: float, tier_gib: int) -> bool:
    """Whether so much fits a GPU of so many GiB."""
    return gib <= _SHARE * tier_gib - _CONTEXT_GIB


def run(models: list[str], depth: int | None, size_px: int) -> Iterator[Row]:
    """The table, row by row: batch 1, rank 16 on attention, all other settings as they are by default."""
    for name in models:
        with tempfile.TemporaryDirectory(prefix="velatura-bench-") as scratch:
            config = _config(name, size_px)
            model = Model(name, config, depth, Path(scratch) / "base")
        for tier_gib in TIERS_GIB:
            yield _row(model, config, tier_gib)


def _config(name: str, size_px: int) -> TrainConfig:
    family = full_size.FAMILIES[name]
    overrides = [f"family={family}", f"resolution_px={size_px}", "batch_size=1", "adapter.rank=16", "adapter.alpha=16"]
    return session.preset_config(training.PLAIN, ".", None, overrides)


def _row(model: Model, config: TrainConfig, tier_gib: int) -> Row:
    """What a run takes on a GPU of so many GiB."""
    settings, is_enough = settings_for([model], config, tier_gib)
    changed = tuple(
        f"memory.{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in unlike_default(settings).items()
    )
    weights_gib, step_gib, loading_gib = (
        round(size / _GIB, 2)
        for size in (model.weights_bytes(settings), model.step_bytes(settings), model.loading_bytes(settings))
    )
    return Row(model.name, tier_gib, changed, weights_gib, step_gib, loading_gib, is_enough)


def settings_for(models: list[Model], config: TrainConfig, tier_gib: int) -> tuple[MemoryConfig, bool]:
    """The first rung on which all of them fit a GPU of so many GiB, or the last there is, and whether they fit."""
    settings = config.memory
    while not fits(max(model.most_gib(settings) for model in models), tier_gib):
        rung = ladder.next_rung(settings, config, 1, "cuda")
        if rung is None:
            return settings, False
        settings = rung[0]
    return settings, True


def unlike_default(settings: MemoryConfig) -> dict[str, Any]:
    """The memory settings that differ from the defaults."""
    defaults = MemoryConfig()
    return {name: value for name, value in settings.model_dump().items() if value != getattr(defaults, name)}


def describe(rows: list[Row]) -> str:
    """The table in Markdown."""
    head = [
        "Estimated, not measured on a GPU: batch 1, rank 16 on attention, blocks not compiled.",
        "",
        "| base | GPU | settings | weights GiB | step GiB | loading GiB | fits |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(line, rows)])


def line(row: Row) -> str:
    """A row in Markdown."""
    figures = f"{row.weights_gib:.1f} | {row.step_gib:.1f} | {row.loading_gib:.1f}"
    settings = " ".join(row.settings) or "as they are"
    return f"| {row.model} | {row.tier_gib} GB | {settings} | {figures} | {'yes' if row.fits else 'no'} |"


def to_json(rows: list[Row]) -> str:
    return json.dumps({"measured": False, "rows": [asdict(row) for row in rows]}, indent=2)
