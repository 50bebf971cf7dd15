"""The learning rate as a function of the step alone: nothing to save, and a resumed run follows the same curve."""

from __future__ import annotations

import math

from trainer import choices
from trainer.config import OptimizerConfig, starting


def factor(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """Share (0..1) of the learning rate at `step` (0-based): warm-up from 1/warmup_steps, then the schedule down to 0.

    constant and schedule-free: 1. linear, cosine, restarts (cosine from 1 to 0, `cycles` times over): as transformers'.
    rex: (1 - z) / (1 - z / 2) of the done share z (arXiv 2107.04197), which stays high for longer.
    Until the step at which a run was extended, its steps are those it was to have then.
    """
    max_steps = starting.length_at(config.extended, step, max_steps)
    # From step 0 on something is learned; transformers' warm-up begins with a step at rate 0.
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
        raise choices.unknown(config, "schedule", "optimizer.")
    return 0.5 * (1.0 + math.cos(math.pi * done))


def is_schedule_free(config: OptimizerConfig) -> bool:
    """Whether the optimizer averages in place of a falling rate (arXiv 2405.15682).

    The rate is then constant after warm-up, whatever `schedule` says. cosine is the default of `schedule`, and settings
    travel with every value written out; so cosine is taken as not chosen. The others are refused by `optim.check`.
    """
    return config.name == "schedule-free" or config.name == "other" and config.other.startswith("ScheduleFree")


def of_extended(config: OptimizerConfig, step: int, max_steps: int) -> str:
    """What becomes of the learning rate of a run that is extended to `max_steps` at `step`, in a sentence."""
    if config.schedule == "constant" or is_schedule_free(config):
        return "The learning rate is constant, so this is what a run of that length from the beginning gives."
    before, after = (factor(config, place, max_steps) for place in (step - 1, step))
    return (
        f"The {config.schedule} schedule depends on the number of steps: the learning rate, {before:.0%} of the set "
        f"one at step {step}, goes on from {after:.0%} and falls to 0 over the new steps; a run of that length "
        f"from the beginning gives another LoRA."
    )
