"""Modules of a file given other names: any scheme to any, with layers fused or split as the names ask for.

How a tool spells names is in `tool_names`; what a family's layers are called, in `names`.

A plain LoRA keeps its numbers but for what a scale is folded into `lora_up` (`scheme_tensors`). Other methods' tensors
are renamed as they are, and refused where they would have to be fused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from trainer.deltas import Delta, Update
from trainer.errors import AdapterError
from trainer.lora_file import fusing, names, weight_shapes
from trainer.lora_file.names import Family, Named, Row, Target
from trainer.lora_file.names.rows import amounts, filled
from trainer.lora_file.reading import Module
from trainer.lora_file.scheme_tensors import Spelled, is_dora, spelled
from trainer.lora_file.tool_names import Scheme, module_name, scheme_of


def spell(known: Named, modules: Mapping[str, Module], scheme_name: str) -> Spelled:
    """A file's modules, each of them named, under another scheme's names. Raises: AdapterError."""
    family = known.family
    if family is None or known.unknown:
        reason = (
            f"{len(known.unknown)} modules have no name in {family.title}, such as {known.unknown[0]}"
            if family
            else "its family isn't known"
        )
        raise AdapterError(f"the file can't be given other names: {reason}.")
    scheme = scheme_of(scheme_name, family)
    # Group the modules by row and block: parts that one scheme fuses, or a fused module by itself.
    placed: dict[tuple[str, Row, tuple[int, ...]], dict[int | None, Module]] = {}
    for name, module in modules.items():
        target = known.targets[name]
        group = placed.setdefault((target.component, target.row, target.numbers), {})
        if target.part in group or (group and (None in group or target.part is None)):
            raise AdapterError(f"{name} stands twice, in two spellings; which one counts is not said.")
        # Only a low-rank update's outputs can be put into another order.
        if (
            not isinstance(module.update, Delta)
            and (target.spelling == "diffusers") == scheme.original
            and target.swaps(*(_shape(module) or (0, 1)))
        ):
            raise AdapterError(
                f"{name} ({module.method}) has its halves the other way round in {scheme_name} names; make it a plain "
                f"LoRA first."
            )
        group[target.part] = replace(module, update=_in_diffusers_order(module.update, target))
    # Rename each group.
    renamed: dict[str, Module] = {}
    for (component, row, numbers), parts in placed.items():
        renamed |= _renamed(family, known.size, Target(component, row, numbers, None, "both", ""), parts, scheme)
    return spelled(scheme, renamed)


def as_it_was(modules: Mapping[str, Module], known: Named) -> Spelled:
    """Modules under the names that they have, with new numbers; one alpha for those that are spelled as kohya does."""
    dotted = {
        name
        for name, module in modules.items()
        if known.scheme == "xlabs" or any(suffix.startswith("lora_A") for suffix in module.parts)
    }
    with_alpha = Scheme("kohya", "", original=False, dotted=False, alpha=True)
    without = Scheme("xlabs" if known.scheme == "xlabs" else "bare", "", original=False, dotted=True, alpha=False)
    first = spelled(with_alpha, {name: module for name, module in modules.items() if name not in dotted})
    second = spelled(without, {name: modules[name] for name in dotted})
    return Spelled(first.modules | second.modules, first.metadata or second.metadata)


def plain(family: Family, updates: Mapping[str, Update], scheme: str, size: str = "") -> Spelled:
    """Updates by `component.module.path`, as training or merging makes them, under a scheme's names.

    Raises: AdapterError.
    """
    targets = {}
    for path in updates:
        component, _, name = path.partition(".")
        target = names.look_up(family, component, name, f"{component}.")
        if target is None:
            raise AdapterError(f"{path} is no layer of {family.title} whose name is known; nothing was written.")
        targets[path] = target
    known = Named("diffusers", family, size, targets, (), ())
    return spell(known, {path: Module(update, "lora", None, {}, {}) for path, update in updates.items()}, scheme)


def _renamed(
    family: Family, size: str, target: Target, parts: dict[int | None, Module], scheme: Scheme
) -> dict[str, Module]:
    """One row's modules under their new names, fused or split as the scheme has them."""
    is_original = scheme.original and target.component == family.component
    whole_name = module_name(family, target, None, scheme)
    # A module that stays whole.
    if len(target.row.paths) == 1 or (is_original and None in parts):
        (module,) = parts.values()
        return {whole_name: replace(module, update=_swapped(module.update, target)) if is_original else module}
    # Several that are fused into one module.
    if is_original:
        return {whole_name: _fused(family, size, target, parts)}
    # Several stay several.
    if None not in parts:
        return {module_name(family, target, part, scheme): module for part, module in parts.items()}
    # A fused module taken apart; parts that were not trained are left out.
    split = dict(enumerate(_split(target, parts[None])))
    # If none was trained, all are written: a file without modules is none.
    trained = {part: module for part, module in split.items() if module.update and not fusing.is_nothing(module.update)}
    return {module_name(family, target, part, scheme): module for part, module in (trained or split).items()}


def _in_diffusers_order(update: Update | None, target: Target) -> Update | None:
    """The update of a module that the target spells, with its outputs in diffusers' order."""
    return update if target.spelling == "diffusers" else _swapped(update, target)


def _swapped(update: Update | None, target: Target) -> Update | None:
    """The update with shift and scale in the other order, where the target's are."""
    if isinstance(update, Delta) and target.swaps(*_flat_shape(update)):
        return update.rows(fusing.indices((update.shape[0],), True)[0])
    return update


def _flat_shape(update: Delta) -> tuple[int, int]:
    """Outputs, and inputs with a kernel counted in."""
    return update.shape[0], update.down[0].numel()


def _shape(module: Module) -> tuple[int, int] | None:
    return weight_shapes.shape_of({suffix: tuple(tensor.shape) for suffix, tensor in module.parts.items()})


def _split(target: Target, module: Module) -> list[Module]:
    """A fused module as one for each layer. Raises: AdapterError if it can't be split."""
    shape = _shape(module) or (_flat_shape(module.update) if isinstance(module.update, Delta) else None)
    heights = target.parts(*shape) if shape else None
    where = " and ".join(target.paths)
    if module.update is None or heights is None:
        raise AdapterError(f"a fused module can't be taken apart into {where}: its sizes don't tell where one ends.")
    updates = fusing.split(module.update, heights)
    if updates is None or not all(isinstance(update, Delta) or is_dora(update) for update in updates):
        raise AdapterError(
            f"a {module.method} module can't be taken apart into {where}; make it a plain LoRA first (`velatura lora "
            f"to-plain`)."
        )
    return [Module(update, module.method, None, {}, {}) for update in updates]


def _fused(family: Family, size: str, target: Target, parts: dict[int | None, Module]) -> Module:
    """Several layers' modules as one; layers that have none stay unchanged by it. Raises: AdapterError."""
    row = target.row
    given = [parts[number].update if number in parts else None for number in range(len(row.paths))]
    updates = [update if isinstance(update, Delta) else None for update in given]
    low_ranks = [update for update in updates if update is not None]
    where = filled(row.original, target.numbers)
    if len(low_ranks) < len(parts):
        raise AdapterError(
            f"{', '.join(sorted({module.method for module in parts.values()}))} can't be fused into {where}; make it a "
            f"plain LoRA first."
        )
    # How many outputs each layer has. One that isn't in the file has those of the model's size, or those of another
    # layer with the same symbol.
    values = next((dict(known.values) for known in family.sizes if known.name == size), {})
    if row.into.isalpha():
        values[row.into] = low_ranks[0].down[0].numel()
    heights: list[int] = []
    for text, update in zip(row.outs, updates, strict=True):
        if update is not None and text.isalpha():
            values[text] = update.shape[0]
        height = (update.shape[0],) if update is not None else amounts(text, values)
        if not height:
            raise AdapterError(
                f"{where} can't be written: {row.paths[len(heights)]} isn't in the file, and its width isn't known."
            )
        heights.append(height[0])
    return Module(fusing.fuse(updates, tuple(heights)), "lora", None, {}, {})
