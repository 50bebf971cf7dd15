"""The tiers of presets that ship: memory settings for a GPU of so many GB, or for none, as in `sdxl-style@12gb`.

A preset's values are its task's and are the same on every card; a tier changes nothing but `memory`, which changes how
long a step takes and not what is learned. The tiers of each base lie in `presets/tiers.toml`, which
`velatura bench tiers --presets` writes: they are the first rungs of the ladder that fit, by the rehearsal's arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainer import preset_parts, system
from trainer.config.parsing import from_toml
from trainer.errors import ConfigError
from trainer.lazy import torch

FILE = preset_parts.FOLDER.parent / "tiers.toml"
SIZES_GB = (8, 12, 16, 24, 40)
CPU, AUTO, MARK = "cpu", "auto", "@"
NAMES = (CPU, *(f"{size}gb" for size in SIZES_GB))
_GIB = 1 << 30


@dataclass(frozen=True)
class Tier:
    """Memory settings and what a run then takes at most; figures are estimates."""

    name: str
    memory: dict[str, Any]
    gib: float  # of the GPU; for `cpu` of the machine, in float32
    ram_gib: float  # of the machine, for a base that waits there

    @property
    def title(self) -> str:
        return "CPU" if self.name == CPU else f"{self.name.removesuffix('gb')} GB"


def split(name: str) -> tuple[str, str]:
    """`sdxl-style@12gb` -> `("sdxl-style", "12gb")`; the second is "" without a tier."""
    plain, _, tier = name.partition(MARK)
    return plain, tier


def of(preset: str) -> dict[str, Tier]:
    """The tiers of a preset by name, the CPU's first; empty for a preset that doesn't ship, or whose base has none."""
    plain, _ = split(preset)
    if not (preset_parts.FOLDER / f"{plain}.toml").is_file():
        return {}
    return tables().get(plain.partition("-")[0], {})


def gpu_sizes(preset: str) -> dict[str, int]:
    """The tiers of a preset that are a GPU's, with its GB, the smallest first."""
    return {name: int(name.removesuffix("gb")) for name in of(preset) if name != CPU}


def chosen(preset: str) -> Tier | None:
    """The tier that a name asks for; None if it asks for none. Raises: ConfigError for a tier that isn't there."""
    plain, name = split(preset)
    if not name:
        return None
    tiers = of(preset)
    tier = at_hand(tiers) if name == AUTO and tiers else tiers.get(name)
    if tier is None:
        allowed = ", ".join([*tiers, AUTO]) if tiers else f"none, since {plain} has no tiers"
        raise ConfigError(f"preset {preset[:120]!r} asks for a tier that isn't there; allowed: {allowed}.")
    return tier


def at_hand(tiers: dict[str, Tier]) -> Tier:
    """The largest tier that the GPU here holds; the smallest for a smaller GPU, and the CPU's where there is no GPU."""
    gib = _gpu_gib()
    if not gib:
        return tiers[CPU]
    sizes = [tier for tier in tiers if tier != CPU]
    # A card sold with 12 GB has 11.6 GiB.
    fitting = [name for name in sizes if int(name.removesuffix("gb")) * 0.95 <= gib]
    return tiers[fitting[-1] if fitting else sizes[0]]


def _gpu_gib() -> float:
    """Of the first GPU; 0 without a GPU that has memory of its own, for which torch isn't loaded."""
    if not system.may_have_gpu():
        return 0.0
    return float(torch.cuda.get_device_properties(0).total_memory / _GIB) if torch.cuda.is_available() else 0.0


def changed(values: dict[str, Any], tier: Tier) -> dict[str, Any]:
    """A preset's values with a tier's memory settings in place of its own."""
    device = {"device": CPU} if tier.name == CPU else {}
    return {**values, **device, "memory": dict(tier.memory)}


def in_words(tier: Tier) -> str:
    """What a run takes: "a GPU of 12 GB (7.2 GiB by estimate)"."""
    if tier.name == CPU:
        return f"no GPU; {tier.gib:.3g} GiB of memory by estimate, in float32"
    waiting = f", and {tier.ram_gib:.3g} GiB of memory for the base that waits there" if tier.ram_gib else ""
    return f"a GPU of {tier.title} ({tier.gib:.3g} GiB by estimate{waiting})"


def tables() -> dict[str, dict[str, Tier]]:
    """All tiers that ship, by what the presets of their base begin with."""
    return _read(FILE, FILE.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, _changed_ns: int) -> dict[str, dict[str, Tier]]:
    tables = from_toml(path.read_bytes(), path.name)
    return {
        base: {
            name: Tier(name, row["memory"], float(row["gib"]), float(row.get("ram_gib", 0)))
            for name, row in rows.items()
        }
        for base, rows in tables.items()
    }
