"""What a base draws with where nobody says: its own size, and its usual steps and guidance, or its family's.

A stack leaves out what it doesn't care about, and `completed` puts that in; so a copy of Imprimatura in any folder
draws 128 px, and an SD 2.1 of 768 px draws those. How far guidance is rescaled is asked of the scheduler where it is
used (`render.draw.rescale`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import bases, families, foreign_json, single_file
from trainer.config import StackConfig
from trainer.errors import ModelError, UserError
from trainer.families.contract import Family

IMPRIMATURA = (25, 3.0)  # its card's steps and guidance
_MOST_PX = 4096
_DENOISERS = ("unet", "transformer")


@dataclass(frozen=True)
class Usual:
    """How pictures of a base are drawn where a stack doesn't say."""

    width_px: int
    height_px: int
    steps: int
    guidance_scale: float


def in_words(usual: Usual) -> str:
    """`128 x 128 px, 25 steps, guidance 3`."""
    return f"{usual.width_px} x {usual.height_px} px, {usual.steps} steps, guidance {usual.guidance_scale:g}"


# What a base says.


def of(base: str, family: Family) -> Usual:
    """How a base is usually drawn: as it says itself if it is here, else as its family is.

    Nothing is laid out or fetched.
    """
    try:
        place, entry = bases.place(base)
        if place.is_file():
            return _from_plan(bases.planned(place, entry), family)
        folder = bases.resolve(base, family)
        return Usual(*size_px(folder, family), *_sampling(folder, family))
    except (UserError, OSError):
        return Usual(family.default_px, family.default_px, *family.usual)


def _from_plan(plan: single_file.Plan, family: Family) -> Usual:
    """How a file is drawn that isn't laid out yet: from the configs that its folder will have."""
    configs = {name: part.config for name, part in plan.parts.items()}
    try:
        sample_size = next(configs[part]["sample_size"] for part in _DENOISERS if part in configs)
        sides = _sides(sample_size, bases.vae_factor(configs["vae"]))
    except (KeyError, StopIteration, TypeError, ValueError):
        sides = None
    return Usual(*(sides or (family.default_px, family.default_px)), *family.usual)


def size_px(folder: Path, family: Family) -> tuple[int, int]:
    """Width and height that the base's denoiser was made for; the family's own where its config has none."""
    # Its sample size, which is in latents, times the autoencoder's factor; a size that can't be drawn is none.
    for part in _DENOISERS:
        try:
            sample_size = foreign_json.table(folder / part / "config.json")["sample_size"]
            multiple, longest = bases.multiple_px(folder), bases.longest_px(folder)
        except (OSError, ValueError, KeyError, TypeError, ModelError):
            continue
        sides = _sides(sample_size, multiple // family.patch)
        if sides and all(px % multiple == 0 and 2 * multiple <= px <= (longest or _MOST_PX) for px in sides):
            return sides
    return family.default_px, family.default_px


def _sides(sample_size: Any, factor: int) -> tuple[int, int] | None:
    """Width and height in pixels of a sample size, one number or height and width in latents."""
    # One number for both, or height first, as diffusers writes it.
    sides = sample_size if isinstance(sample_size, list | tuple) else [sample_size, sample_size]
    if len(sides) != 2 or not all(type(side) is int and 0 < side * factor <= _MOST_PX for side in sides):
        return None
    return sides[1] * factor, sides[0] * factor


def _sampling(folder: Path, family: Family) -> tuple[int, float]:
    """Steps and guidance scale."""
    if family.name == "sd" and _is_imprimatura(folder):
        return IMPRIMATURA
    try:
        return family.usual_of(folder) if family.usual_of else family.usual
    except (OSError, ValueError, AttributeError):  # a config that can't be read is told of when the base is opened
        return family.usual


def _is_imprimatura(folder: Path) -> bool:
    """True for Imprimatura wherever it lies, also with LoRAs baked into it: known by its autoencoder's config."""
    own, other = (place / "vae" / "config.json" for place in (bases.IMPRIMATURA, folder))
    # Whatever else is baked into a copy, its autoencoder stays: nothing here trains one.
    try:
        keys = ("_class_name", "scaling_factor", "latent_channels", "decoder_block_out_channels")
        first, second = (foreign_json.table(path) for path in (own, other))
        return [first.get(key) for key in keys] == [second.get(key) for key in keys]
    except (OSError, ValueError, AttributeError):
        return False


# What a stack leaves to it.


def left_out(stack: StackConfig) -> frozenset[str]:
    """Settings that a stack leaves to its base."""
    return frozenset(("family", "width_px", "height_px", "steps", "guidance_scale")) - stack.model_fields_set


def describe(stack: StackConfig, missing: frozenset[str]) -> str:
    """What the base brought to a resolved stack, in words; empty if nothing that is seen."""
    facts = [f"{stack.width_px} x {stack.height_px} px"] if missing & {"width_px", "height_px"} else []
    facts += [f"{stack.steps} steps"] if "steps" in missing else []
    if "guidance_scale" in missing:
        rescaled = f" rescaled by {stack.guidance_rescale:g}" if stack.guidance_rescale else ""
        facts.append(f"guidance {stack.guidance_scale:g}{rescaled}")
    return f"as {Path(stack.base).name} is usually drawn: {', '.join(facts)}" if facts else ""


def completed(stack: StackConfig) -> StackConfig:
    """The stack with what was left out as its base is usually drawn; what was given stays as it is."""
    missing = left_out(stack)
    if not missing:  # and the base, which may not even be here, is not looked at
        return stack
    family = bases.family_of(stack.base) if "family" in missing else stack.family
    values: dict[str, Any] = {"family": family} | vars(of(stack.base, families.registry()[family]))
    return stack.model_copy(update={key: values[key] for key in missing})
