"""Settings of what a run begins with, and of the lengths that it had before it was extended."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainer.schema import SET, Settings, setting

_LINE = re.compile(r"([0-9]{1,7})=([0-9]{1,7})")


class StartConfig(Settings):
    """What training begins with in place of an adapter that does nothing yet."""

    source: str = setting(
        "",
        "Go on from",
        "A LoRA, or a run's checkpoint, whose weights training begins with; rank, method and targets must fit it.",
        max_length=4096,
        path="start",
    )
    optimizer: bool = setting(
        False,
        "Optimizer state",
        "Of a checkpoint: also go on at its step with its optimizer; with nothing else changed, the run's own next "
        "steps.",
        only_with={"start.source": SET},
    )


def lengths(lines: tuple[str, ...]) -> list[tuple[int, int]]:
    """(step, steps) of each line STEP=STEPS. Raises: ValueError in words."""
    pairs: list[tuple[int, int]] = []
    for line in lines:
        match = _LINE.fullmatch(line.replace(" ", ""))
        pair = (int(match[1]), int(match[2])) if match else (0, 0)
        # Both rise from line to line, and no step lies beyond its run's length.
        if 0 < pair[0] <= pair[1] and (not pairs or (pairs[-1][0] < pair[0] and pairs[-1][1] < pair[1])):
            pairs.append(pair)
            continue
        raise ValueError(
            f"optimizer.extended has {line[:80]!r}; allowed: STEP=STEPS, each more than in the line before, the step "
            f"at most the steps, such as 100=100."
        )
    return pairs


def problems(lines: tuple[str, ...], max_steps: int) -> Iterator[str]:
    """A sentence for what is wrong with `optimizer.extended`."""
    try:
        pairs = lengths(lines)
    except ValueError as error:
        yield str(error)
        return
    if pairs and pairs[-1][1] >= max_steps:
        yield (
            f"optimizer.extended ends with {pairs[-1][1]} steps; allowed: fewer than max_steps ({max_steps}), which is "
            f"what the run was extended to."
        )


def length_at(lines: tuple[str, ...], step: int, max_steps: int) -> int:
    """How many steps the run was to have when it took this step (0-based)."""
    return next((steps for until, steps in lengths(lines) if step < until), max_steps)
