"""The end of a run: the LoRA file in the names every other tool loads, opened again and compared with what was trained."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import __version__, base_match, files, lora_file, methods
from trainer.config import recipe
from trainer.data import Dataset, archives
from trainer.deltas import Delta
from trainer.errors import RunError
from trainer.lora_file import names, renaming
from trainer.training_model import TrainingModel

_TOLERANCE = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
_PLAIN = {"lora_down.weight", "lora_up.weight", "alpha"}
_LENGTHS = "dora_scale"  # of DoRA
_MAX_TAGS = 2000


def write(model: TrainingModel, path: Path, dataset: Dataset, extra_metadata: dict[str, str] | None = None) -> float:
    """Write what is trained to `path`, open it again, compare; the adapter's norm. `extra_metadata` are further header entries.

    Raises: RunError if the file isn't what was trained, or nothing was.
    """
    config = model.config
    method = methods.registry()[config.adapter.method]
    modules = {f"{component}.{name}": tensors for component, attached in model.attachments.items() for name, tensors in attached.modules().items()}
    parts = {module: method.to_file(tensors, config.adapter) for module, tensors in modules.items()}
    spelled = {model.file_keys[module]: tensors for module, tensors in parts.items()}
    metadata = _metadata(model, dataset) | method.header(config.adapter) | (extra_metadata or {})
    if model.family.file_names == "peft":
        spelled, own = _in_fused_names(model, parts) or _in_diffusers_names(spelled, [*model.attachments])
        metadata |= own
    words = {model.word.name: model.word.in_file()} if model.word else {}
    with files.replacing(path) as unproved:  # it gets its name when it is proved good
        lora_file.save(unproved, spelled, metadata, getattr(torch, config.save_dtype), words)
        norm = _proved(model, unproved, path.name)
        _prove_words(unproved, words, config.save_dtype)
    return norm


def _in_fused_names(model: TrainingModel, modules: dict[str, dict[str, Tensor]]) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]] | None:
    """Plain LoRA in the names that the family's tools read, layers fused as they are there, where the family has such for this base.

    A fused module has as much rank as its layers together; the header keeps the rank and alpha that were trained.
    """
    scheme, size = model.family.named_as(model.pipe, set(modules)) if model.family.named_as else ("", "")
    if not scheme or any(set(parts) != _PLAIN for parts in modules.values()):
        return None
    updates = {
        module: Delta(down := parts["lora_down.weight"], parts["lora_up.weight"], float(parts["alpha"]) / len(down)) for module, parts in modules.items()
    }
    spelled = renaming.plain(names.registry()[model.family.name], updates, scheme, size)
    return spelled.modules, {} if scheme == "kohya" else spelled.metadata


def _in_diffusers_names(modules: dict[str, dict[str, Tensor]], components: list[str]) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """LoRA and DoRA as diffusers spells them and the header entry that tells their alpha; what isn't low-rank stays as LyCORIS spells it.

    Every update has one rank and, `up` taking in the scale, an alpha like it: ComfyUI reads no alpha here, and diffusers before 0.42 takes
    other ranks than the most common one at a scale that is wrong. Lower ranks are filled up with zeros.
    """
    plain = {key: parts for key, parts in modules.items() if set(parts) - {_LENGTHS} == _PLAIN}
    has_lengths = any(_LENGTHS in parts for parts in plain.values())
    rank = max((len(parts["lora_down.weight"]) for parts in plain.values()), default=0)
    found = {key: parts for key, parts in modules.items() if key not in plain}
    for key, parts in plain.items():
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        missing, up = rank - len(down), up * (float(parts["alpha"]) / len(down))
        found[key] = {
            "lora_A.weight": torch.cat([down, down.new_zeros(missing, *down.shape[1:])]),
            "lora_B.weight": torch.cat([up, up.new_zeros(len(up), missing, *up.shape[2:])], 1),
        } | ({"lora_magnitude_vector": parts[_LENGTHS].flatten()} if _LENGTHS in parts else {})
    own: dict[str, Any] = {}
    for component in components:
        # Without `text_model.`, which ends a path with it too, and is all of one without.
        if targets := sorted(key.removeprefix(f"{component}.").removeprefix("text_model.") for key in plain if key.startswith(f"{component}.")):
            values = {"r": rank, "lora_alpha": rank, "target_modules": targets, "rank_pattern": {}, "alpha_pattern": {}, "lora_bias": False}
            own |= {f"{component}.{key}": value for key, value in (values | {"use_dora": has_lengths, "use_rslora": False}).items()}
    scale = {"ss_network_dim": str(rank), "ss_network_alpha": str(float(rank)), "lora_adapter_metadata": json.dumps(own, sort_keys=True)}
    return found, scale if own else {}


def _proved(model: TrainingModel, unproved: Path, name: str) -> float:
    """The norm of what the file does to the base, if that is what the adapter does, as PEFT merges it, and no more. Raises: RunError."""
    weights = model.base_weights()
    found = lora_file.read(unproved, model.file_keys, {module: tuple(weight.shape) for module, weight in weights.items()})
    modules = {f"{component}.{module}" for component, attached in model.attachments.items() for module in attached.layers}
    if more := set(found) - modules:
        raise RunError(f"{name} changes {len(more)} modules that were not trained, such as {min(more)}; the checkpoint is good.")
    lost = []
    square, base_square, worst = 0.0, 0.0, 0.0
    nothing = torch.finfo(torch.float32).eps  # of the base: DoRA's lengths are rounded, so its nothing is not quite zero
    for component, attached in model.attachments.items():
        for module in attached.layers:
            trained, base = attached.change(module), attached.base(module)
            square, base_square = square + float(trained.square().sum()), base_square + float(base.double().square().sum())
            update = found.get(f"{component}.{module}")
            if update is None:  # a fused module has no place for one of its layers that changes nothing
                lost += [module] if trained.any() else []
                continue
            written = update.dense(base, torch.float64)
            size = max(float(trained.norm()), nothing * float(base.double().norm()), 1e-30)
            worst = max(worst, float((written - trained).norm()) / size)
    if lost:
        raise RunError(f"{name} lost {len(lost)} of {len(modules)} modules when it was saved; the checkpoint is good.")
    if worst > _TOLERANCE[model.config.save_dtype]:
        raise RunError(f"{name} differs from what was trained by {worst:.1e}; the checkpoint is good.")
    if square <= nothing**2 * base_square:
        raise RunError(
            f"{name} would do nothing: the adapter is zero. Raise learning_rate or max_steps; if there are masks, look at whether they leave anything to learn."
        )
    return math.sqrt(square)


def _prove_words(unproved: Path, words: dict[str, dict[str, Tensor]], dtype: str) -> None:
    found = lora_file.embeddings(unproved)
    for word, parts in words.items():
        saved = found.get(word, {})
        far = [key for key in parts if key in saved and float((saved[key].to(parts[key]) - parts[key]).norm()) > _TOLERANCE[dtype] * float(parts[key].norm())]
        if saved.keys() != parts.keys() or far:
            raise RunError(f"the word {word!r} was not saved as it was trained; the checkpoint is good.")


def _metadata(model: TrainingModel, dataset: Dataset) -> dict[str, str]:
    """The header: what other tools read, and our recipe. Nothing of when, where or by which name (see `lora_file`)."""
    config, family = model.config, model.family
    kind = archives.name_of(Path(config.data.folder))
    title = config.data.trigger or kind
    items = [item for item in dataset.items if not item.regular]
    tags = Counter(tag.strip() for item in items for caption in item.captions for tag in caption.split(",") if tag.strip())
    own = {"config": recipe(config), "dataset": {"digest": dataset.digest, "num_pictures": len(items)}, "velatura": __version__}
    return {
        lora_file.RECIPE_KEY: json.dumps(own, sort_keys=True, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": family.architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{config.resolution_px}x{config.resolution_px}",
        "modelspec.prediction_type": model.schedule.prediction,
        "modelspec.trigger_phrase": config.data.trigger,
        "ss_base_model_version": family.base_version,
        "ss_v2": str(model.is_v2),
        base_match.NAME_KEY: recipe(config)["base"],
        **base_match.header(model.trained_on),
        "ss_learning_rate": str(config.learning_rate),
        "ss_steps": str(config.max_steps),
        "ss_max_train_steps": str(config.max_steps),
        "ss_seed": str(config.seed),
        "ss_num_train_images": str(len(items)),
        "ss_resolution": f"({config.resolution_px}, {config.resolution_px})",
        "ss_tag_frequency": json.dumps({f"1_{kind}": dict(tags.most_common(_MAX_TAGS))}, ensure_ascii=False),
    }
