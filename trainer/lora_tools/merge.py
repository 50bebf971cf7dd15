"""Several LoRA files as one, with a weight each: exactly, factors side by side, or to a rank with what that leaves out.

Files may have different names, ranks and alphas, if they are for one family. Updates that aren't low-rank are made
dense and cut, which takes a rank; those that need the base's weights (DoRA, OFT) are refused with how to make them
plain first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trainer import base_match, files, rank_reduction
from trainer.deltas import Delta, Update
from trainer.errors import AdapterError
from trainer.lora_file import TRIGGER_KEY, joined_triggers, new_words, renaming
from trainer.lora_tools.opening import Opened, open_file, shapes, updates, write
from trainer.rank_reduction import Cut, Factors

if TYPE_CHECKING:
    from torch import Tensor

_OF_THE_BASE = ("ss_base_model_version", "ss_v2", "modelspec.architecture")


@dataclass(frozen=True)
class Merged:
    """What was written, and the share of the sum's norm that the rank left out."""

    path: Path
    layers: int
    rank: int  # the largest
    residual: float


def merge(
    weighted: Sequence[tuple[Path, float]], out: Path, rank: int = 0, scheme: str = "default", dtype: str = "keep"
) -> Merged:
    """Write the sum of weight * update as one LoRA, of at most `rank`, exactly for 0. Raises: AdapterError."""
    # The files, which must be for one family.
    opened = [open_file(path) for path, _ in weighted]
    files.refuse_over(out, [lora.path for lora in opened])
    if len(opened) < 2:
        raise AdapterError(f"{len(opened)} file is named; a merge takes two or more.")
    families = {lora.family().name: lora.path.name for lora in opened}
    family = opened[0].family()
    for lora in opened[1:]:
        if family.name not in (lora.family().name, *lora.known.rivals):
            raise AdapterError(
                f"the files are for different families: "
                f"{', '.join(f'{name} is {key}' for key, name in families.items())}."
            )

    # The updates of each layer. Only some files tell a convolution's kernel, so that the longest shape counts.
    parts: dict[str, list[tuple[float, Update]]] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    for lora, (_, weight) in zip(opened, weighted, strict=True):
        if not math.isfinite(weight):
            raise AdapterError(f"the weight of {lora.path.name} is {weight}; allowed: a number.")
        for path, shape in shapes(lora).items():
            sizes[path] = max(sizes.get(path, ()), shape, key=len)
        for path, update in updates(lora).items():
            parts.setdefault(path, []).append((weight, update))

    # Their sum.
    factors = {path: _sum(path, weighted, sizes[path], rank) for path, weighted in parts.items()}
    merged = {path: total.delta(sizes[path]) for path, total in factors.items()}

    # The file.
    size = next((lora.known.size for lora in opened if lora.known.size), "")
    chosen = family.default if scheme == "default" else scheme
    spelled = renaming.plain(family, merged, chosen, size)
    of = [
        {"sha256": lora.sha256, "name": lora.path.stem, "weight": weight}
        for lora, (_, weight) in zip(opened, weighted, strict=True)
    ]
    write(out, spelled, _described(opened), dtype, {"verb": "merge", "of": of, "rank": rank}, _words(opened))
    largest = max(update.rank for update in merged.values())
    return Merged(out, len(merged), largest, rank_reduction.residual(list(factors.values())))


def _sum(path: str, parts: list[tuple[float, Update]], shape: tuple[int, ...], rank: int) -> Factors:
    """The sum of weight * update of one layer, exact or of at most a rank. Raises: AdapterError."""
    low = [(weight, update) for weight, update in parts if isinstance(update, Delta)]
    if not all(update.fits(shape) or update.fits((shape[0], math.prod(shape[1:]))) for _, update in parts):
        raise AdapterError(
            f"the files are for models of different sizes: {path} is "
            f"{' and '.join(update.made_for for _, update in parts)}."
        )

    # Low-rank updates: their factors side by side.
    if len(low) == len(parts):
        up, down = rank_reduction.side_by_side(low)
        if not rank or len(down) <= rank:
            return rank_reduction.exact(up, down)
        return rank_reduction.cut(up, down, Cut(rank))

    # Others are made dense, which those that depend on the base can't be here.
    if needs := sorted({type(update).__name__ for _, update in parts if update.squared_norm() is None}):
        raise AdapterError(
            f"{path} has an update that depends on the base's weights ({', '.join(needs)}); make it plain first: "
            f"`velatura lora to-plain --base`."
        )
    if not rank:
        raise AdapterError(f"{path} has an update that isn't low-rank; give --rank to cut the sum to.")
    base = torch.zeros(shape[0], math.prod(shape[1:]))
    dense = torch.stack([weight * update.dense(base, torch.float32) for weight, update in parts]).sum(0)
    return rank_reduction.cut_dense(dense, Cut(rank))


def _described(opened: list[Opened]) -> Opened:
    """The first file with a header that speaks of all: no recipe of one of them, and every trigger."""
    kept = {key: value for key, value in opened[0].header.metadata.items() if key in _OF_THE_BASE}
    of_all = {
        "modelspec.title": " + ".join(lora.path.stem for lora in opened)[:200],
        "modelspec.merged_from": ", ".join(lora.path.stem for lora in opened)[:500],
        TRIGGER_KEY: joined_triggers(lora.header.metadata for lora in opened),
    }
    first = opened[0]
    of_base = base_match.shared(lora.header.metadata for lora in opened)
    return replace(first, header=replace(first.header, metadata=kept | of_base | of_all))


def _words(opened: list[Opened]) -> dict[str, dict[str, Tensor]]:
    """Every file's new words. Raises: AdapterError if two bring one word with different vectors."""
    words: dict[str, dict[str, Tensor]] = {}
    for lora in opened:
        for word, vectors in lora.words.items():
            if word in words and not new_words.is_same_word(words[word], vectors):
                raise AdapterError(f"two files bring the word {word!r} with different vectors; leave one of them out.")
            words[word] = vectors
    return words
