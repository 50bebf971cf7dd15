"""A LoRA of another rank: by rank, by share of the energy or by error, for all layers or by block, and what that leaves out.

Layers stay under the names and in the fused form that the file has. To more rank than there is nothing is added: zeros would say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trainer import rank_reduction
from trainer.deltas import Delta
from trainer.errors import AdapterError
from trainer.lora_file import renaming
from trainer.lora_file.inspecting import block_of
from trainer.lora_tools.opening import open_file, write
from trainer.rank_reduction import Cut, Factors


@dataclass(frozen=True)
class Resized:
    """What was written: modules, ranks before and after (least, most), and the share of the norm that was left out, whole and by block."""

    path: Path
    modules: int
    before: tuple[int, int]
    after: tuple[int, int]
    residual: float
    blocks: dict[str, float]


def resize(file: Path, out: Path, how: Cut, blocks: Mapping[str, int] | None = None, dtype: str = "keep") -> Resized:
    """Write `file` cut down to `how`; a layer whose path has a text of `blocks` in it is cut to that rank instead. Raises: AdapterError."""
    source = open_file(file)
    check(how)
    wanted = dict(blocks or {})
    factors: dict[str, Factors] = {}
    modules = {}
    unused = set(wanted)
    for module, one in source.modules.items():
        if not isinstance(one.update, Delta):
            raise AdapterError(f"{file.name}: {module} is {one.method}, whose rank isn't a LoRA's; make it plain first (`velatura lora to-plain`).")
        target = source.known.targets.get(module)
        names = (module, *(target.paths if target else ()))
        text = next((text for text in wanted if any(text in name for name in names)), None)
        unused.discard(text or "")
        up, down = rank_reduction.side_by_side([(1.0, one.update)])
        factors[module] = rank_reduction.cut(up, down, Cut(wanted[text]) if text else how)
        modules[module] = replace(one, update=factors[module].delta(one.update.shape))
    if unused:
        raise AdapterError(f"--block {', '.join(sorted(unused))} is in the path of no layer of {file.name}, such as {next(iter(modules))}.")
    spelled = renaming.as_it_was(modules, source.known)
    made = {"verb": "resize", "from": source.sha256, "rank": how.rank, "energy": how.energy, "error": how.error, "blocks": wanted}
    write(out, spelled, source, dtype, made)
    before = [one.update.rank for one in source.modules.values() if one.update]
    after = [one.update.rank for one in modules.values() if one.update]
    grouped: dict[str, list[Factors]] = {}
    for module, cut in factors.items():
        grouped.setdefault(block_of(source.known.targets[module].paths[0]) if module in source.known.targets else module.split(".")[0], []).append(cut)
    lost = {block: rank_reduction.residual(found) for block, found in grouped.items()}
    return Resized(out, len(modules), (min(before), max(before)), (min(after), max(after)), rank_reduction.residual(list(factors.values())), lost)


def check(how: Cut) -> None:
    """Refuse what keeps everything or nothing. Raises: AdapterError."""
    if not (how.rank or how.energy or how.error):
        raise AdapterError("nothing says how much to keep: give --rank, --energy or --error.")
    if how.rank < 0 or not 0 <= how.energy <= 1 or not 0 <= how.error < 1:
        raise AdapterError(
            f"rank is {how.rank}, energy {how.energy}, error {how.error}; allowed: rank 1 or more, energy above 0 to 1, error above 0 to below 1."
        )
