"""What the model saw at a step: the exact strings and pictures, asked of the same functions that the run asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import bases, checkpoint, data, families
from trainer.data import folds
from trainer.encoded_data import EncodedData
from trainer.errors import ConfigError, RunError
from trainer.runs import Run

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """One picture of a step as it was trained on."""

    picture: str  # path below the dataset folder
    caption: str  # the very string; "" if it was dropped
    dropped: bool  # trained without caption
    width_px: int
    height_px: int
    cut: int  # 0: the centre
    mirrored: bool
    weight: float
    regular: bool  # a regularisation picture


def at(run: Run, step: int, out: Path | None = None) -> list[Seen]:
    """The pictures of `step` (1-based) in their order; written as PNG into `out` as the autoencoder got them.

    Raises: ConfigError if there is no such step, RunError if pictures or captions are not those of the run any more.
    """
    config = run.config()
    if not 1 <= step <= config.max_steps:
        raise ConfigError(f"--step is {step}; allowed for run {run.name}: 1 to {config.max_steps}.")
    family = families.registry()[config.family]
    dataset, _ = folds.leave_out(data.scan(config), config)
    saved, _ = checkpoint.load_latest(run.checkpoints)
    if saved and saved.state["dataset"] != dataset.digest:
        raise RunError(f"the pictures or captions have changed since run {run.name} was trained, so what it saw can't be told; put them back.")
    encoded = EncodedData(config, family, None, bases.resolve(config.base, family), run.cache)
    encoded.lay_out(dataset, None)
    found = []
    for _, samples in encoded.order.step(step - 1):
        for sample in samples:
            item = dataset.items[sample.picture]
            name = item.path.relative_to(dataset.folder).as_posix() if item.path.is_relative_to(dataset.folder) else item.path.as_posix()
            dropped = sample.wording is None
            found.append(Seen(name, encoded.caption(sample), dropped, *sample.bucket, sample.cut, sample.mirrored, item.weight, item.regular))
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                pixels = data.load_pixels(item, sample.bucket, sample.cut, sample.mirrored, config.data.background)
                _save(pixels, out / f"step-{step:06d}-{len(found):02d}-{item.path.stem}.png")
    return found


def _save(pixels: Tensor, path: Path) -> None:
    from PIL import Image

    raw = ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous()
    Image.frombytes("RGB", (raw.shape[1], raw.shape[0]), raw.numpy().tobytes()).save(path)


def describe(seen: list[Seen]) -> str:
    """The list for people."""
    lines = []
    for one in seen:
        shape = f"{one.width_px}x{one.height_px}" + (f", cut {one.cut}" if one.cut else "") + (", mirrored" if one.mirrored else "")
        kind = " (regularisation)" if one.regular else ""
        lines.append(f"{one.picture}{kind}  [{shape}]\n    {'(no caption)' if one.dropped else one.caption}")
    return "\n".join(lines)
