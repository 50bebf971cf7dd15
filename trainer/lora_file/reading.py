"""LoRA files read: every module's update, and which layer of a base it belongs to.

The names may be those of kohya, diffusers / PEFT, ComfyUI / BFL, LyCORIS, OneTrainer, musubi, ai-toolkit and XLabs. A
file of which any module doesn't match is refused, with the names that don't and the family that it seems to be made
for; what changes more than weights is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import methods
from trainer.deltas import Decomposed, Update, Whole
from trainer.errors import AdapterError
from trainer.lora_file import fusing, header_meaning, names, not_lora, rs_lora, weight_shapes
from trainer.lora_file.content import Content, content
from trainer.lora_file.header import Header, by_module

if TYPE_CHECKING:
    from torch import Tensor

# Numbers in a matrix that is built whole; the largest weight of a published model has a third of that.
MAX_WEIGHT = 1 << 30
_BIASES = ("diff_b", "b_norm", "lora_B.bias", "lora_up.bias")
_VALUES = ("scale", "set_weight")
_MARKS = ("oft_R.scaled_oft",)  # tensors whose presence alone means something
# Factors that have as many rows as the rank.
_RANKED = ("lora_A.weight", "lora_down.weight", "lora.down.weight", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")


@dataclass(frozen=True)
class Module:
    """A module of a file: its update, the tensors by suffix that it was read from, and what they change besides."""

    update: Update | None  # None where `extras` are all there is
    method: str
    alpha: float | None  # as the file or its header says
    parts: dict[str, Tensor]
    extras: dict[str, Tensor]  # biases, and values that replace the base's


def modules(path: Path) -> dict[str, Module]:
    """Every module by the file's own name. Raises: AdapterError."""
    return modules_of(content(path))


def modules_of(read: Content) -> dict[str, Module]:
    """The same of a file that was read. Raises: AdapterError."""
    file = read.path.name
    grouped, strange = by_module(read.tensors)
    if strange or not grouped:
        if kind := not_lora.explain(file, strange, not grouped):
            raise AdapterError(kind)
        raise AdapterError(
            f"{file} is no LoRA file we can read: {len(strange)} names follow no known scheme, such as {strange[:3]}."
        )
    tensors = {
        module: {suffix: read.tensors[name] for suffix, name in parts.items()} for module, parts in grouped.items()
    }
    stated = header_meaning.stated(file, read.header.metadata)
    stated = rs_lora.applied(stated, read.header.metadata, _alphas_and_ranks(tensors))
    return {module: _module(stated, module, parts) for module, parts in tensors.items()}


def _alphas_and_ranks(tensors: Mapping[str, dict[str, Tensor]]) -> list[tuple[float, int]]:
    """Alpha and rank of each module that has an alpha, rank 0 where no factor is low-rank."""
    return [
        (float(parts["alpha"]), _rank(parts))
        for parts in tensors.values()
        if "alpha" in parts and parts["alpha"].numel() == 1
    ]


def _rank(parts: Mapping[str, Tensor]) -> int:
    """The rank of a module's factors; 0 where none is low-rank."""
    return next((len(tensor) for suffix in _RANKED if (tensor := parts.get(suffix)) is not None and tensor.ndim), 0)


def _module(stated: header_meaning.Stated, module: str, parts: dict[str, Tensor]) -> Module:
    """A module from its tensors by suffix. Raises: AdapterError."""
    file, own = stated.file, parts.get("alpha")
    # Refuse what is no alpha, or is of whole numbers.
    if own is not None and own.numel() != 1:
        raise AdapterError(f"{file}: the alpha of {module} has {own.numel()} elements; allowed: one.")
    if whole := [
        suffix
        for suffix, tensor in parts.items()
        if suffix != "alpha" and not tensor.is_floating_point() and suffix not in _MARKS
    ]:
        raise AdapterError(
            f"{file}: {whole[0]} of {module} is of {str(parts[whole[0]].dtype).removeprefix('torch.')}; only alphas "
            f"may be whole numbers."
        )
    # Factors, and what else is set; a bias of zeros changes nothing.
    extras = {suffix: tensor for suffix, tensor in parts.items() if suffix in (*_BIASES, *_VALUES)}
    factors = {suffix: tensor for suffix, tensor in parts.items() if suffix != "alpha" and suffix not in extras}
    extras = {suffix: tensor for suffix, tensor in extras.items() if suffix in _VALUES or tensor.any()}
    if not factors and extras:
        return Module(None, "values", None, parts, extras)
    # The update.
    rank = _rank(factors)
    alpha = stated.alpha(module, rank) if own is None else stated.own_alpha(float(own), rank)
    try:
        name, update = _update(factors, alpha)
    except ValueError as error:
        raise AdapterError(f"{file}: {module} has {error}, which don't fit each other.") from None
    if update is None:
        raise AdapterError(f"{file}: {module} has {sorted(factors)}, which is none of {', '.join(methods.registry())}.")
    update = _as_stated(stated, module, name, update, alpha)
    # Small factors can make a matrix that no memory holds.
    shapes = {suffix: tuple(tensor.shape) for suffix, tensor in factors.items()}
    if (largest := weight_shapes.largest_matrix(shapes)) > MAX_WEIGHT:
        raise AdapterError(
            f"{file}: the factors of {module} make a matrix of {largest} numbers; allowed: up to {MAX_WEIGHT}."
        )
    return Module(update, name, alpha, parts, extras)


def _as_stated(stated: header_meaning.Stated, module: str, name: str, update: Update, alpha: float | None) -> Update:
    """The update as the file's header means it, where its method has more than one meaning. Raises: AdapterError."""
    if isinstance(update, Decomposed):
        return replace(update, inner=_as_stated(stated, module, name.removesuffix("-dora"), update.inner, alpha))
    method = methods.registry().get(name)
    if method is None or method.by_header is None:
        return update
    try:
        return method.by_header(update, {**stated.facts(module), "file_alpha": alpha})
    except ValueError as error:
        raise AdapterError(f"{stated.file}: {module} {error}.") from None


def _update(factors: dict[str, Tensor], alpha: float | None) -> tuple[str, Update | None]:
    """The method's name and the update; None if no method has such factors.

    Raises: ValueError for factors that don't fit each other.
    """
    if set(factors) in ({"diff"}, {"w_norm"}):
        return "full", Whole(next(iter(factors.values())))
    for method in methods.registry().values():
        if method.recognises(set(factors)):
            return method.name, method.from_file(factors, alpha)
    # DoRA's lengths may come with any other method, as LyCORIS writes them.
    lengths = factors.get("dora_scale")
    if lengths is None:
        return "", None
    name, inner = _update({suffix: tensor for suffix, tensor in factors.items() if suffix != "dora_scale"}, alpha)
    return f"{name}-dora", None if inner is None else Decomposed(inner, lengths)


def named(header: Header) -> names.Named:
    """What the file's modules are, from its header alone."""
    grouped, _ = by_module(header.shapes)
    shapes = {
        module: weight_shapes.shape_of({suffix: header.shapes[name] for suffix, name in parts.items()})
        for module, parts in grouped.items()
    }
    return _identified(tuple(shapes.items()), tuple((key, header.metadata.get(key, "")) for key in names.HEADER_KEYS))


@lru_cache(maxsize=16)
def _identified(shapes: tuple[tuple[str, names.Shape], ...], metadata: tuple[tuple[str, str], ...]) -> names.Named:
    """What the modules are; remembered, since files of one trainer for one base mostly have the same modules."""
    return names.identify(dict(shapes), dict(metadata))


def read(path: Path, file_keys: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> dict[str, Update]:
    """Updates by module path (`unet.down_blocks...`), every one matched by name and shape.

    `file_keys` maps module paths to names in a file (a family's), `shapes` to weight shapes. Layers that a fused module
    doesn't change are left out. Raises: AdapterError that counts and lists what doesn't fit; nothing is half-loaded.
    """
    return matched(content(path), file_keys, shapes)


def matched(read: Content, file_keys: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> dict[str, Update]:
    """The same of a file that was read. Raises: AdapterError."""
    path, header, in_file = read.path, read.header, modules_of(read)
    _refuse_extras(path, in_file)
    # Names. Those that are the base's own need not be looked up among all families'.
    own = _paths_by_name(file_keys)
    foreign: dict[str, names.Target] = {}
    if any(_spelled(module) not in own for module in in_file):
        foreign = {module: target for module, target in named(header).targets.items() if _spelled(module) not in own}
    targets = _targets(in_file, own, foreign, file_keys)
    if unknown := [module for module in in_file if module not in targets]:
        counted = f"{len(in_file) - len(unknown)} of {len(in_file)} modules matched"
        listed = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        raise AdapterError(
            f"{path.name} does not fit this base: {counted}. Not found: {listed}.{_made_for(named(header))}"
        )
    # Layers: a module may stand for several, of which some may be untrained.
    updates: dict[str, Update] = {}
    num = 0
    for module, layers in targets.items():
        update = in_file[module].update
        assert update is not None
        parts = _parts(path.name, module, update, foreign.get(module), [shapes[layer] for layer in layers])
        by_layer = dict(zip(layers, parts, strict=True))
        trained = {layer: part for layer, part in by_layer.items() if len(layers) == 1 or not fusing.is_nothing(part)}
        updates |= trained or by_layer
        num += len(trained or by_layer)
    if len(updates) < num:
        raise AdapterError(
            f"{path.name} names {num - len(updates)} of its {num} modules twice, in two spellings; which one counts "
            f"is not said."
        )
    # Shapes.
    for module, update in updates.items():
        if not update.fits(shapes[module]):
            differs = f"{module} is {shapes[module]} here and {update.made_for} in the file"
            raise AdapterError(f"{path.name} was made for another base: {differs}.{_made_for(named(header))}")
    return updates


def _targets(
    in_file: Mapping[str, Module], own: dict[str, str], foreign: dict[str, names.Target], file_keys: dict[str, str]
) -> dict[str, tuple[str, ...]]:
    """The layers of the base that each module of a file stands for; modules that stand for none are left out."""
    layers = {_plain(layer): layer for layer in file_keys}
    targets: dict[str, tuple[str, ...]] = {}
    for module in in_file:
        target = foreign.get(module)
        if _spelled(module) in own:
            targets[module] = (own[_spelled(module)],)
        elif target is not None and all(_plain(path) in layers for path in target.paths):
            targets[module] = tuple(layers[_plain(path)] for path in target.paths)
    return targets


def _paths_by_name(file_keys: dict[str, str]) -> dict[str, str]:
    """Module paths by their names in a file, where one stands for a name alone, and by themselves."""
    keys = list(file_keys.values())
    twins = {key for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else set()
    return {key: module for module, key in file_keys.items() if key not in twins} | {
        module: module for module in file_keys
    }


def _parts(
    file: str, module: str, update: Update, target: names.Target | None, shapes: list[tuple[int, ...]]
) -> list[Update]:
    """The update of each layer that a module of a file stands for. Raises: AdapterError."""
    if target is None:
        return [update]
    heights = tuple(shape[0] for shape in shapes)
    swapped = target.spelling != "diffusers" and target.swaps(sum(heights), math.prod(shapes[0][1:]))
    if len(shapes) == 1 and not swapped:
        return [update]
    whole = (sum(heights), *shapes[0][1:])
    if not update.fits(whole):
        raise AdapterError(
            f"{file} was made for another base: {module} is {whole} here and {update.made_for} in the file."
        )
    parts = fusing.split(update, heights, swapped, whole)
    if parts is None:
        raise AdapterError(
            f"{file}: {module} sets the lengths of {len(heights)} layers together, which are apart in this base; it "
            f"can't be taken apart."
        )
    return parts


def _refuse_extras(path: Path, in_file: dict[str, Module]) -> None:
    if extra := [f"{name}.{suffix}" for name, module in in_file.items() for suffix in module.extras]:
        raise AdapterError(
            f"{path.name} changes {len(extra)} biases or norms too, such as {extra[0]}; only weights are changed "
            f"here, so it would be half-loaded. Control LoRAs of BFL need their own pipeline."
        )


def _made_for(known: names.Named) -> str:
    """A sentence on the family that a file seems to be made for, or nothing where that isn't clear."""
    if known.family is None or len(known.targets) < len(known.unknown):
        return ""
    size = f" ({known.size})" if known.size else ""
    rivals = f" or {', '.join(names.registry()[rival].title for rival in known.rivals)}" if known.rivals else ""
    return f" It is made for {known.family.title}{size}{rivals}."


def _spelled(module: str) -> str:
    """A module's name without PEFT's prefix and, as in transformers >= 5.6, without `text_model.`.

    Paths without a component, as PEFT and old diffusers wrote them, are those of a UNet.
    """
    plain = module.removeprefix("base_model.model.")
    is_path = "." in plain or plain != module
    if is_path and not plain.startswith(("lora_", "unet.", "transformer.", "text_encoder")):
        plain = f"unet.{plain}"
    return plain.replace("text_encoder.text_model.", "text_encoder.")


def _plain(module: str) -> str:
    return module.replace(".text_model.", ".")
