"""Proof that a LoRA file means the same to every tool: through every scheme's names and back, and through diffusers.

diffusers is tried in two ways. The converter of the family's pipeline makes its own names and scales of the file, which
needs no model. With a base, the pipeline loads the file, and every layer's update is compared with the one read here.
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

import diffusers
import torch
from diffusers.loaders import lora_pipeline
from peft.tuners.lora import LoraLayer

from trainer import bases, methods
from trainer.deltas import Decomposed, Delta, Update
from trainer.errors import AdapterError
from trainer.lora_file import header_meaning, renaming, tool_names, writing
from trainer.lora_file.header import by_module, split
from trainer.lora_file.names import look_up
from trainer.lora_tools.opening import Opened, open_file, updates

if TYPE_CHECKING:
    from torch import Tensor

WORST = 1e-5  # relative difference of a layer's update that counts as equal


@dataclass(frozen=True)
class Proof:
    """What came back of a file that was sent one way."""

    through: str  # the way
    layers: int  # that came back
    of: int
    error: float | None  # the largest relative difference of a layer
    why: str  # what was lost, or stood in the way

    @property
    def holds(self) -> bool:
        return self.layers == self.of and self.error is not None and self.error <= WORST


def verify(file: Path, base: Path | None = None) -> list[Proof]:
    """Every proof there is for a file; `base` is a diffusers folder to load it into as well.

    Raises: AdapterError if the file itself can't be read.
    """
    source = open_file(file)
    ours = updates(source)
    proofs = [_through_names(source, ours, scheme) for scheme in tool_names.SCHEMES]
    proofs.append(_through_converter(source, ours))
    if base is not None:
        proofs.append(_through_pipeline(source, ours, base))
    return proofs


def _through_names(source: Opened, ours: Mapping[str, Update], scheme: str) -> Proof:
    """Written under a scheme's names in float32, read back."""
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
    """The header entry that names the family, for names that several families share."""
    return {"ss_base_model_version": source.known.family.base_version} if source.known.family else {}


def _compared(through: str, ours: Mapping[str, Update], theirs: Mapping[str, Update]) -> Proof:
    """What came back by layers' updates."""
    both = ours.keys() & theirs.keys()
    extra = [path for path in theirs if path not in ours]
    error = max((difference(ours[path], theirs[path]) for path in both), default=0.0)
    return Proof(through, len(both) if not extra else 0, len(ours), error, _why(extra, len(both), len(ours)))


def _why(extra: list[str], num: int, of: int) -> str:
    """What is wrong with the layers that came back: some too many, or too few."""
    if extra:
        return f"{len(extra)} layers more, such as {extra[0]}"
    return f"{of - num} layers lost" if num < of else ""


def worst_difference(one: Opened, other: Opened) -> float:
    """The largest relative difference between two files' updates of a layer.

    Raises: AdapterError if they don't have the same layers.
    """
    if any(module.extras for module in one.modules.values()):
        return _raw_difference(one, other)
    ours, theirs = updates(one), updates(other)
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        raise AdapterError(
            f"{other.path.name} has other layers than {one.path.name}: {len(odd)} differ, such as {odd[0]}."
        )
    return max((difference(ours[path], theirs[path]) for path in ours), default=0.0)


def _raw_difference(one: Opened, other: Opened) -> float:
    """The same of files that set biases too, whose modules are compared as they stand."""
    if len(one.modules) != len(other.modules):
        raise AdapterError(f"{other.path.name} has {len(other.modules)} modules, {one.path.name} {len(one.modules)}.")
    by_layers = {other.known.targets[name].paths: module for name, module in other.modules.items()}
    worst = 0.0
    for name, module in one.modules.items():
        same = by_layers[one.known.targets[name].paths]
        for suffix, tensor in module.extras.items():
            gap = float((same.extras[suffix].float() - tensor.float()).norm())
            worst = max(worst, gap / max(float(tensor.float().norm()), 1e-30))
        if module.update is not None and same.update is not None:
            worst = max(worst, difference(module.update, same.update))
    return worst


def difference(one: Update, other: Update) -> float:
    """||a - b|| / ||a|| of two updates.

    Where both are low-rank it comes from the factors' Gram matrices, good to 1e-7, so that no large matrix is made.
    """
    # Low-rank: a - b = [up_a, -up_b] @ [down_a; down_b].
    if isinstance(one, Delta) and isinstance(other, Delta):
        if one.shape[0] != other.shape[0] or one.down[0].numel() != other.down[0].numel():
            return float("inf")
        # Equal factors are equal updates; their difference would be one of rounding.
        if one.scale == other.scale and torch.equal(one.down, other.down) and torch.equal(one.up, other.up):
            return 0.0
        up = torch.cat([one.up.flatten(1).double() * one.scale, other.up.flatten(1).double() * -other.scale], 1)
        down = torch.cat([one.down.flatten(1).double(), other.down.flatten(1).double()])
        square = float(((down @ down.T) * (up.T @ up)).sum())
        return math.sqrt(max(0.0, square) / max(one.squared_norm(), 1e-60))

    # Others: each of their tensors.
    if type(one) is not type(other):
        return float("inf")
    if isinstance(one, Decomposed) and isinstance(other, Decomposed):
        return max(difference(one.inner, other.inner), _gap(one.lengths, other.lengths))
    low, lengths = getattr(one, "low", None), getattr(one, "lengths", None)
    if low is not None and lengths is not None:
        return max(difference(low, getattr(other, "low")), _gap(lengths, getattr(other, "lengths")))  # noqa: B009
    tensors, others = _numbers(one), _numbers(other)
    if len(tensors) != len(others):
        return float("inf")
    return max((_gap(a, b) for a, b in zip(tensors, others, strict=True)), default=0.0)


def _gap(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||a||; infinite if they have different sizes."""
    if a.numel() != b.numel():
        return float("inf")
    return float((a.double().flatten() - b.double().flatten()).norm()) / max(float(a.double().norm()), 1e-30)


def _numbers(update: Any) -> list[Tensor]:
    """Every tensor and number of an update that isn't low-rank, in order.

    A scale is multiplied into the first tensor, since files keep it in different places.
    """
    fields = [item for value in vars(update).values() for item in (value if isinstance(value, tuple) else (value,))]
    tensors = [item for item in fields if isinstance(item, torch.Tensor)]
    if hasattr(update, "scale"):
        return [tensors[0].double() * update.scale, *tensors[1:]]
    return tensors + [torch.tensor([float(item)]) for item in fields if isinstance(item, (int, float))]


def _through_converter(source: Opened, ours: Mapping[str, Update]) -> Proof:
    """What diffusers' converter of the family makes of the file, without a model."""
    family, through = source.family(), "diffusers' converter"
    bases.quiet_libraries()
    pipeline = getattr(lora_pipeline, f"{family.loader}LoraLoaderMixin", None) if family.loader else None
    if pipeline is None:
        return Proof(through, 0, len(ours), None, f"this diffusers loads no LoRAs for {family.title}")
    # SDXL's converter wants the UNet's depth to tell SGM's blocks apart.
    more = {"unet_config": SimpleNamespace(layers_per_block=2)} if family.name == "sdxl" else {}
    try:
        loaded = pipeline.lora_state_dict(
            str(source.path.parent), weight_name=source.path.name, use_safetensors=True, local_files_only=True, **more
        )
    except (ValueError, KeyError, IndexError, AssertionError, RuntimeError) as error:
        return Proof(through, 0, len(ours), None, f"{type(error).__name__}: {str(error)[:200]}")
    state, alphas = loaded if isinstance(loaded, tuple) else (loaded, None)
    theirs = _updates_of(state, alphas or {}, source)
    if _in_pefts_names(source.modules) and not ours.keys() & theirs.keys():
        return _unread(through, ours)
    return _compared(through, ours, theirs)


def _in_pefts_names(modules: Iterable[str]) -> bool:
    return all(module.startswith("base_model.model.") for module in modules)


def _unread(through: str, ours: Mapping[str, Update]) -> Proof:
    """The result for a file that diffusers ignores whole: nothing is changed, since nothing is read."""
    why = (
        "it has PEFT's own names, which diffusers doesn't read for this base: it would draw as if the LoRA weren't "
        "there. Write it with names that it reads: velatura lora convert FOLDER --out NAME.safetensors"
    )
    return Proof(through, 0, len(ours), None, why)


def _updates_of(state: Mapping[str, Tensor], alphas: Mapping[str, float], source: Opened) -> dict[str, Update]:
    """diffusers' tensors as updates by path; an alpha stands under the name of the module's first factor."""
    # Alphas: diffusers' own, else those of the file's header.
    family = source.family()
    in_header = header_meaning.stated(source.path.name, source.header.metadata).alpha
    plain_keys = {key: key.removesuffix(".alpha") for key in alphas}
    own = {(parts[0] if (parts := split(plain)) else plain): float(alphas[key]) for key, plain in plain_keys.items()}
    by_path: dict[str, Update] = {}
    for module, grouped in by_module(state)[0].items():
        # Which layer it is.
        component, _, name = module.replace(".processor.", ".").partition(".")
        if component.startswith("text_encoder"):  # named as attention of a UNet until it is loaded
            name = re.sub(r"self_attn\.to_(q|k|v|out)$", r"self_attn.\1_proj", name)
        target = look_up(family, component, name) or look_up(family, component, f"{name}.0")
        # Its factors, in one of three spellings.
        down = _first(state, grouped, "lora_A.weight", "lora_down.weight", "lora.down.weight")
        up = _first(state, grouped, "lora_B.weight", "lora_up.weight", "lora.up.weight")
        if down is None or up is None:
            continue
        alpha = own[module] if module in own else in_header(module, len(down))
        path = target.paths[0] if target else module
        lengths = grouped.get("lora_magnitude_vector")
        if lengths is None:
            by_path[path] = Delta(down, up, 1.0 if alpha is None else alpha / len(down))
        else:
            tensors = {"lora_A.weight": down, "lora_B.weight": up, "lora_magnitude_vector": state[lengths]}
            by_path[path] = methods.registry()["dora"].from_file(tensors, alpha)
    return by_path


def _first(state: Mapping[str, Tensor], grouped: Mapping[str, str], *suffixes: str) -> Tensor | None:
    """The first tensor of a module, in the file's order, that has one of these suffixes."""
    return next((state[name] for suffix, name in grouped.items() if suffix in suffixes), None)


def _through_pipeline(source: Opened, ours: Mapping[str, Update], base: Path) -> Proof:
    """What diffusers' pipeline adds to a base: the update of every layer that has an update."""
    # Load.
    bases.quiet_libraries()
    through = "diffusers' pipeline"
    base = bases.folder_of(str(base))
    pipe = diffusers.DiffusionPipeline.from_pretrained(str(base), local_files_only=True, use_safetensors=True)
    try:
        pipe.load_lora_weights(str(source.path.parent), weight_name=source.path.name, use_safetensors=True)
    except (ValueError, KeyError, RuntimeError, AssertionError) as error:
        return Proof(through, 0, len(ours), None, f"{type(error).__name__}: {str(error)[:200]}")

    # Compare what merging each layer changes.
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
    return Proof(through, 0 if extra else len(seen), len(ours), worst, _why(extra, len(seen), len(ours)))
