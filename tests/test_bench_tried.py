"""The measure behind Imprimatura's style preset: an outline is seen where there is one."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw

from trainer import presets
from trainer.bench import tried


def disc(fill: str, line: str | None, width: int = 4) -> Image.Image:
    picture = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(picture).ellipse((20, 20, 108, 108), fill=fill, outline=line, width=width)
    return picture


@pytest.mark.parametrize(
    ("picture", "low", "high"),
    [
        (disc("orange", "black"), 0.95, 1),
        (disc("orange", None), 0, 0.05),
        (disc("black", None), 0, 0.05),  # dark all through is no line
        (disc("#ffd0d0", "#404040", 2), 0.95, 1),
        (Image.new("RGB", (128, 128), "white"), 0, 0),
    ],
)
def test_a_dark_line_round_something_light_is_an_outline(picture: Image.Image, low: float, high: float) -> None:
    assert low <= tried.outline(picture) <= high


def test_every_variant_is_a_preset_that_can_be_trained() -> None:
    for settings in tried.VARIANTS.values():
        presets.load("imprimatura-style", presets.parse_overrides(settings))
