"""LoRA files read: every module's update, and which layer of a base it belongs to.

kohya's, diffusers' / PEFT's, ComfyUI's / BFL's, LyCORIS', OneTrainer's, musubi's, ai-toolkit's and XLabs' names. Below 100 % matched a file
is refused with the names that don't fit and the family that it seems to be made for; what can't be done to a weight is refused by name.
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
from trainer.lora_file import fusing, header_meaning, names, not_lora, rs_lora
from trainer.lora_file.content import Content, content
from trainer.lora_file.header import EMBEDDING, Header, by_module, read_header

if TYPE_CHECKING:
    from torch import Tensor

MAX_WEIGHT = 1 << 30  # numbers in a matrix that is made whole; the largest weight of a published model has a third of that
_BIASES = ("diff_b", "b_norm", "lora_B.bias", "lora_up.bias")
_VALUES = ("scale", "set_weight")
_MARKS = ("oft_R.scaled_oft",)  # say something by being there
_RANKED = ("lora_A.weight", "lora_down.weight", "lora.down.weight", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")  # as many rows as the rank


@dataclass(frozen=True)
class Module:
    """A module of a file: its update, the tensors it was read from under their suffixes, and what else than a weight they change."""

    update: Update | None  # None: only what `extras` are
    method: str
    alpha: float | None  # as the file or its header says
    parts: dict[str, Tensor]
    extras: dict[str, Tensor]  # biases, and values that replace the base's


def modules(path: Path) -> dict[str, Module]:
    """Every module by the file's own name. Raises: AdapterError."""
    return modules_of(content(path))


def modules_of(found: Content) -> dict[str, Module]:
    """The same of a file that was read. Raises: AdapterError."""
    file = found.path.name
    grouped, strange = by_module(found.tensors)
    if strange or not grouped:
        if kind := not_lora.said(file, strange, not grouped):
            raise AdapterError(kind)
        raise AdapterError(f"{file} is no LoRA file we can read: {len(strange)} names follow no known scheme, such as {strange[:3]}.")
    parted = {module: {suffix: found.tensors[name] for suffix, name in parts.items()} for module, parts in grouped.items()}
    said = rs_lora.told(header_meaning.stated(file, found.header.metadata), found.header.metadata, _strengths(parted))
    return {module: _module(said, module, parts) for module, parts in parted.items()}


def _strengths(parted: Mapping[str, dict[str, Tensor]]) -> list[tuple[float, int]]:
    """Alpha and rank of each module that has an alpha, rank 0 where no factor is low-rank."""
    return [(float(parts["alpha"]), _rank(parts)) for parts in parted.values() if "alpha" in parts and parts["alpha"].numel() == 1]


def _rank(parts: Mapping[str, Tensor]) -> int:
    return next((len(tensor) for suffix in _RANKED if (tensor := parts.get(suffix)) is not None and tensor.ndim), 0)


def _module(said: header_meaning.Stated, module: str, parts: dict[str, Tensor]) -> Module:
    file, own = said.file, parts.get("alpha")
    if own is not None and own.numel() != 1:
        raise AdapterError(f"{file}: the alpha of {module} has {own.numel()} elements; allowed: one.")
    if whole := [suffix for suffix, tensor in parts.items() if suffix != "alpha" and not tensor.is_floating_point() and suffix not in _MARKS]:
        raise AdapterError(f"{file}: {whole[0]} of {module} is of {str(parts[whole[0]].dtype).removeprefix('torch.')}; only alphas may be whole numbers.")
    extras = {suffix: tensor for suffix, tensor in parts.items() if suffix in (*_BIASES, *_VALUES)}
    given = {suffix: tensor for suffix, tensor in parts.items() if suffix != "alpha" and suffix not in extras}
    extras = {suffix: tensor for suffix, tensor in extras.items() if suffix in _VALUES or tensor.any()}  # a bias of zeros changes nothing
    if not given and extras:
        return Module(None, "values", None, parts, extras)
    rank = _rank(given)
    alpha = said.alpha(module, rank) if own is None else said.own_alpha(float(own), rank)
    try:
        name, update = _update(given, alpha)
    except ValueError as error:
        raise AdapterError(f"{file}: {module} has {error}, which don't fit each other.") from None
    if update is None:
        raise AdapterError(f"{file}: {module} has {sorted(given)}, which is none of {', '.join(methods.registry())}.")
    update = _as_said(said, module, name, update, alpha)
    if (largest := _largest({suffix: tuple(tensor.shape) for suffix, tensor in given.items()})) > MAX_WEIGHT:
        raise AdapterError(f"{file}: the factors of {module} make a matrix of {largest} numbers; allowed: up to {MAX_WEIGHT}.")
    return Module(update, name, alpha, parts, extras)


def _as_said(said: header_meaning.Stated, module: str, name: str, update: Update, alpha: float | None) -> Update:
    """The update as the file's header means it, where its method has more than one meaning. Raises: AdapterError."""
    if isinstance(update, Decomposed):
        return replace(update, inner=_as_said(said, module, name.removesuffix("-dora"), update.inner, alpha))
    method = methods.registry().get(name)
    if method is None or method.by_header is None:
        return update
    try:
        return method.by_header(update, {**said.facts(module), "file_alpha": alpha})
    except ValueError as error:
        raise AdapterError(f"{said.file}: {module} {error}.") from None


def _update(given: dict[str, Tensor], alpha: float | None) -> tuple[str, Update | None]:
    """The method's name and the update; None if there is no such method. Raises: ValueError for parts that don't fit each other."""
    if set(given) in ({"diff"}, {"w_norm"}):
        return "full", Whole(next(iter(given.values())))
    for method in methods.registry().values():
        if method.recognises(set(given)):
            return method.name, method.from_file(given, alpha)
    lengths = given.get("dora_scale")
    if lengths is None:
        return "", None
    name, inner = _update({suffix: tensor for suffix, tensor in given.items() if suffix != "dora_scale"}, alpha)
    return f"{name}-dora", None if inner is None else Decomposed(inner, lengths)


def weight_shape(parts: dict[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """(outputs, inputs with a kernel counted in) of the weight that parts of these shapes are for, as far as they tell."""

    def first(*suffixes: str) -> tuple[int, ...] | None:
        return next((parts[suffix] for suffix in suffixes if suffix in parts and len(parts[suffix]) > 1), None)

    down, up = first("lora_down.weight", "lora_A.weight", "lora.down.weight"), first("lora_up.weight", "lora_B.weight", "lora.up.weight")
    if down and up:
        kernel = first("lora_mid.weight") or down
        return up[0], down[1] * math.prod(kernel[2:])
    if (a := first("hada_w1_a")) and (b := first("hada_w1_b")):
        tucker = first("hada_t1")
        return (a[1], b[1] * math.prod(tucker[2:])) if tucker else (a[0], b[1])
    one, other = _factor(parts, "lokr_w1"), _factor(parts, "lokr_w2")
    if one and other:
        return one[0] * other[0], one[1] * other[1]
    whole = parts.get("diff") or parts.get("w_norm") or parts.get("scale")
    return (whole[0], math.prod(whole[1:])) if whole else None


def _largest(parts: dict[str, tuple[int, ...]]) -> int:
    """Numbers in the largest matrix that is made of parts of these shapes to measure them."""
    made = [weight_shape(parts) if "hada_w1_a" in parts else None, _factor(parts, "lokr_w1"), _factor(parts, "lokr_w2")]
    return max((math.prod(shape) for shape in made if shape), default=0)


def _factor(parts: dict[str, tuple[int, ...]], name: str) -> tuple[int, int] | None:
    """Outputs and inputs of a factor of a Kronecker product."""
    if len(whole := parts.get(name, ())) > 1:
        return whole[0], math.prod(whole[1:])
    a, b = parts.get(f"{name}_a", ()), parts.get(f"{name}_b", ())
    if len(a) < 2 or len(b) < 2:
        return None
    kernel = parts.get(name.replace("w2", "t2"), ()) if name == "lokr_w2" else ()
    return (a[1], b[1] * math.prod(kernel[2:])) if kernel else (a[0], b[1])


def named(header: Header) -> names.Named:
    """What the file's modules are, from its header alone."""
    grouped, _ = by_module(header.shapes)
    shapes = {module: weight_shape({suffix: header.shapes[name] for suffix, name in parts.items()}) for module, parts in grouped.items()}
    return _identified(tuple(shapes.items()), tuple((key, header.metadata.get(key, "")) for key in names.SAID))


@lru_cache(maxsize=16)
def _identified(shapes: tuple[tuple[str, names.Shape], ...], said: tuple[tuple[str, str], ...]) -> names.Named:
    """Files of one trainer for one base have the same modules, mostly."""
    return names.identify(dict(shapes), dict(said))


def read(path: Path, file_keys: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> dict[str, Update]:
    """Updates by module path (`unet.down_blocks...`), every one matched by name and shape.

    `file_keys` maps module paths to kohya keys (a family's), `shapes` to weight shapes. Layers that a fused module leaves as they are
    are left out.
    Raises: AdapterError that counts and lists what doesn't fit; nothing is half-loaded.
    """
    return matched(content(path), file_keys, shapes)


def matched(read: Content, file_keys: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> dict[str, Update]:
    """The same of a file that was read. Raises: AdapterError."""
    path, header, found = read.path, read.header, modules_of(read)
    _refuse_extras(path, found)
    own = _known(file_keys)
    # Names that are the base's own need no looking up among all families'.
    foreign = {module: target for module, target in named(header).targets.items() if _spelled(module) not in own} if _has_others(found, own) else {}
    targets = _targets(found, own, foreign, file_keys)
    if unknown := [module for module in found if module not in targets]:
        counted = f"{len(found) - len(unknown)} of {len(found)} modules matched"
        listed = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        raise AdapterError(f"{path.name} does not fit this base: {counted}. Not found: {listed}.{_made_for(named(header))}")
    fitting: dict[str, Update] = {}
    num = 0
    for module, paths in targets.items():
        update = found[module].update
        assert update is not None
        parts = _parts(path.name, module, update, foreign.get(module), [shapes[one] for one in paths])
        whole = dict(zip(paths, parts, strict=True))
        there = {one: part for one, part in whole.items() if len(paths) == 1 or not fusing.is_nothing(part)} or whole
        fitting |= there
        num += len(there)
    if len(fitting) < num:
        raise AdapterError(f"{path.name} names {num - len(fitting)} of its {num} modules twice, in two spellings; which one counts is not said.")
    for module, update in fitting.items():
        if not update.fits(shapes[module]):
            differs = f"{module} is {shapes[module]} here and {update.made_for} in the file"
            raise AdapterError(f"{path.name} was made for another base: {differs}.{_made_for(named(header))}")
    return fitting


def _has_others(found: Mapping[str, Module], own: dict[str, str]) -> bool:
    return any(_spelled(module) not in own for module in found)


def _targets(found: Mapping[str, Module], own: dict[str, str], foreign: dict[str, names.Target], file_keys: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """The layers of the base that each module of a file stands for; without those that stand for none."""
    plain = {_plain(module): module for module in file_keys}
    targets: dict[str, tuple[str, ...]] = {}
    for module in found:
        target = foreign.get(module)
        if _spelled(module) in own:
            targets[module] = (own[_spelled(module)],)
        elif target is not None and all(_plain(one) in plain for one in target.paths):
            targets[module] = tuple(plain[_plain(one)] for one in target.paths)
    return targets


def _known(file_keys: dict[str, str]) -> dict[str, str]:
    """Module paths by every name that stands for one of them alone."""
    keys = list(file_keys.values())
    twins = {key for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else set()
    return {key: module for module, key in file_keys.items() if key not in twins} | {module: module for module in file_keys}


def _parts(file: str, module: str, update: Update, target: names.Target | None, shapes: list[tuple[int, ...]]) -> list[Update]:
    """The update of each layer that a module of a file stands for. Raises: AdapterError."""
    heights = tuple(shape[0] for shape in shapes)
    swapped = target is not None and target.spelling != "diffusers" and target.swaps(sum(heights), math.prod(shapes[0][1:]))
    if target is None or (len(shapes) == 1 and not swapped):
        return [update]
    whole = (sum(heights), *shapes[0][1:])
    if not update.fits(whole):
        raise AdapterError(f"{file} was made for another base: {module} is {whole} here and {update.made_for} in the file.")
    found = fusing.apart(update, heights, swapped, whole)
    if found is None:
        raise AdapterError(f"{file}: {module} sets the lengths of {len(heights)} layers together, which are apart in this base; it can't be taken apart.")
    return found


def _refuse_extras(path: Path, found: dict[str, Module]) -> None:
    if extra := [f"{module}.{suffix}" for module, one in found.items() for suffix in one.extras]:
        raise AdapterError(
            f"{path.name} changes {len(extra)} biases or norms too, such as {extra[0]}; only weights are changed here, so it would be half-loaded. "
            "Control LoRAs of BFL need their own pipeline."
        )


def _made_for(known: names.Named) -> str:
    if known.family is None or len(known.targets) < len(known.unknown):
        return ""
    size = f" ({known.size})" if known.size else ""
    rivals = f" or {', '.join(names.registry()[rival].title for rival in known.rivals)}" if known.rivals else ""
    return f" It is made for {known.family.title}{size}{rivals}."


def _spelled(module: str) -> str:
    """A PEFT spelling without the wrapper's prefix; transformers >= 5.6 has no `text_model.` in its own paths."""
    plain = module.removeprefix("base_model.model.")
    is_inside = "." in plain or plain != module
    plain = plain if plain.startswith(("lora_", "unet.", "transformer.", "text_encoder")) else f"unet.{plain}" if is_inside else plain
    return plain.replace("text_encoder.text_model.", "text_encoder.")


def _plain(module: str) -> str:
    return module.replace(".text_model.", ".")


def embeddings(path: Path) -> dict[str, dict[str, Tensor]]:
    """New words for the text encoders that a file brings, `{word: {key: (vectors, dim)}}`; mostly none. Raises: AdapterError.

    A text encoder's key is A1111's: `string_to_param.*` where there is one encoder, `clip_l` and `clip_g` where there are these two.
    """
    return words(content(path)) if any(EMBEDDING.match(name) for name in read_header(path).shapes) else {}


def words(read: Content) -> dict[str, dict[str, Tensor]]:
    """The same of a file that was read. Raises: AdapterError."""
    path = read.path
    found: dict[str, dict[str, Tensor]] = {}
    for name, vectors in read.tensors.items():
        if match := EMBEDDING.match(name):
            found.setdefault(match["word"], {})[match["key"]] = vectors
    for word, parts in found.items():
        if bad := [vectors for vectors in parts.values() if vectors.ndim != 2 or not vectors.numel() or not vectors.is_floating_point()]:
            raise AdapterError(f"{path.name}: the word {word!r} has vectors of shape {tuple(bad[0].shape)}; allowed: (vectors, width).")
        if len({len(vectors) for vectors in parts.values()}) > 1:
            counted = ", ".join(f"{key} {len(vectors)}" for key, vectors in parts.items())
            raise AdapterError(f"{path.name}: the word {word!r} has a number of vectors for each text encoder ({counted}); allowed: one for all.")
    return found


def is_same_word(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two words, vectors by key, are one."""
    import torch

    return one.keys() == other.keys() and all(torch.equal(vectors, other[key]) for key, vectors in one.items())
