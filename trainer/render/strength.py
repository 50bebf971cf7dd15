"""How strong an adapter is where and when: factors by block, and a schedule over the denoising.

Blocks of a UNet are `IN0`, `IN1` ... (its down blocks), `MID` and `OUT0` ... (its up blocks); `IN` and `OUT` are all of
them. Any other pattern is a piece of a layer's path, such as `attn2` or `transformer_blocks.7.`. A curve goes along the
depth, 0 at the input and 1 at the output. Of several lines that fit a layer the last one counts.
"""

from __future__ import annotations

import bisect
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from trainer.config import AdapterChoice
from trainer.errors import ConfigError

CURVES: dict[str, Callable[[float], float]] = {
    "flat": lambda depth: 1.0,
    "falling": lambda depth: 1 - depth,
    "rising": lambda depth: depth,
    "middle": lambda depth: math.sin(math.pi * depth),
    "ends": lambda depth: 1 - math.sin(math.pi * depth),
}
_LARGEST = 4.0  # of a factor
_MOST_POINTS = 64
_NUMBER = r"-?\d{0,4}\.?\d{1,6}"
_KINDS = "'linear 1 0', 'steps 0:1 0.5:0' or 'points 0:0 0.3:1 1:0.5'"


def block_of(path: str) -> str:
    """The block that a layer of `component.module.path` lies in.

    It is IN0, MID or OUT1 in a UNet, elsewhere the path of the numbered block, or the component where there is none.
    """
    component, _, path_inside = path.partition(".")
    if match := re.match(r"(down|up)_blocks\.(\d+)\.", path_inside):
        return f"{'IN' if match[1] == 'down' else 'OUT'}{match[2]}"
    if path_inside.startswith("mid_block."):
        return "MID"
    match = re.match(r"[\w.]*?(?:blocks|layers)\.\d+(?=\.)", path_inside)
    return match[0] if match else component


def depths(paths: Iterable[str]) -> dict[str, float]:
    """Where each layer of a denoiser lies between its input (0) and its output (1), by block."""
    blocks = dict.fromkeys(sorted((block_of(path) for path in paths), key=order))
    last = max(1, len(blocks) - 1)
    place = {block: number / last for number, block in enumerate(blocks)}
    return {path: place[block_of(path)] for path in paths}


def order(block: str) -> tuple[int, str, int]:
    """A key that sorts blocks from the input to the output."""
    name = block.rstrip("0123456789")
    number = int(block[len(name) :] or 0)
    return ({"IN": 0, "MID": 2, "OUT": 3}.get(name, 1), name, number)


def block_factors(adapter: AdapterChoice, paths: Iterable[str]) -> dict[str, float]:
    """The factor of each of the denoiser's layers.

    Raises: ConfigError for a line that can't be read or fits no layer.
    """
    layers = list(paths)
    factors, depth = dict.fromkeys(layers, 1.0), depths(layers) if adapter.blocks else {}
    # Line by line, so that the last that fits counts.
    for line in adapter.blocks:
        pattern, equals, value = (part.strip() for part in line.rpartition("="))
        if equals and pattern == "curve" and value in CURVES:
            factors = {path: CURVES[value](depth[path]) for path in layers}
            continue
        if not equals or not pattern or not re.fullmatch(_NUMBER, value) or abs(float(value)) > _LARGEST:
            raise ConfigError(
                f"blocks of {adapter.name or adapter.file} has {line[:80]!r}; allowed: PATTERN=FACTOR with a factor "
                f"from -{_LARGEST:g} to {_LARGEST:g}, "
                f"such as OUT=0.5 or attn2=0, or curve=NAME with {', '.join(CURVES)}."
            )
        # A line that fits no layer would do nothing.
        fitting = [path for path in layers if _fits(pattern, path)]
        if not fitting:
            blocks = ", ".join(sorted({block_of(path) for path in layers}, key=order))
            raise ConfigError(
                f"blocks of {adapter.name or adapter.file} has {line[:80]!r}, which fits no layer; there are "
                f"{blocks[:300]}, or a piece of a path."
            )
        factors |= dict.fromkeys(fitting, float(value))
    return factors


def _fits(pattern: str, path: str) -> bool:
    if re.fullmatch(r"IN\d*|OUT\d*|MID", pattern):
        block = block_of(path)
        return block == pattern or (pattern in ("IN", "OUT") and bool(re.fullmatch(rf"{pattern}\d+", block)))
    return pattern in path


@dataclass(frozen=True)
class Schedule:
    """A factor over progress, 0 at the first step and 1 at the last.

    Between points it goes in a straight line, or stays constant until the next.
    """

    points: tuple[tuple[float, float], ...]  # (progress, factor), progress rising
    linear: bool = True

    def at(self, progress: float) -> float:
        places = [place for place, _ in self.points]
        # A step's progress is a quotient: 3/6 must not fall short of a point at 0.5 by a rounding.
        after = bisect.bisect_right(places, progress + 1e-9)
        if after == 0:
            return self.points[0][1]
        place, value = self.points[after - 1]
        if not self.linear or after == len(self.points):
            return value
        next_place, next_value = self.points[after]
        return value + (next_value - value) * (progress - place) / (next_place - place)

    @property
    def constant(self) -> float | None:
        """The factor if it never changes."""
        values = {value for _, value in self.points}
        return values.pop() if len(values) == 1 else None


def schedule(adapter: AdapterChoice) -> Schedule:
    """The adapter's schedule. Raises: ConfigError."""
    text = adapter.schedule.strip()
    if not text:
        return Schedule(((0.0, 1.0),))
    kind, *parts = text.split()

    # A line from its start to its end, or the points as they are given.
    if kind == "linear" and len(parts) == 2 and all(re.fullmatch(_NUMBER, part) for part in parts):
        points = [(0.0, float(parts[0])), (1.0, float(parts[1]))]
    elif (
        kind in ("steps", "points")
        and 0 < len(parts) <= _MOST_POINTS
        and all(re.fullmatch(rf"{_NUMBER}:{_NUMBER}", part) for part in parts)
    ):
        points = [(float(place), float(value)) for place, _, value in (part.partition(":") for part in parts)]
    else:
        raise ConfigError(
            f"schedule of {adapter.name or adapter.file} is {text[:80]!r}; allowed: {_KINDS}, with up to "
            f"{_MOST_POINTS} points."
        )

    # Progress rises, from 0 to 1 at most, and factors are bounded.
    places = [place for place, _ in points]
    if (
        places != sorted(set(places))
        or places[0] < 0
        or places[-1] > 1
        or any(abs(value) > _LARGEST for _, value in points)
    ):
        raise ConfigError(
            f"schedule of {adapter.name or adapter.file} is {text[:80]!r}; allowed: progress rising from 0 to 1, "
            f"factors from -{_LARGEST:g} to {_LARGEST:g}."
        )
    return Schedule(tuple(points), kind != "steps")


def progress(step: int, num_steps: int) -> float:
    """Of step 0 to num_steps - 1: 0 at the first, 1 at the last."""
    return step / max(1, num_steps - 1)
