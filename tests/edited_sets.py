"""A small dataset whose pictures are edited, and what is looked at then."""

from __future__ import annotations

from pathlib import Path

import numpy
from PIL import Image

from trainer.config import CaptionsConfig, DataConfig
from trainer.data import edit_log, opening, scanning

NOISE = numpy.random.default_rng(1).integers(0, 255, (60, 80, 3), dtype=numpy.uint8)


def smooth(width: int = 80, height: int = 60) -> Image.Image:
    """A picture that no compression hurts much, and that no mirror leaves as it is."""
    across = numpy.linspace(20, 220, width)[None, :].repeat(height, 0)
    down = numpy.linspace(0, 200, height)[:, None].repeat(width, 1)
    return Image.fromarray(numpy.stack([across, down, 255 - across], -1).astype(numpy.uint8))


def made(parent: Path) -> Path:
    """A set of two pictures with captions, the first with a mask."""
    made = parent / "set"
    made.mkdir()
    for name in ("a", "b"):
        Image.fromarray(NOISE).save(made / f"{name}.png")
        (made / f"{name}.txt").write_text(f"caption of {name}\n")
    mask = Image.new("L", (80, 60), 0)
    mask.paste(255, (0, 0, 30, 60))
    mask.save(made / "a.mask.png")
    return made


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the set but our own."""
    paths = [path for path in folder.rglob("*") if path.is_file() and edit_log.FOLDER not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def trained(folder: Path) -> tuple[numpy.ndarray, numpy.ndarray]:
    """The pixels and the mask of `a` as training loads them."""
    data = DataConfig(folder=str(folder), mask="file")
    items = scanning.scan_folder(folder, "data.folder", data, CaptionsConfig(), "").items
    (item,) = [item for item in items if item.path.stem == "a"]
    size = (item.width_px, item.height_px)
    return (
        scanning.load_pixels(item, size, 0, False, opening.WHITE).numpy(),
        scanning.load_mask(item, size, 0, False).numpy(),
    )
