"""Proof that a LoRA file says the same to everyone: through every scheme's names and back, and through diffusers' own loader.

diffusers is asked twice: its converter of the family's pipeline makes its own names and scales of the file, which needs no model; and with a
base, its pipeline loads the file, and every layer's update is compared with ours.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from trainer import methods
from trainer.deltas import Decomposed, Delta, Update
from trainer.errors import AdapterError
from trainer.lora_file import renaming, writing
from trainer.lora_tools.opening import Opened, open_file, updates

if TYPE_CHECKING:
    from torch import Tensor

WORST = 1e-5  # relative difference of a layer's update that counts as equal


@dataclass(frozen=True)
class Proof:
    """One way there and back: how many layers came back, of how many, the largest relative difference, and what stood in the way."""

    through: str
    layers: int
    of: int
    error: float | None
    why: str

    @property
    def holds(self) -> bool:
        return self.layers == self.of and self.error is not None and self.error <= WORST


def verify(file: Path, base: Path | None = None) -> list[Proof]:
    """Every proof there is for a file; `base` is a diffusers folder to load it into as well. Raises: AdapterError if the file itself can't be read."""
    source = open_file(file)
    ours = updates(source)
    proofs = [_through_names(source, ours, scheme) for scheme in renaming.SCHEMES]
    proofs.append(_through_converter(source, ours))
    if base is not None:
        proofs.append(_through_pipeline(source, ours, base))
    return proofs


def _through_names(source: Opened, ours: Mapping[str, Update], scheme: str) -> Proof:
    """Written under a scheme's names in float32, read back."""
    import torch

    try:
        spelled = renaming.spell(source.known, source.modules, scheme)
    except AdapterError as error:
        return Proof(f"{scheme} names", 0, len(ours), None, str(error))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        writing.save(path, spelled.modules, spelled.metadata | _version(source), torch.float32)
        theirs = updates(open_file(path))
    return _compared(f"{scheme} names", ours, theirs)


def _version(source: Opened) -> dict[str, str]:
    """Which family it is, for names that several share."""
    return {"ss_base_model_version": source.known.family.base_version} if source.known.family else {}


def _compared(through: str, ours: Mapping[str, Update], theirs: Mapping[str, Update]) -> Proof:
    both = ours.keys() & theirs.keys()
    extra = [path for path in theirs if path not in ours]
    error = max((difference(ours[path], theirs[path]) for path in both), default=0.0)
    why = f"{len(extra)} layers more, such as {extra[0]}" if extra else f"{len(ours) - len(both)} layers lost" if len(both) < len(ours) else ""
    return Proof(through, len(both) if not extra else 0, len(ours), error, why)


def worst_difference(one: Opened, other: Opened) -> float:
    """The largest relative difference between two files' updates of a layer. Raises: AdapterError if they don't have the same layers."""
    if any(module.extras for module in one.modules.values()):
        return _raw_difference(one, other)
    ours, theirs = updates(one), updates(other)
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        raise AdapterError(f"{other.path.name} has other layers than {one.path.name}: {len(odd)} differ, such as {odd[0]}.")
    return max((difference(ours[path], theirs[path]) for path in ours), default=0.0)


def _raw_difference(one: Opened, other: Opened) -> float:
    """Of files that set biases too, whose modules are compared as they stand."""
    if len(one.modules) != len(other.modules):
        raise AdapterError(f"{other.path.name} has {len(other.modules)} modules, {one.path.name} {len(one.modules)}.")
    found = {other.known.targets[module].paths: module for module in other.modules}
    worst = 0.0
    for module, mine in one.modules.items():
        theirs = other.modules[found[one.known.targets[module].paths]]
        for suffix, tensor in mine.extras.items():
            worst = max(worst, float((theirs.extras[suffix].float() - tensor.float()).norm()) / max(float(tensor.float().norm()), 1e-30))
        if mine.update is not None and theirs.update is not None:
            worst = max(worst, difference(mine.update, theirs.update))
    return worst


def difference(one: Update, other: Update) -> float:
    """||a - b|| / ||a||; from the factors' Gram matrices where both are low-rank, good to 1e-7, so that no large matrix is made."""
    import torch

    if isinstance(one, Delta) and isinstance(other, Delta):
        if one.shape[0] != other.shape[0] or one.down[0].numel() != other.down[0].numel():
            return float("inf")
        if one.scale == other.scale and torch.equal(one.down, other.down) and torch.equal(one.up, other.up):
            return 0.0
        up = torch.cat([one.up.flatten(1).double() * one.scale, other.up.flatten(1).double() * -other.scale], 1)
        down = torch.cat([one.down.flatten(1).double(), other.down.flatten(1).double()])
        square = float(((down @ down.T) * (up.T @ up)).sum())
        return math.sqrt(max(0.0, square) / max(one.squared_norm(), 1e-60))
    if type(one) is not type(other):
        return float("inf")
    if isinstance(one, Decomposed) and isinstance(other, Decomposed):
        return max(difference(one.inner, other.inner), _gap(one.lengths, other.lengths))
    low, lengths = getattr(one, "low", None), getattr(one, "lengths", None)
    if low is not None and lengths is not None:
        return max(difference(low, getattr(other, "low")), _gap(lengths, getattr(other, "lengths")))  # noqa: B009
    tensors, others = _numbers(one), _numbers(other)
    return max((_gap(mine, theirs) for mine, theirs in zip(tensors, others, strict=False)), default=0.0) if len(tensors) == len(others) else float("inf")


def _gap(mine: Tensor, theirs: Tensor) -> float:
    if mine.numel() != theirs.numel():
        return float("inf")
    return float((mine.double().flatten() - theirs.double().flatten()).norm()) / max(float(mine.double().norm()), 1e-30)


def _numbers(update: Any) -> list[Tensor]:
    """Every tensor and number of an update that isn't low-rank, in order; a scale in the first tensor, wherever a file keeps it."""
    import torch

    values = [one for value in vars(update).values() for one in (value if isinstance(value, tuple) else (value,))]
    found = [one for one in values if isinstance(one, torch.Tensor)]
    if hasattr(update, "scale"):
        return [found[0].double() * update.scale, *found[1:]]
    return found + [torch.tensor([float(one)]) for one in values if isinstance(one, (int, float))]


def _through_converter(source: Opened, ours: Mapping[str, Update]) -> Proof:
    """What diffusers' converter of the family makes of the file, without a model."""
    family, through = source.family(), "diffusers' converter"
    from trainer import bases

    bases.quiet_libraries()
    from diffusers.loaders import lora_pipeline

    pipeline = getattr(lora_pipeline, f"{family.loader}LoraLoaderMixin", None) if family.loader else None
    if pipeline is None:
        return Proof(through, 0, len(ours), None, f"this diffusers loads no LoRAs for {family.title}")
    more = {"unet_config": SimpleNamespace(layers_per_block=2)} if family.name == "sdxl" else {}
    try:
        found = pipeline.lora_state_dict(str(source.path.parent), weight_name=source.path.name, use_safetensors=True, local_files_only=True, **more)
    except (ValueError, KeyError, IndexError, AssertionError, RuntimeError) as error:
        return Proof(through, 0, len(ours), None, f"{type(error).__name__}: {str(error)[:200]}")
    state, alphas = found if isinstance(found, tuple) else (found, None)
    theirs = _theirs(state, alphas or {}, source)
    return _unread(through, ours) if _in_pefts_names(source.modules) and not ours.keys() & theirs.keys() else _compared(through, ours, theirs)


def _in_pefts_names(modules: Iterable[str]) -> bool:
    return all(module.startswith("base_model.model.") for module in modules)


def _unread(through: str, ours: Mapping[str, Update]) -> Proof:
    """Of a file that diffusers passes over whole: nothing is changed, since nothing is read."""
    return Proof(
        through, 0, len(ours), None,
        "it has PEFT's own names, which diffusers doesn't read for this base: it would draw as if the LoRA weren't there. "
        "Write it with names that it reads: velatura lora convert FOLDER --out NAME.safetensors",
    )  # fmt: skip


def _theirs(state: Mapping[str, Tensor], alphas: Mapping[str, float], source: Opened) -> dict[str, Update]:
    """diffusers' tensors as updates by path; an alpha stands under the name of the module's first factor."""
    from trainer.lora_file import header_meaning
    from trainer.lora_file.header import by_module, split
    from trainer.lora_file.names import look_up

    family = source.family()
    in_header = header_meaning.stated(source.path.name, source.header.metadata).alpha
    keys = {key: key.removesuffix(".alpha") for key in alphas}
    own = {(parts[0] if (parts := split(plain)) else plain): float(alphas[key]) for key, plain in keys.items()}
    found: dict[str, Update] = {}
    for module, grouped in by_module(state)[0].items():
        component, _, name = module.replace(".processor.", ".").partition(".")
        if component.startswith("text_encoder"):  # named as attention of a UNet until it is loaded
            name = re.sub(r"self_attn\.to_(q|k|v|out)$", r"self_attn.\1_proj", name)
        target = look_up(family, component, name) or look_up(family, component, f"{name}.0")
        down = next((state[whole] for suffix, whole in grouped.items() if suffix in ("lora_A.weight", "lora_down.weight", "lora.down.weight")), None)
        up = next((state[whole] for suffix, whole in grouped.items() if suffix in ("lora_B.weight", "lora_up.weight", "lora.up.weight")), None)
        if down is None or up is None:
            continue
        alpha = own[module] if module in own else in_header(module, len(down))
        plain, lengths = Delta(down, up, 1.0 if alpha is None else alpha / len(down)), grouped.get("lora_magnitude_vector")
        whole = {"lora_A.weight": down, "lora_B.weight": up} | ({} if lengths is None else {"lora_magnitude_vector": state[lengths]})
        found[target.paths[0] if target else module] = plain if lengths is None else methods.registry()["dora"].from_file(whole, alpha)
    return found


def _through_pipeline(source: Opened, ours: Mapping[str, Update], base: Path) -> Proof:
    """Loaded by diffusers' pipeline into a base: the update of every layer that has one."""
    import torch
    from peft.tuners.lora import LoraLayer

    from trainer import bases

    bases.quiet_libraries()
    import diffusers

    through = "diffusers' pipeline"
    base = bases.folder_of(str(base))
    pipe = diffusers.DiffusionPipeline.from_pretrained(str(base), local_files_only=True, use_safetensors=True)
    try:
        pipe.load_lora_weights(str(source.path.parent), weight_name=source.path.name, use_safetensors=True)
    except (ValueError, KeyError, RuntimeError, AssertionError) as error:
        return Proof(through, 0, len(ours), None, f"{type(error).__name__}: {str(error)[:200]}")
    plain = {path.replace(".text_model.", "."): path for path in ours}
    seen, worst, extra = set(), 0.0, []
    for component in sorted({path.split(".")[0] for path in ours}):
        for name, layer in getattr(pipe, component).named_modules():
            if not isinstance(layer, LoraLayer):
                continue
            path = plain.get(f"{component}.{name}".replace(".text_model.", "."))
            if path is None:
                extra.append(f"{component}.{name}")
                continue
            weight = layer.get_base_layer().weight.detach().double().clone()
            layer.double().merge()  # as PEFT puts it into the weight: DoRA's lengths are no part of its delta
            theirs = layer.get_base_layer().weight.detach() - weight
            mine = ours[path].dense(weight, torch.float64)
            worst = max(worst, float((mine - theirs).norm()) / max(float(mine.norm()), 1e-30))
            seen.add(path)
    if not seen and not extra and _in_pefts_names(source.modules):
        return _unread(through, ours)
    why = f"{len(extra)} layers more, such as {extra[0]}" if extra else f"{len(ours) - len(seen)} layers lost" if len(seen) < len(ours) else ""
    return Proof(through, 0 if extra else len(seen), len(ours), worst, why)
