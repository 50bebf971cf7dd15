"""Small folders of pictures to scan: their settings, a picture with its caption, and an item of a scan."""

from pathlib import Path

from PIL import Image

from trainer import data, files
from trainer.config import TrainConfig


def config(folder: Path | str, captions: dict[str, object] | None = None, **values: object) -> TrainConfig:
    return TrainConfig(
        family="sd",
        base="imprimatura",
        adapter={"method": "lora"},
        data={"folder": str(folder), **values},
        captions=captions or {},
    )


def picture(path: Path, size: tuple[int, int] = (40, 30), caption: str | None = "a thing", **save) -> Path:
    Image.new("RGB", size, (200, 30, 30)).save(path, **save)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


def item(path: Path, **values: object) -> data.Item:
    width, height = data.open_image(path).size
    return data.Item(path, ("a thing",), files.sha256(path), width, height, **values)
