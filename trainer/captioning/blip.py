"""BLIP and GIT: they are shown a picture and say one sentence; nothing can be asked of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainer.captioning.contract import Describe, Kind
from trainer.captioning.opened_model import check_weights, opened
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image


def _check(folder: Path, instruction: str) -> None:
    if instruction:
        raise ConfigError(f"{folder.name} takes no instruction: it only says what it sees; leave the instruction out.")
    check_weights(folder)


def _open(folder: Path, instruction: str) -> Describe:
    model = opened(folder)

    def describe(picture: Image.Image) -> str:
        inputs = model.processor(images=[picture], return_tensors="pt")
        return model.text(model.generated(inputs)[0])

    return describe


KIND = Kind("BLIP or GIT", frozenset({"blip", "git"}), {}, _check, _open)
