"""How long a foreign recipe trains: pictures x repeats x epochs over batch and accumulation, or its own steps."""

from __future__ import annotations

import math

from trainer.other_trainers.reading import Reading

ASSUMED_PICTURES = 20
MAX_STEPS = 1_000_000


def put_batch(reading: Reading, batch_key: str, accumulation_key: str, default: int = 1) -> int:
    """Set the batch size and the accumulation; pictures a step."""
    batch, accumulation = max(1, reading.whole(batch_key, default)), max(1, reading.whole(accumulation_key, 1))
    reading.put("batch_size", batch, batch_key)
    reading.put("accumulation", accumulation, accumulation_key)
    return batch * accumulation


def per_epoch(
    reading: Reading, repeats: int, batch: int, accumulation: int, drops_last: bool = False
) -> tuple[int, str]:
    """Steps of an epoch, and in words how they were found.

    A tool that drops a last batch that isn't full takes fewer. Where the number of pictures isn't known, 20 are taken.
    """
    pictures = reading.pictures or ASSUMED_PICTURES
    shown = pictures * max(1, repeats)
    batches = max(1, shown // batch) if drops_last else math.ceil(shown / batch)
    steps = max(1, math.ceil(batches / accumulation))
    source = "" if reading.pictures else ", as the recipe doesn't say how many; give --pictures N"
    return steps, f"{pictures} pictures{source}, {max(1, repeats)} repeats: {steps} steps an epoch"


def put_steps(reading: Reading, steps: int, how: str, *keys: str) -> None:
    """Set `max_steps`, held within what is allowed, and the paces that go by it."""
    held = min(max(1, steps), MAX_STEPS)
    reading.put("max_steps", held, *keys, why=how)
    if how:
        reading.notes.append(f"{held} steps: {how}")


def put_every(reading: Reading, setting: str, steps: int, *keys: str) -> None:
    """Set how often something happens, in steps; nothing where the recipe says 0."""
    if steps > 0:
        reading.put(setting, min(steps, MAX_STEPS), *keys)
