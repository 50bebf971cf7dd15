"""`velatura bench presets`: what was tried for the style preset of Imprimatura, by what is measured and by what is seen.

Each variant is the preset that ships with some settings changed, trained on `outline-style/train`. Held-out loss says how well it
predicts drawings of the style; it doesn't say whether the style is seen. So things that are in neither set are drawn, and their edges are looked at:
`outline` is the share of a figure's edge with something dark along it and something light behind that. Real drawings of the style have nearly 1; what
the base's autoencoder leaves of them is the first line of the table, and all that can be asked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.bench.methods import EXAMPLES
from trainer.events import Finished, Step, Validated

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from trainer.render.engine import Engine

THINGS = ("a red apple", "an owl", "a crab", "a hamburger", "a sunflower", "a castle", "a fox", "a house", "a rocket", "a butterfly")
SEEDS = (4, 7)
_ALL = ["optimizer.block_rates=[]"]
VARIANTS: dict[str, list[str]] = {
    "as it ships": [],
    "rate 1e-3": ["learning_rate=1e-3"],
    "rate 2e-3, 150 steps": ["learning_rate=2e-3", "max_steps=150"],
    "rank 32, rate 1e-3, 150 steps": ["adapter.rank=32", "adapter.alpha=32", "learning_rate=1e-3", "max_steps=150"],
    "every block, rate 5e-4": [*_ALL, "learning_rate=5e-4"],
    "every block, rate 1e-3, no mirroring, 150 steps": [*_ALL, "learning_rate=1e-3", "data.flip=false", "max_steps=150"],
    "only the finest block": ["optimizer.block_rates=['down_blocks=0', 'mid_block=0', 'up_blocks.0=0']"],
    "little noise most": ["objective.timesteps=logit-normal", "objective.timesteps_mean=-0.8"],
    "attention, every block, rank 8, no mirroring, 150 steps (first edition)": [
        *_ALL, "adapter.targets=attention", "adapter.rank=8", "adapter.alpha=8", "learning_rate=1e-3", "data.flip=false", "max_steps=150",
    ],
}  # fmt: skip
_FIGURE, _DARK, _LIGHT = 0.18, 0.42, 0.5  # distance from white of what is figure; luminance below and above
_LINE_PX, _BEHIND_PX = 4, 9


@dataclass(frozen=True)
class Tried:
    """One variant's run and pictures."""

    name: str
    seconds_per_step: float
    gain: float  # held-out, at the last step
    outlines: tuple[float, ...]  # by weight
    pictures: list[list[Image]] = field(default_factory=list, repr=False)  # by weight, of the first seed


def run(names: list[str], weights: tuple[float, ...]) -> Iterator[Tried]:
    """The real drawings after the autoencoder, the base alone, then each variant drawn at each weight."""
    from trainer.render.engine import Engine

    engine = Engine("imprimatura")
    yield Tried("real drawings, after the autoencoder", 0.0, 0.0, (_through_autoencoder(engine),) * len(weights))
    shares, pictures = _draw(engine, "", 1.0)
    yield Tried("the base", 0.0, 0.0, (shares,) * len(weights), [pictures] * len(weights))
    for name in names:
        with tempfile.TemporaryDirectory(prefix="velatura-bench-") as scratch:
            yield _try(engine, name, weights, Path(scratch))


def _try(engine: Engine, name: str, weights: tuple[float, ...], scratch: Path) -> Tried:
    from trainer import session

    folders = (str(EXAMPLES / "train"), str(EXAMPLES / "heldout"))
    config = session.preset_config("imprimatura-style", *folders, ["preview_every_steps=0", *VARIANTS[name]])
    config = config.model_copy(update={"validate_every_steps": config.max_steps, "checkpoint_every_steps": config.max_steps})
    made, stream = session.start(config, scratch, "x", None)
    events = list(stream)
    assert isinstance(events[-1], Finished)
    seconds = sorted(event.seconds for event in events if isinstance(event, Step))
    gain = next(event.gain for event in reversed(events) if isinstance(event, Validated))
    drawn = [_draw(engine, str(made.lora_file), weight) for weight in weights]
    return Tried(name, seconds[len(seconds) // 2], gain, tuple(share for share, _ in drawn), [pictures for _, pictures in drawn])


def _draw(engine: Engine, file: str, weight: float) -> tuple[float, list[Image]]:
    """The mean outline of all things and seeds, and the first seed's pictures."""
    from trainer.config import AdapterChoice, StackConfig

    adapters = (AdapterChoice(file=file, weight=weight),) if file else ()
    stacks = [StackConfig(prompt=f"{thing}, outline style", seed=seed, adapters=adapters) for seed in SEEDS for thing in THINGS]
    pictures = [picture.image.convert("RGB") for picture in engine.render_all(stacks)]
    return sum(map(outline, pictures)) / len(pictures), pictures[: len(THINGS)]


def _through_autoencoder(engine: Engine) -> float:
    """The mean outline of real drawings of the style as the base's autoencoder gives them back."""
    import torch

    from trainer.data import open_image

    shares = []
    for path in sorted((EXAMPLES / "heldout").glob("*.png")):
        pixels = _pixels(open_image(path))[None] * 2 - 1
        with torch.no_grad():
            back = engine.pipe.vae.decode(engine.pipe.vae.encode(pixels).latents).sample[0]
        shares.append(_outline(((back + 1) / 2).clamp(0, 1)))
    return sum(shares) / len(shares)


def _pixels(picture: Image) -> Tensor:
    """The picture (3, H, W) in [0, 1]."""
    import numpy
    import torch

    return torch.from_numpy(numpy.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255


def outline(picture: Image) -> float:
    """The share of a figure's edge on white that has a dark line: something dark within 4 px, something light within 9 px of that edge."""
    return _outline(_pixels(picture))


def _outline(pixels: Tensor) -> float:
    import torch

    figure = (1 - pixels).amax(0) > _FIGURE
    luminance = (pixels * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    edge = figure & _near(~figure, 1)
    if not edge.any():
        return 0.0
    lined = _near(figure & (luminance < _DARK), _LINE_PX) & _near(figure & (luminance > _LIGHT), _BEHIND_PX)
    return float(lined[edge].float().mean())


def _near(mask: Tensor, px: int) -> Tensor:
    """Where the mask is within so many pixels, in each direction."""
    import torch

    return torch.nn.functional.max_pool2d(mask[None, None].float(), 2 * px + 1, 1, px)[0, 0] > 0


def describe(rows: list[Tried], weights: tuple[float, ...]) -> str:
    """The table, in Markdown."""
    heads = "".join(f" outline at weight {weight:g} |" for weight in weights)
    lines = [f"| tried | s/step | held-out gain |{heads}", "|---|---|---|" + "---|" * len(weights)]
    for row in rows:
        trained = f"{row.seconds_per_step:.2f} | {row.gain * 100:.1f} %" if row.seconds_per_step else " | "
        lines.append(f"| {row.name} | {trained} |" + "".join(f" {share:.2f} |" for share in row.outlines))
    return "\n".join(lines)


def sheet(rows: list[Tried], weights: tuple[float, ...]) -> Image:
    """What each variant draws, a row for each weight."""
    from trainer.render.grid import contact_sheet

    pictured = [(f"{row.name}, {weight:g}", pictures) for row in rows for weight, pictures in zip(weights, row.pictures, strict=False)]
    return contact_sheet([pictures for _, pictures in pictured], [label for label, _ in pictured], list(THINGS), "Imprimatura's style preset: what was tried")
