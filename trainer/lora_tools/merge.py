"""Several LoRA files as one, with a weight each: exactly, factors side by side, or to a rank with what that leaves out.

Files may have different names, ranks and alphas, if they are for one family. Updates that aren't low-rank are made dense and cut, which takes
a rank; those that need the base's weights (DoRA, OFT) are refused with how to make them plain first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import base_match, rank_reduction
from trainer.deltas import Delta, Update
from trainer.errors import AdapterError
from trainer.lora_file import reading, renaming
from trainer.lora_tools.opening import Opened, open_file, shapes, updates, write
from trainer.rank_reduction import Cut, Factors

if TYPE_CHECKING:
    from torch import Tensor

_OF_THE_BASE = ("ss_base_model_version", "ss_v2", "modelspec.architecture")


@dataclass(frozen=True)
class Merged:
    """What was written: layers, the largest rank, and the share of the sum's norm that the rank left out."""

    path: Path
    layers: int
    rank: int
    residual: float


def merge(files: Sequence[tuple[Path, float]], out: Path, rank: int = 0, scheme: str = "default", dtype: str = "keep") -> Merged:
    """Write the sum of weight * update as one LoRA, of at most `rank`, exactly for 0. Raises: AdapterError."""
    opened = [open_file(path) for path, _ in files]
    if len(opened) < 2:
        raise AdapterError(f"{len(opened)} file is named; a merge takes two or more.")
    families = {one.family().name: one.path.name for one in opened}
    family = opened[0].family()
    for one in opened[1:]:
        if family.name not in (one.family().name, *one.known.rivals):
            raise AdapterError(f"the files are for different families: {', '.join(f'{name} is {key}' for key, name in families.items())}.")
    parts: dict[str, list[tuple[float, Update]]] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    for one, (_, weight) in zip(opened, files, strict=True):
        if not math.isfinite(weight):
            raise AdapterError(f"the weight of {one.path.name} is {weight}; allowed: a number.")
        for path, shape in shapes(one).items():
            sizes[path] = max(sizes.get(path, ()), shape, key=len)
        for path, update in updates(one).items():
            parts.setdefault(path, []).append((weight, update))
    factors = {path: _sum(path, found, sizes[path], rank) for path, found in parts.items()}
    merged = {path: one.delta(sizes[path]) for path, one in factors.items()}
    size = next((one.known.size for one in opened if one.known.size), "")
    chosen = family.default if scheme == "default" else scheme
    spelled = renaming.plain(family, merged, chosen, size)
    of = [{"sha256": one.sha256, "name": one.path.stem, "weight": weight} for one, (_, weight) in zip(opened, files, strict=True)]
    write(out, spelled, _described(opened), dtype, {"verb": "merge", "of": of, "rank": rank}, _words(opened))
    return Merged(out, len(merged), max(one.rank for one in merged.values()), rank_reduction.residual(list(factors.values())))


def _sum(path: str, parts: list[tuple[float, Update]], shape: tuple[int, ...], rank: int) -> Factors:
    import torch

    low = [(weight, update) for weight, update in parts if isinstance(update, Delta)]
    if not all(update.fits(shape) or update.fits((shape[0], math.prod(shape[1:]))) for _, update in parts):
        raise AdapterError(f"the files are for models of different sizes: {path} is {' and '.join(update.made_for for _, update in parts)}.")
    if len(low) == len(parts):
        up, down = rank_reduction.side_by_side(low)
        return rank_reduction.exact(up, down) if not rank or len(down) <= rank else rank_reduction.cut(up, down, Cut(rank))
    if needs := sorted({type(update).__name__ for _, update in parts if update.squared_norm() is None}):
        raise AdapterError(
            f"{path} has an update that depends on the base's weights ({', '.join(needs)}); make it plain first: `velatura lora to-plain --base`."
        )
    if not rank:
        raise AdapterError(f"{path} has an update that isn't low-rank; give --rank to cut the sum to.")
    base = torch.zeros(shape[0], math.prod(shape[1:]))
    dense = torch.stack([weight * update.dense(base, torch.float32) for weight, update in parts]).sum(0)
    return rank_reduction.cut_dense(dense, Cut(rank))


def _described(opened: list[Opened]) -> Opened:
    """The first file with a header that speaks of all: no recipe of one of them, and every trigger."""
    triggers = [trigger for one in opened if (trigger := one.header.metadata.get("modelspec.trigger_phrase", ""))]
    kept = {key: value for key, value in opened[0].header.metadata.items() if key in _OF_THE_BASE}
    said = {
        "modelspec.title": " + ".join(one.path.stem for one in opened)[:200],
        "modelspec.merged_from": ", ".join(one.path.stem for one in opened)[:500],
        "modelspec.trigger_phrase": ", ".join(dict.fromkeys(triggers)),
    }
    first = opened[0]
    of_base = base_match.shared(one.header.metadata for one in opened)
    return replace(first, header=replace(first.header, metadata=kept | of_base | said))


def _words(opened: list[Opened]) -> dict[str, dict[str, Tensor]]:
    """Every file's new words. Raises: AdapterError if two bring one word with different vectors."""
    words: dict[str, dict[str, Tensor]] = {}
    for one in opened:
        for word, vectors in one.words.items():
            if word in words and not reading.is_same_word(words[word], vectors):
                raise AdapterError(f"two files bring the word {word!r} with different vectors; leave one of them out.")
            words[word] = vectors
    return words
