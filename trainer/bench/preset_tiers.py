"""`velatura bench tiers --presets`: `presets/tiers.toml`, the memory settings of the presets that ship by GPU.

A base's tiers are those of its hungriest preset: what ships for it and takes most fits as well. On the CPU a
run computes in float32 at worst, so that everything is twice as large there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import tomli_w

from trainer import presets
from trainer.bench import tiers
from trainer.config import MemoryConfig, TrainConfig
from trainer.preset_tiers import CPU, SIZES_GB, Tier

_MODELS = {
    "sd": "sd15", "sd3": "sd35-medium", "flux2": "flux2-klein", "flux2dev": "flux2-dev"
}  # what a base's presets are called -> its model in a bench, where that differs  # fmt: skip
_TARGETS = ("attention", "attention-ff", "linear", "all")  # by how much they take
_SMALL_GIB = 8
_GIB = 1 << 30
HEAD = """\
# Memory settings of the presets by base and GPU. Written by: velatura bench tiers --presets
# gib is the most that a run takes, loading among it, of the hungriest preset: estimated by the rehearsal's arithmetic,
# not measured. ram_gib is what of the base then waits in the machine's memory. Source: ours, by that command.
"""


def bases() -> list[str]:
    """What presets that ship begin with, the base that comes with Velatura first."""
    names = (path.stem.partition("-")[0] for path in presets.FOLDER.glob("*.toml"))
    return sorted(set(names), key=lambda name: (name != "imprimatura", name))


def rows(base: str) -> list[Tier]:
    """A base's tiers, the CPU's first; sizes that nothing fits into are left out."""
    configs, models = _hungriest(base), []
    for config in configs:
        with tempfile.TemporaryDirectory(prefix="velatura-bench-") as scratch:
            models.append(tiers.Model(_MODELS.get(base, base), config, None, Path(scratch) / "base"))
    found = [_on_cpu(models)]
    for size in SIZES_GB:
        settings, is_enough = tiers.settings_for(models, configs[0], size)
        gib = round(max(model.most_gib(settings) for model in models), 1)
        if is_enough:
            found.append(Tier(f"{size}gb", tiers.unlike_default(settings), gib, _waits_gib(models[0], settings)))
    return found


def _on_cpu(models: list[tiers.Model]) -> Tier:
    """The CPU's: activations are computed twice where keeping them takes more than a small machine has."""
    for settings in (MemoryConfig(), MemoryConfig(gradient_checkpointing=True)):
        gib = 2 * max(model.most_gib(settings) for model in models)
        if gib <= _SMALL_GIB:
            break
    return Tier(CPU, tiers.unlike_default(settings), round(gib, 1), 0.0)


def _hungriest(base: str) -> list[TrainConfig]:
    """The presets of a base that take most, without their memory settings: those that no other exceeds in all."""
    configs = {}
    for path in sorted(presets.FOLDER.glob(f"{base}-*.toml")):
        config = presets.load(path.stem, {"memory": {}})
        adapter = config.adapter.model_dump()
        layers = _TARGETS.index(adapter.get("targets", "all"))
        configs[config.resolution_px, config.batch_size, layers, adapter.get("rank", 0)] = config
    return [
        config for size, config in configs.items()
        if not any(other != size and all(a >= b for a, b in zip(other, size, strict=True)) for other in configs)
    ]  # fmt: skip


def _waits_gib(model: tiers.Model, settings: MemoryConfig) -> float:
    """What waits in the machine's memory."""
    if settings.offload == "none":
        return 0.0
    return round(((2 * model.step.num_weights if settings.offload == "blocks" else 0) + model.encoders_bytes) / _GIB, 1)


def to_toml(tables: dict[str, list[Tier]]) -> str:
    """The file's text."""
    values = {
        base: {row.name: {"memory": row.memory, "gib": row.gib, **({"ram_gib": row.ram_gib} if row.ram_gib else {})}
               for row in found}
        for base, found in tables.items()
    }  # fmt: skip
    return HEAD + "".join(f"\n{_table(base, table)}" for base, table in values.items())


def _table(base: str, table: dict[str, Any]) -> str:
    """A base's table, a tier a line."""
    lines = [f"[{base}]", *(f"{name} = {_inline(row)}" for name, row in table.items())]
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_inline(one)}" for key, one in value.items()) + " }" if value else "{}"
    return tomli_w.dumps({"a": value}).strip().removeprefix("a = ")


_SHORT = {"gradient_checkpointing": "checkpointing", "offload_activations": "offloaded activations"}


def to_markdown(tables: dict[str, dict[str, Tier]]) -> str:
    """What is picked for each base on each GPU, and the GiB that a run then takes; estimated, as it says."""
    lines = [
        "Estimated, not measured: GiB of the GPU at most, loading among it, and of memory for what waits there.",
        "",
        "| presets | " + " | ".join(f"{size} GB" for size in SIZES_GB) + " |",
        "|---" * (1 + len(SIZES_GB)) + "|",
    ]
    for base, tiers_of_base in tables.items():
        cells, last = [], ""
        for size in SIZES_GB:
            cell = _cell(tiers_of_base.get(f"{size}gb"))
            cells.append("the same" if cell == last else cell)
            last = cell
        lines.append(f"| {base} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(tier: Tier | None) -> str:
    if tier is None:
        return "nothing fits"
    settings = [_SHORT.get(name, name) if value is True else f"{name}={value}" for name, value in tier.memory.items()]
    waiting = f" + {tier.ram_gib:.1f}" if tier.ram_gib else ""
    return f"{', '.join(settings) or 'as it is'}: {tier.gib:.1f}{waiting}"
