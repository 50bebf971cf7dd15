"""A stack as one file: a LoRA that does what the stack does, exactly or to a rank, or a base with the stack folded in.

The algebra is `rank_reduction`'s: factors side by side, or cut by singular values with what is lost said as a share of
the whole. Every file has one alpha, its rank, with each layer's own rank folded into `lora_up`, as every tool reads
alike. The stack's recipe is inside.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer import __version__, base_match, files, lora_file, rank_reduction
from trainer.config import StackConfig
from trainer.errors import ConfigError, RunError
from trainer.rank_reduction import Cut, Factors
from trainer.render import picture_metadata

if TYPE_CHECKING:
    from trainer.render.engine import Engine
    from trainer.render.folding import Part

STACK_KEY = "velatura.stack"
# Of the norm: rounding of the dtype that is written.
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@dataclass(frozen=True)
class Baked:
    """What was written: how many layers, the largest rank, and the share of the sum's norm that the rank left out."""

    path: Path
    modules: int
    rank: int
    residual: float


@torch.no_grad()
def lora(
    engine: Engine,
    stack: StackConfig,
    path: Path,
    rank: int = 0,
    dtype: torch.dtype = torch.float16,
    part_done: Callable[[int, int], None] | None = None,
) -> Baked:
    """Write the stack as one LoRA of at most `rank`, exactly for 0; the file is opened again and compared.

    `part_done` is told how many layers were added up or compared, and of how many in all.

    Raises: ConfigError for a stack that isn't constant or has updates that only a rank makes low, RunError if the file
    isn't the stack.
    """
    resolved = engine.resolve(stack)
    files.refuse_over(path, [Path(adapter.file) for adapter in resolved.adapters])
    # The sum of each layer as two factors.
    parts, words = engine.parts(resolved)
    if not parts:
        raise ConfigError("the stack has no LoRA that is on, so there is nothing to bake.")
    done = itertools.count(1)
    factors: dict[str, Factors] = {}
    for name, layer_parts in parts.items():
        factors[name] = _factors(engine, name, layer_parts, rank)
        if part_done:
            part_done(next(done), 2 * len(parts))
    largest = max(len(layer.down) for layer in factors.values())
    modules = {engine.file_keys[name]: _tensors(engine, name, layer, largest) for name, layer in factors.items()}

    # The file only takes its name if it is the stack.
    with files.replacing(path) as unproved:
        lora_file.save(unproved, modules, _metadata(engine, resolved, largest), dtype, words)
        written = lora_file.read(unproved, engine.file_keys, engine.shapes)
        for name, layer in factors.items():
            read_again = written[name].dense(engine.folding.base(name), torch.float32).flatten(1)
            wanted = layer.up @ layer.down
            if float((read_again - wanted).norm()) > _TOLERANCE[dtype] * max(float(wanted.norm()), 1e-12):
                raise RunError(f"the LoRA differs from the stack in {name}; nothing was written.")
            if part_done:
                part_done(next(done), 2 * len(parts))
    return Baked(path, len(modules), largest, rank_reduction.residual(list(factors.values())))


def _factors(engine: Engine, name: str, parts: list[Part], rank: int) -> Factors:
    """The sum of a layer's updates as two factors, of at most `rank` unless that is 0. Raises: ConfigError."""
    # Low-rank updates alone are joined exactly, without a dense matrix.
    low_rank = [
        (factor, update)
        for _, factor, update in sorted(parts, key=lambda part: part[:2])
        if isinstance(update, lora_file.Delta)
    ]
    if len(low_rank) == len(parts):
        up, down = rank_reduction.side_by_side(low_rank)
        is_exact = not rank or len(down) <= rank
        return rank_reduction.exact(up, down) if is_exact else rank_reduction.cut(up, down, Cut(rank))

    # Others are summed dense, and cut.
    if not rank:
        kinds = sorted({type(update).__name__ for _, _, update in parts if not isinstance(update, lora_file.Delta)})
        raise ConfigError(
            f"the stack has updates that aren't low-rank ({', '.join(kinds)} in {name}); give a rank to cut them to."
        )
    base = engine.folding.base(name)
    # In float32: the parts may be float16, and their sum is cut by its singular values.
    dense = torch.stack([factor * update.dense(base, torch.float32) for _, factor, update in parts]).sum(0)
    return rank_reduction.cut_dense(dense.flatten(1), Cut(rank))


def _tensors(engine: Engine, name: str, layer: Factors, alpha: int) -> dict[str, Tensor]:
    """A layer's tensors as they stand in the file; a reader scales by alpha / rank, so that is divided out here."""
    shape, rank = engine.shapes[name], len(layer.down)
    up = layer.up * (rank / alpha)
    if len(shape) == 4:
        return {
            "lora_down.weight": layer.down.reshape(rank, *shape[1:]),
            "lora_up.weight": up[:, :, None, None],
            "alpha": torch.tensor(float(alpha)),
        }
    return {"lora_down.weight": layer.down, "lora_up.weight": up, "alpha": torch.tensor(float(alpha))}


def _metadata(engine: Engine, stack: StackConfig, rank: int) -> dict[str, str]:
    """The header: what other tools read, and the stack."""
    enabled = [adapter for adapter in stack.adapters if adapter.enabled]
    headers = [lora_file.read_header(Path(adapter.file)).metadata for adapter in enabled]
    return {
        STACK_KEY: json.dumps(picture_metadata.travelling(stack), sort_keys=True, ensure_ascii=False),
        "velatura.version": __version__,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": engine.family.architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": " + ".join(f"{adapter.name} {adapter.weight:g}" for adapter in enabled)[:200],
        "modelspec.merged_from": ", ".join(adapter.name for adapter in enabled)[:500],
        lora_file.TRIGGER_KEY: lora_file.joined_triggers(headers),
        **base_match.shared(headers),
        "ss_base_model_version": engine.family.base_version,
        "ss_v2": str(engine.family.is_v2(engine.pipe)),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
    }


def into_base(engine: Engine, stack: StackConfig, folder: Path) -> Path:
    """Write the base with the stack folded in as a diffusers folder, the recipe beside it. Raises: ConfigError."""
    # What can't be written is refused before the base's weights are touched.
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--into {str(folder)!r} is there already and isn't empty; name a new folder.")
    if engine.quantise != "none":
        raise ConfigError(f"the base is open in {engine.quantise}, which can't be written; open it without quantise.")
    resolved = engine.resolve(stack)
    if engine.parts(resolved)[1]:
        raise ConfigError(
            "the stack brings new words, which a base has no place for; leave their files out, or bake a LoRA."
        )
    with engine.folded(resolved):
        engine.pipe.save_pretrained(str(folder), safe_serialization=True)
    (folder / "velatura_stack.json").write_text(
        json.dumps(picture_metadata.travelling(resolved), indent=2, sort_keys=True), encoding="utf-8"
    )
    return folder
