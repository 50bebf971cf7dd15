"""What `velatura preset list` and `show` say of presets: for what, which base, tiers, evidence, effective scale."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import tomli_w

from trainer import preset_heads, preset_parts, preset_tiers, presets
from trainer.cards.comparing import scale
from trainer.printing import plain, printable

if TYPE_CHECKING:
    from trainer.config import TrainConfig


@dataclass(frozen=True)
class Row:
    """A preset in a list."""

    title: str
    made_for: str  # "30-60 pictures at 1024 px"; "" where it isn't said
    base: str
    tiers: tuple[str, ...]
    evidence: str
    scale: float | None  # alpha / rank


def row(name: str) -> Row:
    """A preset by its name. Raises: ConfigError."""
    config, head = presets.load(name, {}), preset_heads.of(name)
    tiers = tuple(preset_tiers.of(name))
    return Row(presets.title(name), head.made_for, config.base, tiers, head.evidence, scale(config))


def tiers_in_words(name: str) -> str:
    """The tiers of a preset: "CPU, 8, 12, 16, 24, 40 GB"; "" without any."""
    sizes = [str(size) for size in preset_tiers.gpu_sizes(name).values()]
    return ", ".join([*["CPU"] * (preset_tiers.CPU in preset_tiers.of(name)), *sizes]) + " GB" * bool(sizes)


def listed(stacks: dict[str, str], batches: dict[str, str]) -> str:
    """The presets, a line each, then those of stacks and batches by name and what they are for."""
    lines = [f"{'preset':<24}{'scale':<7}{'tiers':<29}{'evidence':<22}for"]
    for name in presets.names():
        one = row(name)
        factor = "" if one.scale is None else f"{one.scale:.3g}"
        made_for = f", {one.made_for}" if one.made_for else ""
        lines.append(
            f"{name:<23} {factor:<7}{tiers_in_words(name):<29}{one.evidence:<22}{plain(one.title, 120)}{made_for}"
        )
    for name, problem in presets.own().items():
        if problem:
            lines.append(f"{name:<23} can't be used: {problem}")
    lines.append("\nA tier is asked for by name, such as sdxl-style@12gb, or sdxl-style@auto for the GPU here.")
    lines.append("\nstack (velatura render --stack NAME)")
    lines += [f"{name:<23} {text}" for name, text in stacks.items()]
    lines.append("\nbatch (velatura batch NAME --lora FILE)")
    lines += [f"{name:<23} {text}" for name, text in batches.items()]
    return "\n".join(map(_printable, lines))


def to_json() -> str:
    """The presets by name."""
    return json.dumps({name: asdict(row(name)) for name in presets.names()}, indent=2)


def shown(name: str, config: TrainConfig) -> str:
    """A preset whole: what it says as comments, where its values come from, then every setting as TOML."""
    lines = _said(name) if presets.has(name) else []
    return (
        "".join(f"{_printable(f'# {line}'.rstrip())}\n" for line in lines)
        + "\n" * bool(lines)
        + tomli_w.dumps(config.model_dump(mode="json"))
    )


def _said(name: str) -> list[str]:
    """What stands above a preset's settings."""
    one, path = row(name), presets.path_of(name)
    facts = {
        "Memory": preset_heads.of(name).memory, "Tiers": tiers_in_words(name), "Evidence": one.evidence,
        "Effective scale, alpha / rank": "" if one.scale is None else f"{one.scale:.3g}",
    }  # fmt: skip
    sources = preset_parts.sources(path) if one.tiers else {}
    return [
        *preset_heads.comment(path).splitlines(),
        *(f"{label}: {text}" for label, text in facts.items() if text),
        *["Sources:"] * bool(sources), *(f"  {key}: {text}" for key, text in sources.items() if text),
    ]  # fmt: skip


def _printable(line: str) -> str:
    return "\n".join(map(printable, line.split("\n")))
