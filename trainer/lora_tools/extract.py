"""A LoRA of what a fine-tuned model has over its base: the difference of each weight, cut to a rank.

Both are diffusers folders of one family. Weights are read one at a time, so two full-size models need the memory of one
layer. Layers that differ only by rounding are left out.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer import __version__, base_match, files, rank_reduction
from trainer.deltas import Update
from trainer.errors import AdapterError, ModelError
from trainer.lora_file import names, renaming, writing
from trainer.lora_tools.opening import MADE_KEY
from trainer.lora_tools.resize import check
from trainer.lora_tools.weights import Weights, open_weights
from trainer.rank_reduction import Cut, Factors

_ROUNDING = 1e-6  # of a weight's norm: less than this is no change


@dataclass(frozen=True)
class Extracted:
    """What was written, and the share of the change that was left out."""

    path: Path
    layers: int  # that changed
    of: int  # that were compared
    rank: int  # the largest
    residual: float


def extract(tuned: Path, base: Path, out: Path, how: Cut, scheme: str = "default", dtype: str = "float16") -> Extracted:
    """Write the difference `tuned` - `base` as a LoRA.

    Raises: ModelError if they are not alike, AdapterError if nothing differs.
    """
    check(how)
    files.refuse_over(out, [tuned, base])
    if out.suffix != ".safetensors" or dtype == "keep":
        raise AdapterError(
            f"--out is {str(out)!r} and --dtype {dtype}; allowed: a file that ends in .safetensors; float32, float16 "
            f"or bfloat16."
        )

    # What changed, layer by layer.
    new, old = open_weights(tuned), open_weights(base)
    family, size = _alike(new, old)
    factors, compared = _changes(new, old, family, how)
    if not factors:
        raise AdapterError(
            f"{str(tuned)!r} has the same {compared} weights as {str(base)!r}; there is nothing to extract."
        )

    # Name the updates; weights are named without `text_model.` (see `weights`).
    shapes = {path: new.shapes[path.replace(".text_model.", ".")] for path in factors}
    updates: dict[str, Update] = {path: part.delta(shapes[path]) for path, part in factors.items()}
    chosen = family.default if scheme == "default" else scheme
    spelled = renaming.plain(family, updates, chosen, size)

    # The header: how it was made, and for which base.
    recipe = {
        "verb": "extract",
        "rank": how.rank,
        "energy": how.energy,
        "error": how.error,
        "tuned": tuned.name,
        "base": base.name,
        "velatura": __version__,
        "shapes": hashlib.sha256(str(sorted(new.shapes.items())).encode()).hexdigest()[:12],
    }
    metadata = {
        MADE_KEY: json.dumps(recipe, sort_keys=True),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": family.architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": out.stem,
        "ss_base_model_version": family.base_version,
        "ss_v2": str(size == "2.x"),
        base_match.NAME_KEY: base.name,
        **base_match.header_of(str(base), family.name),
    }

    # The file, and how much of the change it has.
    out.parent.mkdir(parents=True, exist_ok=True)
    writing.save(out, spelled.modules, metadata | spelled.metadata, getattr(torch, dtype))
    rank = max(update.rank for update in updates.values())
    return Extracted(out, len(factors), compared, rank, rank_reduction.residual(list(factors.values())))


def _changes(new: Weights, old: Weights, family: names.Family, how: Cut) -> tuple[dict[str, Factors], int]:
    """The change of each layer that changed, cut to a rank, and how many layers were compared."""
    factors: dict[str, Factors] = {}
    compared = 0
    for path, shape in new.shapes.items():
        component, _, name = path.partition(".")
        target = names.look_up(family, component, name)
        if target is None or len(shape) not in (2, 4):  # linear layers and convolutions
            continue
        compared += 1
        before = old.get(path).float()
        change = new.get(path).float() - before
        if float(change.norm()) > _ROUNDING * float(before.norm()):
            factors[target.paths[0]] = rank_reduction.cut_dense(change.flatten(1), how)  # (out, in * kernel)
    return factors, compared


def _alike(new: Weights, old: Weights) -> tuple[names.Family, str]:
    """The family and size of both models. Raises: ModelError if they differ, or are none that is known."""
    differ = [path for path, shape in new.shapes.items() if old.shapes.get(path) != shape]
    differ += [path for path in old.shapes if path not in new.shapes]
    if differ:
        path = differ[0]
        raise ModelError(
            f"{str(new.folder)!r} and {str(old.folder)!r} are different models: {len(differ)} weights differ in shape, "
            f"such as {path} ({new.shapes.get(path)} and {old.shapes.get(path)})."
        )

    # Their names and shapes tell the family, as a LoRA's would.
    layers = {
        path: (shape[0], math.prod(shape[1:]))
        for path, shape in new.shapes.items()
        if len(shape) in (2, 4) and "embed" not in path.rpartition(".")[2]
    }
    known = names.identify(layers)
    if known.family is None or not known.targets:
        raise ModelError(f"{str(new.folder)!r} is of no family whose layers are known here.")
    return known.family, known.size
