"""Modules of a file given other names: any scheme to any, layers fused or taken apart as the names ask for, one alpha for the whole file.

A plain LoRA keeps its numbers but for what a scale is folded into `lora_up`. Schemes that have an alpha get one value for the whole file
(diffusers drops alphas that differ by layer); those of PEFT's kind get none: scale 1, which every reader takes. Other methods' tensors are
renamed as they are, and refused where they would have to be fused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trainer import methods
from trainer.deltas import Decomposed, Delta, Update
from trainer.errors import AdapterError
from trainer.lora_file import fusing, names
from trainer.lora_file.names import Family, Named, Row, Target
from trainer.lora_file.names.rows import amounts, filled
from trainer.lora_file.reading import Module, weight_shape

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Scheme:
    """How a scheme writes: prefix of the denoiser, whose spelling, dots or underscores, and whether it carries an alpha."""

    name: str
    prefix: str
    original: bool
    dotted: bool
    alpha: bool


SCHEMES = ("kohya", "diffusers", "comfyui", "peft", "onetrainer", "lycoris", "bare", "xlabs")


def scheme_of(name: str, family: Family) -> Scheme:
    """A scheme's rules for a family. Raises: AdapterError for one that nobody has for this family."""
    if name not in SCHEMES:
        raise AdapterError(f"scheme is {name!r}; allowed: {', '.join(SCHEMES)}.")
    if name == "xlabs" and not family.xlabs:
        raise AdapterError(f"XLabs has names for FLUX.1 only, not for {family.title}.")
    dot = f"{family.component}."
    return {
        "kohya": Scheme("kohya", "lora_unet_", family.kohya == "original", False, True),
        "diffusers": Scheme("diffusers", dot, False, True, False),
        "comfyui": Scheme("comfyui", "diffusion_model.", True, True, False),
        "peft": Scheme("peft", "base_model.model.", False, True, False),
        "onetrainer": Scheme("onetrainer", "lora_transformer_" if family.component == "transformer" else "lora_unet_", False, False, True),
        "lycoris": Scheme("lycoris", "lycoris_", False, False, True),
        "bare": Scheme("bare", "", False, True, False),
        "xlabs": Scheme("xlabs", "", True, True, False),
    }[name]


@dataclass(frozen=True)
class Spelled:
    """Modules under their new names, and what the header has to say of them."""

    modules: dict[str, dict[str, Tensor]]
    metadata: dict[str, str]


def spell(known: Named, found: Mapping[str, Module], scheme: str) -> Spelled:
    """A file's modules, each of them named, under another scheme's names. Raises: AdapterError for what can't be said in it."""
    family = known.family
    if family is None or known.unknown:
        named = f"{len(known.unknown)} modules have no name in {family.title}, such as {known.unknown[0]}" if family else "its family isn't known"
        raise AdapterError(f"the file can't be given other names: {named}.")
    rules = scheme_of(scheme, family)
    placed: dict[tuple[str, Row, tuple[int, ...]], dict[int | None, Module]] = {}
    for module, one in found.items():
        target = known.targets[module]
        group = placed.setdefault((target.component, target.row, target.numbers), {})
        if target.part in group or (group and (None in group or target.part is None)):
            raise AdapterError(f"{module} stands twice, in two spellings; which one counts is not said.")
        if not isinstance(one.update, Delta) and (target.spelling == "diffusers") == rules.original and target.swaps(*(_shape(one) or (0, 1))):
            raise AdapterError(f"{module} ({one.method}) has its halves the other way round in {scheme} names; make it a plain LoRA first.")
        group[target.part] = replace(one, update=_straight(one.update, target) if one.update else None)
    updates: dict[str, Module] = {}
    for (component, layer, numbers), parts in placed.items():
        updates |= _renamed(family, known.size, Target(component, layer, numbers, None, "both", ""), parts, rules)
    return _written(rules, updates)


def as_it_was(modules: Mapping[str, Module], known: Named) -> Spelled:
    """Modules under the names that they have, with new numbers; one alpha for those that are spelled as kohya does."""
    dotted = {name for name, one in modules.items() if known.scheme == "xlabs" or any(suffix.startswith("lora_A") for suffix in one.parts)}
    kept = _written(Scheme("kohya", "", False, False, True), {name: one for name, one in modules.items() if name not in dotted})
    bare = _written(Scheme("xlabs" if known.scheme == "xlabs" else "bare", "", False, True, False), {name: modules[name] for name in dotted})
    return Spelled(kept.modules | bare.modules, kept.metadata or bare.metadata)


def plain(family: Family, updates: Mapping[str, Update], scheme: str, size: str = "") -> Spelled:
    """Updates by `component.module.path`, such as training or merging makes them, under a scheme's names. Raises: AdapterError."""
    targets = {}
    for path in updates:
        component, _, name = path.partition(".")
        target = names.look_up(family, component, name, f"{component}.")
        if target is None:
            raise AdapterError(f"{path} is no layer of {family.title} whose name is known; nothing was written.")
        targets[path] = target
    known = Named("diffusers", family, size, targets, (), ())
    return spell(known, {path: Module(update, "lora", None, {}, {}) for path, update in updates.items()}, scheme)


def _straight(update: Update, target: Target) -> Update:
    """The update with its outputs in diffusers' order."""
    if isinstance(update, Delta) and target.spelling != "diffusers" and target.swaps(*_flat(update)):
        return update.rows(fusing.indices((update.shape[0],), True)[0])
    return update


def _flat(update: Delta) -> tuple[int, int]:
    return update.shape[0], update.down[0].numel()


def _renamed(family: Family, size: str, target: Target, parts: dict[int | None, Module], rules: Scheme) -> dict[str, Module]:
    """One row's modules under their new names, fused or apart."""
    fused = rules.original and target.component == family.component
    whole = module_name(family, target, None, rules)
    if len(target.row.paths) == 1 or (fused and None in parts):
        (one,) = parts.values()
        return {whole: replace(one, update=_swapped(one.update, target) if fused and one.update else one.update)}
    if fused:
        return {whole: _fused(family, size, target, parts)}
    if None not in parts:
        return {module_name(family, target, part, rules): one for part, one in parts.items()}
    one = parts[None]
    pieces = dict(enumerate(_apart(target, one)))
    trained = {part: piece for part, piece in pieces.items() if piece.update and not fusing.is_nothing(piece.update)}
    return {module_name(family, target, part, rules): piece for part, piece in (trained or pieces).items()}


def _swapped(update: Update, target: Target) -> Update:
    if isinstance(update, Delta) and target.swaps(*_flat(update)):
        return update.rows(fusing.indices((update.shape[0],), True)[0])
    return update


def _shape(one: Module) -> tuple[int, int] | None:
    return weight_shape({suffix: tuple(tensor.shape) for suffix, tensor in one.parts.items()})


def _apart(target: Target, one: Module) -> list[Module]:
    shape = _shape(one) or (_flat(one.update) if isinstance(one.update, Delta) else None)
    heights = target.parts(*shape) if shape else None
    where = " and ".join(target.paths)
    if one.update is None or heights is None:
        raise AdapterError(f"a fused module can't be taken apart into {where}: its sizes don't tell where one ends.")
    found = fusing.apart(one.update, heights)
    if found is None or not all(isinstance(update, Delta) or _is_dora(update) for update in found):
        raise AdapterError(f"a {one.method} module can't be taken apart into {where}; make it a plain LoRA first (`velatura lora to-plain`).")
    return [Module(update, one.method, None, {}, {}) for update in found]


def _is_dora(update: Update) -> bool:
    return hasattr(update, "lengths") and isinstance(getattr(update, "low", getattr(update, "inner", None)), Delta)


def _fused(family: Family, size: str, target: Target, parts: dict[int | None, Module]) -> Module:
    row = target.row
    chosen = [parts[number].update if number in parts else None for number in range(len(row.paths))]
    lows = [update for update in chosen if isinstance(update, Delta)]
    where = filled(row.original, target.numbers)
    if len(lows) < len(parts):
        raise AdapterError(f"{', '.join(sorted({one.method for one in parts.values()}))} can't be fused into {where}; make it a plain LoRA first.")
    values = next((dict(one.values) for one in family.sizes if one.name == size), {})
    if row.into.isalpha():
        values[row.into] = lows[0].down[0].numel()
    heights: list[int] = []
    for text, update in zip(row.outs, chosen, strict=True):
        values |= {text: update.shape[0]} if isinstance(update, Delta) and text.isalpha() else {}
        height = (update.shape[0],) if isinstance(update, Delta) else amounts(text, values)
        if not height:
            raise AdapterError(f"{where} can't be written: {row.paths[len(heights)]} isn't in the file, and its width isn't known.")
        heights.append(height[0])
    return Module(fusing.together([update if isinstance(update, Delta) else None for update in chosen], tuple(heights)), "lora", None, {}, {})


def module_name(family: Family, target: Target, part: int | None, rules: Scheme) -> str:
    """A module's name in a scheme."""
    row = target.row
    if target.component != family.component:
        text = next(text for text in family.texts if text.component == target.component)
        name = filled(row.paths[0], target.numbers)
        if rules.name == "comfyui":
            return f"text_encoders.{text.comfy}.transformer.{name}"
        if rules.name in ("kohya", "onetrainer", "lycoris"):
            return f"{text.kohya[0]}_{name.replace('.', '_')}"
        if rules.name == "diffusers":
            return f"{text.component}.{name}"
        raise AdapterError(f"{rules.name} has no names for text encoders, and the file has {text.component}; allowed: kohya, diffusers, comfyui.")
    if rules.name == "xlabs":
        alias = next((alias for alias in (row.original, *row.aliases) if ".processor." in alias), None)
        if alias is None:
            raise AdapterError(f"XLabs has no name for {filled(row.paths[0], target.numbers)}; it trains the attention of double blocks only.")
        return filled(alias, target.numbers)
    name = filled(row.original, target.numbers) if rules.original else filled(row.paths[part or 0], target.numbers)
    return rules.prefix + (name if rules.dotted else name.replace(".", "_"))


def _written(rules: Scheme, modules: dict[str, Module]) -> Spelled:
    """Tensors under the scheme's suffixes."""
    lows = {name: low for name, one in modules.items() if (low := _low(one.update))}
    alphas = Counter(round(low.scale * low.rank, 6) for low in lows.values()) if rules.alpha else Counter()
    usable = {alpha: num for alpha, num in alphas.items() if alpha} or dict.fromkeys([1.0] if alphas else [], 1)  # an alpha of 0 can't be divided by
    wide = max(usable, key=lambda alpha: (usable[alpha], alpha), default=None)
    written = {name: _tensors(rules.name, one, wide) for name, one in modules.items()}
    for name, one in modules.items():
        if one.extras and rules.name not in ("comfyui", "kohya"):
            raise AdapterError(f"{name} sets {', '.join(one.extras)} besides a weight, which {rules.name} has no names for.")
    metadata = (
        {} if rules.name != "diffusers" or len(lows) < len(modules) or any(_is_dora(one.update) for one in modules.values() if one.update) else _peft(lows)
    )
    ranks = Counter(low.rank for low in lows.values())
    rank = max(ranks, key=lambda rank: (ranks[rank], rank)) if ranks else 0
    metadata |= {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(wide or float(rank))} if rank else {}
    return Spelled(written, metadata | _said(modules))


def _said(modules: Mapping[str, Module]) -> dict[str, str]:
    """What the header has to say of methods whose numbers don't tell all. Raises: AdapterError if it would be more than one thing."""
    found = set()
    for one in modules.values():
        method = methods.registry().get(one.method)
        if method is not None and method.header_arguments:
            found.add((f"peft.{one.method}", json.dumps(method.header_arguments(one.update), sort_keys=True)))
    if len(found) > 1:
        raise AdapterError(f"its {', '.join(sorted({name for name, _ in found}))} modules are meant in {len(found)} ways, which one header can't say.")
    return {key: value for name, args in found for key, value in (("ss_network_module", name), ("ss_network_args", args))}


def _low(update: Update | None) -> Delta | None:
    """The low-rank part of a LoRA or a DoRA."""
    inner = update if isinstance(update, Delta) else getattr(update, "low", None) or (update.inner if isinstance(update, Decomposed) else None)
    return inner if isinstance(inner, Delta) else None


def _tensors(scheme: str, one: Module, wide: float | None) -> dict[str, Tensor]:
    import torch

    low = _low(one.update)
    if low is None:
        return {**one.parts, **_strength(one)}
    own = low.scale * low.rank
    factor = low.scale if wide is None else own / wide
    up = low.up if abs(factor - 1) < 1e-7 else low.up.float() * factor
    lengths = getattr(one.update, "lengths", None)
    found = {"lora_A.weight": low.down.clone(), "lora_B.weight": up.clone()}
    if wide is not None:
        found = {"lora_down.weight": low.down.clone(), "lora_up.weight": up.clone(), "alpha": torch.tensor(float(wide))}
    elif scheme == "xlabs":
        found = {"down.weight": low.down.clone(), "up.weight": up.clone()}
    return found | ({} if lengths is None else _lengths(scheme, lengths, low)) | {suffix: tensor.clone() for suffix, tensor in one.extras.items()}


def _strength(one: Module) -> dict[str, Tensor]:
    """Tensors that say without a header how strong an update is whose method has a scale."""
    update = one.update.inner if isinstance(one.update, Decomposed) else one.update
    method = methods.registry().get(one.method.removesuffix("-dora"))
    return method.file_tensors(update, one.parts) if method is not None and method.file_tensors else {}


def _lengths(scheme: str, lengths: torch.Tensor, low: Delta) -> dict[str, Tensor]:
    if scheme not in ("diffusers", "peft", "bare"):
        sides = lengths.shape if lengths.ndim > 1 else (low.shape[0], *[1] * (len(low.shape) - 1))
        return {"dora_scale": lengths.reshape(sides).clone()}
    if lengths.numel() != low.shape[0] or (lengths.ndim > 1 and lengths.shape[0] != low.shape[0]):
        raise AdapterError("DoRA's lengths are those of the inputs, which PEFT's names can't say; make it a plain LoRA first (`velatura lora to-plain`).")
    return {"lora_magnitude_vector": lengths.flatten().clone()}


def _peft(lows: dict[str, Delta]) -> dict[str, str]:
    """diffusers' header entry: PEFT's config of each component, alpha equal to the rank in every layer."""
    said: dict[str, object] = {}
    for component in sorted({name.split(".")[0] for name in lows}):
        ranks = {name.partition(".")[2]: low.rank for name, low in lows.items() if name.startswith(f"{component}.")}
        counted = Counter(ranks.values())
        rank = max(counted, key=lambda one: (counted[one], one))
        other = {path: own for path, own in sorted(ranks.items()) if own != rank}
        said |= {
            f"{component}.{key}": value
            for key, value in {
                "r": rank,
                "lora_alpha": rank,
                "rank_pattern": other,
                "alpha_pattern": other,
                "target_modules": sorted(ranks),
            }.items()
        }
    return {"format": "pt", "lora_adapter_metadata": json.dumps(said, sort_keys=True)}
