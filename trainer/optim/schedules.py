"""The learning rate as a function of the step alone: nothing to save, and a resumed run follows the same curve."""

from __future__ import annotations

import math

from trainer.config import OptimizerConfig
from trainer.schema import unknown_choice


def factor(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """Share (0..1) of the learning rate at `step` (0-based): warm-up from 1/warmup_steps, then the schedule down to 0.

    constant and schedule-free: 1. linear, cosine, restarts (cosine from 1 to 0, `cycles` times over): as transformers'.
    rex: (1 - z) / (1 - z / 2) of the done share z (arXiv 2107.04197), which stays high for longer.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    steps, all_steps = step - config.warmup_steps, max(1, max_steps - config.warmup_steps)
    done = min(1.0, steps / all_steps)
    if config.schedule == "constant" or is_schedule_free(config):
        return 1.0
    if config.schedule == "linear":
        return 1.0 - done
    if config.schedule == "rex":
        return (1.0 - done) / (1.0 - done / 2)
    if config.schedule == "restarts" and done < 1:  # in integers, so that a cycle starts at its very step
        done = steps * config.cycles % all_steps / all_steps
    if config.schedule not in ("cosine", "restarts"):
        raise unknown_choice(config, "schedule", "optimizer")
    return 0.5 * (1.0 + math.cos(math.pi * done))


def is_schedule_free(config: OptimizerConfig) -> bool:
    """Whether the optimizer averages in place of a falling rate (arXiv 2405.15682): constant after warm-up, whatever `schedule` says.

    cosine is the default of `schedule`, and settings travel with every value written out; so cosine is taken as not chosen.
    The others are refused by `optim.check`.
    """
    return config.name == "schedule-free" or config.name == "other" and config.other.startswith("ScheduleFree")
