"""The end of a run: the LoRA file in the names every other tool loads, opened again and compared with what was trained."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from trainer import __version__, lora_file, methods
from trainer.config import recipe
from trainer.data import Dataset
from trainer.errors import RunError
from trainer.runs import Run
from trainer.studio import Studio

_TOLERANCE = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
_MAX_TAGS = 2000


def trained_modules(studio: Studio) -> dict[str, dict[str, Tensor]]:
    """The adapter's tensors by module path: `{unet.down_blocks...to_q: {lora_A.weight: ..., lora_B.weight: ...}}`."""
    from peft import get_peft_model_state_dict

    component = next(iter(studio.family.components))
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in get_peft_model_state_dict(studio.denoiser, adapter_name="default").items():
        path, _, suffix = name.partition(".lora_")
        modules.setdefault(f"{component}.{path}", {})[f"lora_{suffix}"] = tensor
    return modules


def write(studio: Studio, run: Run, dataset: Dataset) -> float:
    """Write `<name>.safetensors`, open it again, compare; the adapter's norm.

    Raises: RunError if the file isn't what was trained, or nothing was.
    """
    config = studio.config
    method = methods.registry()[config.adapter.method]
    modules = trained_modules(studio)
    spelled = {studio.file_keys[path]: method.to_file(tensors, config.adapter) for path, tensors in modules.items()}
    unproved = run.folder / "export.tmp"  # gets its name when it is proved good
    lora_file.save(unproved, spelled, _metadata(studio, dataset), getattr(torch, config.save_dtype))

    shapes = {path: tuple(weight.shape) for path, weight in base_weights(studio).items()}
    found = lora_file.read(unproved, studio.file_keys, shapes)
    if missing := set(modules) - set(found):
        raise RunError(f"{run.lora_file} lost {len(missing)} of {len(modules)} modules when it was saved; the checkpoint is good.")
    square, worst = 0.0, 0.0
    for path, tensors in modules.items():
        down, up, alpha = method.from_file(method.to_file(tensors, config.adapter))
        trained = lora_file.Delta(down, up, alpha / down.shape[0]).dense(torch.float64)
        square += float(trained.square().sum())
        worst = max(worst, float((found[path].dense(torch.float64) - trained).norm() / trained.norm().clamp_min(1e-30)) if trained.any() else 0.0)
    if worst > _TOLERANCE[config.save_dtype]:
        raise RunError(f"{run.lora_file} differs from what was trained by {worst:.1e}; the checkpoint is good.")
    if square == 0:
        raise RunError(f"run {run.name} trained nothing: the adapter is zero. Raise learning_rate or max_steps.")
    os.replace(unproved, run.lora_file)
    return math.sqrt(square)


def base_weights(studio: Studio) -> dict[str, Tensor]:
    """The base's weights by module path, adapters attached or not."""
    weights = {}
    for component in studio.family.components:
        for path, module in getattr(studio.pipe, component).named_modules():
            weight = getattr(getattr(module, "base_layer", module), "weight", None)
            if f"{component}.{path}" in studio.file_keys and weight is not None:
                weights[f"{component}.{path}"] = weight
    return weights


def _metadata(studio: Studio, dataset: Dataset) -> dict[str, str]:
    """The header: what other tools read, and our recipe. Nothing of when, where or by which name (see `lora_file`)."""
    config, family = studio.config, studio.family
    kind = Path(config.data.folder).name
    title = config.data.trigger or kind
    tags = Counter(tag.strip() for item in dataset.items for tag in item.caption.split(",") if tag.strip())
    own = {"config": recipe(config), "dataset": {"digest": dataset.digest, "num_pictures": len(dataset.items)}, "velatura": __version__}
    is_v2 = studio.pipe.text_encoder.config.hidden_size == 1024
    return {
        lora_file.RECIPE_KEY: json.dumps(own, sort_keys=True, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": family.architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{config.resolution_px}x{config.resolution_px}",
        "modelspec.prediction_type": studio.schedule.prediction,
        "modelspec.trigger_phrase": config.data.trigger,
        "ss_base_model_version": family.base_version,
        "ss_v2": str(is_v2),
        "ss_sd_model_name": recipe(config)["base"],
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.adapter.rank),
        "ss_network_alpha": str(config.adapter.alpha),
        "ss_learning_rate": str(config.learning_rate),
        "ss_steps": str(config.max_steps),
        "ss_max_train_steps": str(config.max_steps),
        "ss_seed": str(config.seed),
        "ss_num_train_images": str(len(dataset.items)),
        "ss_resolution": f"({config.resolution_px}, {config.resolution_px})",
        "ss_tag_frequency": json.dumps({f"1_{kind}": dict(tags.most_common(_MAX_TAGS))}, ensure_ascii=False),
    }
