"""The blocks of a LoRA as sliders: which there are, what each writes into `blocks`, and usual settings of them.

What is written is read by `trainer.render.strength`: of several lines that fit a layer the last line counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from app.texts import say
from trainer import families
from trainer.lora_file import LoraInfo
from trainer.render import strength

MOST = 12  # sliders
_OF_UNET = re.compile(r"(IN|OUT)\d+|MID")
# Of SDXL, the layers that hold what is shown and those that hold how (B-LoRA, arXiv 2403.14572, W4 and W5).
_CONTENT, _STYLE = "up_blocks.0.attentions.0.", "up_blocks.0.attentions.1."
_INSIDE = {"sdxl": {"OUT0": (("content", _CONTENT), ("style", _STYLE))}}


@dataclass(frozen=True)
class Group:
    """One slider: each of its patterns gets its factor."""

    label: str
    patterns: tuple[str, ...]
    covers: tuple[tuple[str, ...], ...]  # for each pattern the patterns that set all of it, itself among them
    inside: int = -1  # the number of the group that it is a part of


def groups(info: LoraInfo) -> list[Group]:
    """The sliders of a LoRA, from the input to the output; none if it changes no block of the denoiser."""
    family = families.registry().get(info.family or "")
    if family is None:
        return []
    inside = [name for name in info.blocks if name.startswith(f"{family.denoiser}.")]
    blocks = list(dict.fromkeys(strength.block_of(f"{name}.x") for name in inside))
    unet = [block for block in blocks if _OF_UNET.fullmatch(block)]
    return _of_unet(sorted(unet, key=strength.order), family.name) if unet else _of_transformer(blocks)


def presets(sliders: list[Group]) -> list[tuple[str, list[float]]]:
    """Settings of all sliders at once, as (name, factors)."""
    labels = [group.label for group in sliders]
    made = [(say("word.all"), [1.0] * len(labels))]
    kinds = {"IN": say("region.only_down"), "MID": say("region.only_middle"), "OUT": say("region.only_up")}
    for kind, name in kinds.items():
        wanted = [float(label.startswith(kind)) for label in labels]
        made += [(name, wanted)] if 0 < sum(wanted) < len(labels) else []
    for kind, name in (("content", say("region.only_content")), ("style", say("region.only_style"))):
        wanted = [float(label.endswith(f" {kind}")) for label in labels]
        made += [(name, wanted)] if any(wanted) else []
    return made


def _of_unet(blocks: list[str], family: str) -> list[Group]:
    made: list[Group] = []
    for block in blocks:
        whole = block.rstrip("0123456789")
        wider = tuple(dict.fromkeys((whole, block)))
        made.append(Group(block, (block,), (wider,)))
        parent = len(made) - 1
        for word, pattern in _INSIDE.get(family, {}).get(block, ()):
            made.append(Group(f"{block} {word}", (pattern,), ((*wider, pattern),), parent))
    return made[:MOST]


def _of_transformer(blocks: list[str]) -> list[Group]:
    """Neighbouring blocks together where there are more than fit."""
    # The numbers of the blocks, by the stack of blocks that they belong to.
    stacks: dict[str, list[int]] = {}
    for block in blocks:
        name, _, number = block.rpartition(".")
        if name and number.isdigit():
            stacks.setdefault(name, []).append(int(number))

    # Each stack has its share of the sliders, and each slider some neighbours.
    names = list(stacks)[:MOST]
    made = []
    for name in names:
        numbers, most = sorted(stacks[name]), MOST // len(names)
        size = -(-len(numbers) // most)
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            patterns = tuple(f".{name}.{number}." for number in part)
            word = name.rpartition(".")[2].removesuffix("_blocks").replace("_", " ")
            label = f"{word} {part[0]}" + (f"-{part[-1]}" if len(part) > 1 else "")
            made.append(Group(label, patterns, tuple((pattern,) for pattern in patterns)))
    return made
