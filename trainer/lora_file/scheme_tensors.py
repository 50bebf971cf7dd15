"""Modules as the tensors that a scheme has for them, and what the header must say with them.

Schemes that have an alpha get one value for the whole file, since diffusers drops alphas that differ by layer; those of
PEFT's kind get none, so that the scale is 1, which every reader takes. What differs from that is folded into `lora_up`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer import methods
from trainer.deltas import Decomposed, Delta, Update
from trainer.errors import AdapterError
from trainer.lora_file.reading import Module
from trainer.lora_file.tool_names import Scheme


@dataclass(frozen=True)
class Spelled:
    """Modules under their new names, and what the header has to say of them."""

    modules: dict[str, dict[str, Tensor]]
    metadata: dict[str, str]


def spelled(scheme: Scheme, modules: dict[str, Module]) -> Spelled:
    """Modules by their names in a scheme, as the scheme's tensors and header. Raises: AdapterError."""
    # One alpha: that of most layers. An alpha of 0 is left out, as it can't be divided by.
    low_ranks = {name: low for name, module in modules.items() if (low := _low_rank(module.update))}
    alphas = Counter(round(low.scale * low.rank, 6) for low in low_ranks.values()) if scheme.alpha else Counter()
    usable = {alpha: num for alpha, num in alphas.items() if alpha} or dict.fromkeys([1.0] if alphas else [], 1)
    common_alpha = max(usable, key=lambda alpha: (usable[alpha], alpha), default=None)
    # Tensors.
    tensors = {name: _tensors(scheme.name, module, common_alpha) for name, module in modules.items()}
    for name, module in modules.items():
        if module.extras and scheme.name not in ("comfyui", "kohya"):
            raise AdapterError(
                f"{name} sets {', '.join(module.extras)} besides a weight, which {scheme.name} has no names for."
            )
    # The header. diffusers' entry can only say what plain LoRAs are.
    is_plain = len(low_ranks) == len(modules) and not any(
        is_dora(module.update) for module in modules.values() if module.update
    )
    metadata = _diffusers_header(low_ranks) if scheme.name == "diffusers" and is_plain else {}
    ranks = Counter(low.rank for low in low_ranks.values())
    rank = max(ranks, key=lambda rank: (ranks[rank], rank)) if ranks else 0
    if rank:
        metadata |= {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(rank),
            "ss_network_alpha": str(common_alpha or float(rank)),
        }
    return Spelled(tensors, metadata | _method_header(modules))


def is_dora(update: Update) -> bool:
    """True for a LoRA with DoRA's lengths."""
    return hasattr(update, "lengths") and isinstance(getattr(update, "low", getattr(update, "inner", None)), Delta)


def _low_rank(update: Update | None) -> Delta | None:
    """The low-rank part of a LoRA or a DoRA."""
    if isinstance(update, Delta):
        return update
    inner = getattr(update, "low", None) or (update.inner if isinstance(update, Decomposed) else None)
    return inner if isinstance(inner, Delta) else None


def _tensors(scheme: str, module: Module, alpha: float | None) -> dict[str, Tensor]:
    """A module's tensors by suffix, for a file whose alpha is the given one; None: without alphas, at scale 1."""
    low = _low_rank(module.update)
    if low is None:
        return {**module.parts, **_strength(module)}
    # The scale that the alpha doesn't say goes into `up`.
    factor = low.scale if alpha is None else low.scale * low.rank / alpha
    up = low.up if abs(factor - 1) < 1e-7 else low.up.float() * factor
    if alpha is not None:
        tensors = {
            "lora_down.weight": low.down.clone(),
            "lora_up.weight": up.clone(),
            "alpha": torch.tensor(float(alpha)),
        }
    elif scheme == "xlabs":
        tensors = {"down.weight": low.down.clone(), "up.weight": up.clone()}
    else:
        tensors = {"lora_A.weight": low.down.clone(), "lora_B.weight": up.clone()}
    # DoRA's lengths, and biases.
    lengths = getattr(module.update, "lengths", None)
    if lengths is not None:
        tensors |= _lengths(scheme, lengths, low)
    return tensors | {suffix: tensor.clone() for suffix, tensor in module.extras.items()}


def _strength(module: Module) -> dict[str, Tensor]:
    """Tensors that say without a header how strong an update is whose method has a scale."""
    update = module.update.inner if isinstance(module.update, Decomposed) else module.update
    method = methods.registry().get(module.method.removesuffix("-dora"))
    return method.file_tensors(update, module.parts) if method is not None and method.file_tensors else {}


def _lengths(scheme: str, lengths: torch.Tensor, low: Delta) -> dict[str, Tensor]:
    """DoRA's lengths under the scheme's suffix. Raises: AdapterError for those of the inputs in PEFT's names."""
    if scheme not in ("diffusers", "peft", "bare"):
        shape = lengths.shape if lengths.ndim > 1 else (low.shape[0], *[1] * (len(low.shape) - 1))
        return {"dora_scale": lengths.reshape(shape).clone()}
    if lengths.numel() != low.shape[0] or (lengths.ndim > 1 and lengths.shape[0] != low.shape[0]):
        raise AdapterError(
            "DoRA's lengths are those of the inputs, which PEFT's names can't say; make it a plain LoRA first "
            "(`velatura lora to-plain`)."
        )
    return {"lora_magnitude_vector": lengths.flatten().clone()}


def _diffusers_header(low_ranks: dict[str, Delta]) -> dict[str, str]:
    """diffusers' header entry: PEFT's config of each component, alpha equal to the rank in every layer."""
    entry: dict[str, object] = {}
    for component in sorted({name.split(".")[0] for name in low_ranks}):
        ranks = {
            name.partition(".")[2]: low.rank for name, low in low_ranks.items() if name.startswith(f"{component}.")
        }
        counted = Counter(ranks.values())
        rank = max(counted, key=lambda rank: (counted[rank], rank))
        other = {path: own for path, own in sorted(ranks.items()) if own != rank}
        config = {
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": other,
            "alpha_pattern": other,
            "target_modules": sorted(ranks),
        }
        entry |= {f"{component}.{key}": value for key, value in config.items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(entry, sort_keys=True)}


def _method_header(modules: Mapping[str, Module]) -> dict[str, str]:
    """What the header has to say of methods whose tensors don't tell everything.

    Raises: AdapterError if modules need different things there.
    """
    settings = set()
    for module in modules.values():
        method = methods.registry().get(module.method)
        if method is not None and method.header_arguments:
            arguments = json.dumps(method.header_arguments(module.update), sort_keys=True)
            settings.add((f"peft.{module.method}", arguments))
    if len(settings) > 1:
        raise AdapterError(
            f"its {', '.join(sorted({name for name, _ in settings}))} modules are meant in {len(settings)} ways, which "
            f"one header can't say."
        )
    return {
        key: value
        for name, arguments in settings
        for key, value in (("ss_network_module", name), ("ss_network_args", arguments))
    }
