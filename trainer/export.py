"""The end of a run: the LoRA file in the names that other tools load, opened again and compared with the adapter."""

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

# Of an update's norm: twice the dtype's epsilon, since both factors are rounded; in float32 the sums count as well.
_TOLERANCE = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
_PLAIN = {"lora_down.weight", "lora_up.weight", "alpha"}
_LENGTHS = "dora_scale"  # of DoRA
_MAX_TAGS = 2000


def write(model: TrainingModel, path: Path, dataset: Dataset, extra_metadata: dict[str, str] | None = None) -> float:
    """Write what is trained to `path`, open it again, compare; the adapter's norm.

    `extra_metadata` are further header entries. Raises: RunError if the file isn't what was trained, or nothing was.
    """
    # What is trained, in the method's form for files.
    config = model.config
    method = methods.registry()[config.adapter.method]
    modules = {
        f"{component}.{name}": tensors
        for component, attached in model.attachments.items()
        for name, tensors in attached.modules().items()
    }
    parts = {module: method.to_file(tensors, config.adapter) for module, tensors in modules.items()}

    # In the names that the family's tools read, with a header.
    spelled = {model.file_keys[module]: tensors for module, tensors in parts.items()}
    metadata = _metadata(model, dataset) | method.header(config.adapter) | (extra_metadata or {})
    if model.family.file_names == "peft":
        spelled, own = _in_fused_names(model, parts) or _in_diffusers_names(spelled, [*model.attachments])
        metadata |= own
    words = {model.word.name: model.word.in_file()} if model.word else {}

    # Written under a hidden name; it gets its own when it is proved good.
    with files.replacing(path) as unproved:
        lora_file.save(unproved, spelled, metadata, getattr(torch, config.save_dtype), words)
        norm = _proved(model, unproved, path.name)
        _prove_words(unproved, words, config.save_dtype)
    return norm


# Names.


def _in_fused_names(
    model: TrainingModel, modules: dict[str, dict[str, Tensor]]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]] | None:
    """Plain LoRA in the names that the family's tools read, and header entries; None where it has no such names.

    Layers that those tools fuse are fused. A fused module has as much rank as its layers together; the header keeps the
    rank and alpha that were trained.
    """
    scheme, size = model.family.named_as(model.pipe, set(modules)) if model.family.named_as else ("", "")
    if not scheme or any(set(parts) != _PLAIN for parts in modules.values()):
        return None
    updates = {
        module: Delta(down := parts["lora_down.weight"], parts["lora_up.weight"], float(parts["alpha"]) / len(down))
        for module, parts in modules.items()
    }
    spelled = renaming.plain(names.registry()[model.family.name], updates, scheme, size)
    return spelled.modules, {} if scheme == "kohya" else spelled.metadata


def _in_diffusers_names(
    modules: dict[str, dict[str, Tensor]], components: list[str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """LoRA and DoRA as diffusers spells them, and the header entries that tell their alpha.

    What isn't low-rank stays as LyCORIS spells it. Every update has one rank and, `up` taking in the scale, an alpha
    like it: ComfyUI reads no alpha here, and diffusers before 0.42 takes other ranks than the most common one at a
    scale that is wrong. Lower ranks are filled up with zeros.
    """
    # Low-rank updates, all brought to the largest rank among them.
    plain = {key: parts for key, parts in modules.items() if set(parts) - {_LENGTHS} == _PLAIN}
    has_lengths = any(_LENGTHS in parts for parts in plain.values())
    rank = max((len(parts["lora_down.weight"]) for parts in plain.values()), default=0)
    spelled = {key: parts for key, parts in modules.items() if key not in plain}
    for key, parts in plain.items():
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        missing, up = rank - len(down), up * (float(parts["alpha"]) / len(down))
        spelled[key] = {
            "lora_A.weight": torch.cat([down, down.new_zeros(missing, *down.shape[1:])]),
            "lora_B.weight": torch.cat([up, up.new_zeros(len(up), missing, *up.shape[2:])], 1),
        } | ({"lora_magnitude_vector": parts[_LENGTHS].flatten()} if _LENGTHS in parts else {})

    # PEFT's settings of each component, from which diffusers takes alpha.
    peft: dict[str, Any] = {}
    for component in components:
        # Without `text_model.`: where it is part of a path, the path still ends with what is left.
        keys = [key.removeprefix(f"{component}.") for key in plain if key.startswith(f"{component}.")]
        targets = sorted(key.removeprefix("text_model.") for key in keys)
        if targets:
            settings = _peft_settings(rank, targets, has_lengths)
            peft |= {f"{component}.{key}": value for key, value in settings.items()}
    if not peft:
        return spelled, {}
    return spelled, {
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "lora_adapter_metadata": json.dumps(peft, sort_keys=True),
    }


def _peft_settings(rank: int, targets: list[str], has_lengths: bool) -> dict[str, Any]:
    """The settings of PEFT's that diffusers reads from a LoRA's header."""
    return {
        "r": rank,
        "lora_alpha": rank,
        "target_modules": targets,
        "rank_pattern": {},
        "alpha_pattern": {},
        "lora_bias": False,
        "use_dora": has_lengths,
        "use_rslora": False,
    }


# Proof.


def _proved(model: TrainingModel, unproved: Path, name: str) -> float:
    """The norm of what the file adds to the base. Raises: RunError unless that is what the adapter adds, and no more.

    What the adapter adds is asked of PEFT's own merge, which shares no code with how files are written and read.
    """
    # The file, read as any other LoRA is.
    weights = model.base_weights()
    shapes = {module: tuple(weight.shape) for module, weight in weights.items()}
    updates = lora_file.read(unproved, model.file_keys, shapes)
    modules = {
        f"{component}.{module}" for component, attached in model.attachments.items() for module in attached.layers
    }
    if more := set(updates) - modules:
        raise RunError(
            f"{name} changes {len(more)} modules that were not trained, such as {min(more)}; the checkpoint is good."
        )

    # Layer by layer. DoRA's lengths are rounded, so what counts as nothing is a rounding of the base, not zero.
    lost = []
    square, base_square, worst = 0.0, 0.0, 0.0
    nothing = torch.finfo(torch.float32).eps
    for component, attached in model.attachments.items():
        for module in attached.layers:
            trained, base = attached.change(module), attached.base(module)
            square += float(trained.square().sum())
            base_square += float(base.double().square().sum())
            update = updates.get(f"{component}.{module}")
            if update is None:  # a fused module has no place for one of its layers that changes nothing
                lost += [module] if trained.any() else []
                continue
            written = update.dense(base, torch.float64)
            size = max(float(trained.norm()), nothing * float(base.double().norm()), 1e-30)
            worst = max(worst, float((written - trained).norm()) / size)

    # The verdict.
    if lost:
        raise RunError(f"{name} lost {len(lost)} of {len(modules)} modules when it was saved; the checkpoint is good.")
    if worst > _TOLERANCE[model.config.save_dtype]:
        raise RunError(f"{name} differs from what was trained by {worst:.1e}; the checkpoint is good.")
    if square <= nothing**2 * base_square:
        raise RunError(
            f"{name} would do nothing: the adapter is zero. Raise learning_rate or max_steps; if there are masks, "
            f"look at whether they leave anything to learn."
        )
    return math.sqrt(square)


def _prove_words(unproved: Path, words: dict[str, dict[str, Tensor]], dtype: str) -> None:
    """Raises: RunError unless the file has the trained words' vectors, and no others."""
    in_file = lora_file.embeddings(unproved)
    for word, parts in words.items():
        saved = in_file.get(word, {})
        if saved.keys() != parts.keys() or any(_is_far(saved[key], parts[key], dtype) for key in parts):
            raise RunError(f"the word {word!r} was not saved as it was trained; the checkpoint is good.")


def _is_far(saved: Tensor, trained: Tensor, dtype: str) -> bool:
    """True if a tensor differs from the trained one by more than the file's dtype rounds."""
    return float((saved.to(trained) - trained).norm()) > _TOLERANCE[dtype] * float(trained.norm())


# The header.


def _metadata(model: TrainingModel, dataset: Dataset) -> dict[str, str]:
    """The header: what other tools read, and our recipe. Nothing of when, where or by which name (see `lora_file`)."""
    # The dataset, as kohya's tags tell of it: its name, and how often each tag stands in the captions.
    config, family = model.config, model.family
    kind = archives.name_of(Path(config.data.folder))
    title = config.data.trigger or kind
    items = [item for item in dataset.items if not item.regular]
    tags = Counter(
        tag.strip() for item in items for caption in item.captions for tag in caption.split(",") if tag.strip()
    )

    # Everything that the run can be made again from.
    own = {
        "config": recipe(config),
        "dataset": {"digest": dataset.digest, "num_pictures": len(items)},
        "velatura": __version__,
    }
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
