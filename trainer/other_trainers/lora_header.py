"""The header of a LoRA: ours carries its whole recipe, kohya's says much of it in `ss_` keys, as texts.

Values are texts there: "None", "True", JSON for datasets and network arguments, and an optimizer as its class with its
arguments behind it. A LoRA of our own gives back its settings; folders aren't in it.
"""

from __future__ import annotations

import json
import re
from typing import Any

from trainer import lora_file
from trainer.errors import ConfigError
from trainer.other_trainers import bases, documents, sd_scripts
from trainer.other_trainers.contract import Tool
from trainer.other_trainers.documents import Document
from trainer.other_trainers.reading import Reading
from trainer.other_trainers.sd_scripts import LISTS, TRAINING
from trainer.other_trainers.tables import groups, prefixed

_RECIPE = "recipe."
# A key of the header -> the argument of sd-scripts that it notes.
_RENAMED = {
    "base_model_version": "", "sd_model_name": "pretrained_model_name_or_path", "optimizer": "optimizer_type",
    "batch_size_per_device": "train_batch_size", "num_epochs": "", "epoch": "", "steps": "", "v2": "v2",
    "max_bucket_reso": "max_bucket_reso", "resolution": "resolution", "enable_bucket": "enable_bucket",
}  # fmt: skip
_VERSIONS = (
    (r"^sdxl", "sdxl"), (r"^sd3", "sd3"), (r"^sd", "sd"), (r"^flux2|klein", "flux2"), (r"^flux", "flux"),
    (r"^chroma", "chroma"), (r"^lumina", "lumina2"), (r"^qwen", "qwen"), (r"^z[-_]?image", "zimage"),
)  # fmt: skip
_GROUPS = groups("lora_header")
_ROWS = {
    **prefixed(TRAINING | LISTS, "ss_"),
    **_GROUPS["header"],
    **prefixed(_GROUPS["dataset"], "ss_datasets[].", "ss_datasets[].subsets[]."),
}


def _recognises(document: Document) -> bool:
    return document.kind == "header" and isinstance(document.values, dict)


def _flatten(document: Document) -> dict[str, Any]:
    recipe = _recipe(document)
    if recipe is not None:
        return {f"{_RECIPE}{key}": value for key, value in documents.flatten(recipe).items()}
    flat: dict[str, Any] = {}
    for key, text in list(document.values.items())[: documents.MAX_KEYS]:
        # A header may come from anyone: texts are cut before JSON is read.
        value = _value(str(text)[:200_000]) if key.startswith("ss_") else str(text)[:2000]
        if key in ("ss_datasets", "ss_network_args") and isinstance(value, dict | list):
            flat |= documents.flatten({key: value})
        elif isinstance(value, list) and len(value) <= 4 and all(isinstance(side, int) for side in value):
            flat[key] = value
        elif isinstance(value, dict | list):
            flat[key] = f"{len(value)} entries"
        else:
            flat[key] = value
    return flat


def _recipe(document: Document) -> dict[str, Any] | None:
    """The settings of a LoRA of ours, None for another's."""
    recipe = lora_file.recipe_of(document.values)
    config = recipe.get("config") if isinstance(recipe, dict) else None
    return config if isinstance(config, dict) else None


def _value(text: str) -> Any:
    """A text of the header as the value that was written."""
    words: dict[str, Any] = {"None": None, "True": True, "False": False, "null": None}
    if text in words:
        return words[text]
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    if re.fullmatch(r"\(\s*\d+,\s*\d+\s*\)", text):
        return [int(side) for side in re.findall(r"\d+", text)]
    return text


def _read(reading: Reading) -> None:
    if any(key.startswith(_RECIPE) for key in reading.values):
        _read_ours(reading)
        return
    if not any(key.startswith("ss_") for key in reading.values):
        raise ConfigError(
            f"{reading.document.path.name} says nothing of how it was trained: its header has no ss_ keys and "
            f"no recipe of ours."
        )

    # Its keys as arguments of sd-scripts.
    seen: dict[str, Any] = {}
    for key, value in reading.values.items():
        name = key.removeprefix("ss_")
        name = _RENAMED.get(name, name)
        if key.startswith("ss_") and name and value is not None:
            # The first dataset's keys are arguments too; without their place they may have another name.
            name = name.replace("datasets[0].subsets[0].", "").replace("datasets[0].", "")
            name = _RENAMED.get(name, name)
            seen.setdefault(name, value)
            reading.origin.setdefault(name, key)
    for name in ("num_repeats", "is_reg", "image_dir"):
        seen.pop(name, None)
    _optimizer(reading, seen)
    reading.seen = seen
    reading.name = str(reading.values.get("ss_output_name") or "")[:80]
    bases.put_base(reading, _family(reading), "pretrained_model_name_or_path", family_keys=("ss_base_model_version",))
    # The steps that were planned; an epoch's length is said nowhere else.
    seen.pop("max_train_epochs", None)
    # None is noted as the rate where no text encoder was trained.
    if not reading.has("text_encoder_lr") and reading.values.get("ss_text_encoder_lr", "") is None:
        seen["network_train_unet_only"] = True
    sd_scripts.read_training(reading)
    reading.notes.append("a header notes what the tool was told, even where it read none of it")


def _optimizer(reading: Reading, seen: dict[str, Any]) -> None:
    """`bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))` as a name and its arguments."""
    match = re.match(r"([\w.]{1,100})(?:\((.{0,1000})\))?", str(seen.get("optimizer_type", "")))
    if not match:
        return
    seen["optimizer_type"] = match[1].rpartition(".")[2]
    for name, value in re.findall(r"(\w{1,60})=(\([^)]*\)|\[[^\]]*\]|[^,]+)", match[2] or ""):
        seen[f"optimizer_args.{name}"] = value.strip()
        reading.origin[f"optimizer_args.{name}"] = "ss_optimizer"


def _family(reading: Reading) -> str:
    if reading.asked_family:
        return reading.asked_family
    version = str(
        reading.values.get("ss_base_model_version") or reading.values.get("modelspec.architecture") or ""
    ).lower()
    for pattern, family in _VERSIONS:
        if re.search(pattern, version):
            return family
    return sd_scripts.family_of(reading)


def _read_ours(reading: Reading) -> None:
    """All settings as they are; what lies in places of its own is left out."""
    left = (
        "data.folder",
        "data.heldout",
        "data.regularisation",
        "data.mask_folder",
        "against.adapters",
        "against.overlap_penalty",
    )
    for key, value in reading.values.items():
        setting = key[len(_RECIPE) :]
        if setting in left or (setting in ("validation.neutral_prompts", "validation.stop_when_overtrained") and value):
            if value not in ("", [], 0, None):
                reading.cannot(key, "it lies in a place of its own; give it with --set")
            continue
        if setting != "version":
            reading.put(setting, value, key)


TOOL = Tool(
    name="lora-header", turn=10, title="a LoRA's header", version="sd-scripts 0.10.1", rows=_ROWS,
    recognises=_recognises, flatten=_flatten, read=_read,
)  # fmt: skip
