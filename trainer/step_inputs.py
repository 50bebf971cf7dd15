"""What the model saw at a step: the exact strings and pictures, made by the same functions that the run used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from trainer import bases, checkpoint, data, families
from trainer.data import cross_validation
from trainer.data.order import Sample
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
    # Is there such a step, and are pictures and captions still those of the run?
    config = run.config()
    if not 1 <= step <= config.max_steps:
        raise ConfigError(f"--step is {step}; allowed for run {run.name}: 1 to {config.max_steps}.")
    family = families.registry()[config.family]
    dataset, _ = cross_validation.leave_out(data.scan(config), config)
    saved, _ = checkpoint.load_latest(run.checkpoints)
    if saved and saved.state["dataset"] != dataset.digest:
        raise RunError(
            f"the pictures or captions have changed since run {run.name} was trained, so what it saw can't be told; "
            f"put them back."
        )

    # The plan of the run, without its model: nothing is encoded.
    encoded = EncodedData(config, family, None, bases.resolve(config.base, family), run.cache)
    encoded.lay_out(dataset, None)
    samples = [sample for _, batch in encoded.order.step(step - 1) for sample in batch]
    if out is not None:
        for number, sample in enumerate(samples, 1):
            out.mkdir(parents=True, exist_ok=True)
            item = dataset.items[sample.picture]
            pixels = data.load_pixels(item, sample.bucket, sample.cut, sample.mirrored, config.data.background)
            _save(pixels, out / f"step-{step:06d}-{number:02d}-{item.path.stem}.png")
    return [_seen(sample, encoded) for sample in samples]


def _seen(sample: Sample, encoded: EncodedData) -> Seen:
    """One picture of a step. Regularisation pictures lie elsewhere, and are named by their whole path."""
    item, folder = encoded.dataset.items[sample.picture], encoded.dataset.folder
    path = item.path.relative_to(folder) if item.path.is_relative_to(folder) else item.path
    return Seen(
        picture=path.as_posix(),
        caption=encoded.caption(sample),
        dropped=sample.wording is None,
        width_px=sample.bucket[0],
        height_px=sample.bucket[1],
        cut=sample.cut,
        mirrored=sample.mirrored,
        weight=item.weight,
        regular=item.regular,
    )


def _save(pixels: Tensor, path: Path) -> None:
    """Write pixels (3, H, W) in [-1, 1] as a picture."""
    raw = ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous()  # (H, W, 3)
    Image.frombytes("RGB", (raw.shape[1], raw.shape[0]), raw.numpy().tobytes()).save(path)


# In words.


def describe(seen: list[Seen]) -> str:
    """The list for people."""
    return "\n".join(map(_describe, seen))


def _describe(picture: Seen) -> str:
    # What isn't said is the usual: the whole picture's centre, as it is.
    cut = f", cut {picture.cut}" if picture.cut else ""
    shape = f"{picture.width_px}x{picture.height_px}{cut}{', mirrored' if picture.mirrored else ''}"
    kind = " (regularisation)" if picture.regular else ""
    return f"{picture.picture}{kind}  [{shape}]\n    {'(no caption)' if picture.dropped else picture.caption}"
