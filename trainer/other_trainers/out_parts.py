"""What the writers of several trainers share: optimizers by their classes' names, rates of parts, targets."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from trainer.config import TrainConfig
from trainer.errors import ConfigError

OPTIMIZERS = {
    "adamw": "AdamW", "adamw8bit": "AdamW8bit", "adafactor": "Adafactor", "lion": "Lion", "prodigy": "Prodigy",
    "schedule-free": "AdamWScheduleFree",
}  # fmt: skip
TEXT_ENCODERS = {
    "sd": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2"), "sd3": ("text_encoder", "text_encoder_2"),
    "flux": ("text_encoder",),
}  # fmt: skip
# The line that freezes what a UNet's networks elsewhere leave out, by family.
FROZEN = {"sd": ("resnets.=0", "samplers.=0"), "sdxl": ("resnets.=0",)}


def family_of(config: TrainConfig, known: dict[str, str], tool: str) -> str:
    """What the tool calls the family. Raises: ConfigError if it doesn't train it."""
    if config.family not in known:
        raise ConfigError(f"{tool} trains no {config.family}; it trains {', '.join(known)}.")
    return known[config.family]


def text_rates(config: TrainConfig) -> dict[str, float]:
    """Learning rates of the text encoders that are trained, by component."""
    if not getattr(config.adapter, "text_encoder", False):
        return {}
    factors = dict.fromkeys(TEXT_ENCODERS.get(config.family, ()), 1.0)
    for line in config.optimizer.block_rates:
        # `text_encoder/=0.5` is the factor of that text encoder.
        part, _, factor = line.rpartition("=")
        if part.endswith("/") and part[:-1] in factors:
            factors[part[:-1]] = float(factor)
    return {part: config.learning_rate * factor for part, factor in factors.items()}


def other_rates(config: TrainConfig) -> tuple[str, ...]:
    """The block rates that are of no text encoder."""
    parts = tuple(f"{part}/=" for part in TEXT_ENCODERS.get(config.family, ()))
    return tuple(line for line in config.optimizer.block_rates if not line.startswith(parts))


def optimizer_arguments(config: TrainConfig, known: Collection[str]) -> dict[str, str]:
    """The optimizer's arguments as texts, weight decay first; that alone where it is none that the tool has.

    `known` are our names of those that it has: another's arguments stop a class that stands in for it.
    """
    arguments = {"weight_decay": f"{config.optimizer.weight_decay:g}"}
    is_there = config.optimizer.name in known or config.optimizer.name == "other" and config.optimizer.other in known
    for line in config.optimizer.options if is_there else ():
        key, _, value = line.partition("=")
        arguments[key.strip()] = value.strip().replace(" ", "")
    return arguments


def optimizer_values(config: TrainConfig, known: Collection[str]) -> dict[str, Any]:
    """The same as YAML and TOML have them: numbers, words, lists of numbers."""
    return {key: _literal(value) for key, value in optimizer_arguments(config, known).items()}


def _literal(text: str) -> Any:
    if "(" in text:
        return [_literal(part) for part in text.strip("()").split(",") if part]
    try:
        return float(text)
    except ValueError:
        return {"true": True, "false": False}.get(text.lower(), text)
