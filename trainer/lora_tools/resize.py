"""A LoRA of another rank: by rank, by share of the energy or by error, for all layers or by block.

Layers keep the names and the fused form that the file has. A rank above the file's adds nothing: it would be zeros.
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
    """What was written, and the share of the norm that was left out."""

    path: Path
    modules: int
    before: tuple[int, int]  # least and largest rank
    after: tuple[int, int]
    residual: float
    blocks: dict[str, float]  # the residual by block


def resize(file: Path, out: Path, how: Cut, blocks: Mapping[str, int] | None = None, dtype: str = "keep") -> Resized:
    """Write `file` cut down to `how`; a layer whose path contains a text of `blocks` is cut to that rank instead.

    Raises: AdapterError.
    """
    source = open_file(file)
    check(how)
    wanted = dict(blocks or {})
    factors: dict[str, Factors] = {}
    modules = {}
    unused = set(wanted)
    # Cut each layer.
    for name, module in source.modules.items():
        if not isinstance(module.update, Delta):
            raise AdapterError(
                f"{file.name}: {name} is {module.method}, whose rank isn't a LoRA's; make it plain first (`velatura "
                f"lora to-plain`)."
            )
        target = source.known.targets.get(name)
        paths = (name, *(target.paths if target else ()))
        text = next((text for text in wanted if any(text in path for path in paths)), None)
        unused.discard(text or "")
        up, down = rank_reduction.side_by_side([(1.0, module.update)])
        factors[name] = rank_reduction.cut(up, down, Cut(wanted[text]) if text else how)
        modules[name] = replace(module, update=factors[name].delta(module.update.shape))
    if unused:
        raise AdapterError(
            f"--block {', '.join(sorted(unused))} is in the path of no layer of {file.name}, such as "
            f"{next(iter(modules))}."
        )
    # Write.
    spelled = renaming.as_it_was(modules, source.known)
    made = {
        "verb": "resize",
        "from": source.sha256,
        "rank": how.rank,
        "energy": how.energy,
        "error": how.error,
        "blocks": wanted,
    }
    write(out, spelled, source, dtype, made)
    # What was left out, by block.
    before = [module.update.rank for module in source.modules.values() if module.update]
    after = [module.update.rank for module in modules.values() if module.update]
    grouped: dict[str, list[Factors]] = {}
    for name, cut in factors.items():
        target = source.known.targets.get(name)
        block = block_of(target.paths[0]) if target else name.split(".")[0]
        grouped.setdefault(block, []).append(cut)
    residuals = {block: rank_reduction.residual(cuts) for block, cuts in grouped.items()}
    return Resized(
        out,
        len(modules),
        (min(before), max(before)),
        (min(after), max(after)),
        rank_reduction.residual(list(factors.values())),
        residuals,
    )


def check(how: Cut) -> None:
    """Refuse a cut that keeps everything or nothing. Raises: AdapterError."""
    if not (how.rank or how.energy or how.error):
        raise AdapterError("nothing says how much to keep: give --rank, --energy or --error.")
    if how.rank < 0 or not 0 <= how.energy <= 1 or not 0 <= how.error < 1:
        raise AdapterError(
            f"rank is {how.rank}, energy {how.energy}, error {how.error}; allowed: rank 1 or more, energy above 0 to "
            f"1, error above 0 to below 1."
        )
