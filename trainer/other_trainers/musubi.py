"""musubi-tuner (kohya-ss): its config as TOML, its dataset config, and its command lines.

It speaks as sd-scripts does, with other defaults: no shift, no weighting, timesteps from a list; its networks adapt the
linear layers of the blocks less the modulation.
"""

from __future__ import annotations

from typing import Any

from trainer.errors import ConfigError
from trainer.other_trainers import (
    bases,
    documents,
    kohya_blocks,
    kohya_data,
    kohya_learning,
    kohya_network,
    kohya_objective,
    sd_scripts,
)
from trainer.other_trainers.contract import Tool
from trainer.other_trainers.documents import Document
from trainer.other_trainers.reading import Reading
from trainer.other_trainers.sd_scripts import LISTS
from trainer.other_trainers.tables import groups, prefixed

REFINERS, WITH_REFINERS = "_refiner.", "(?:noise|context)_refiner[.].*(?:attention|feed_forward).*"
VERSION = "June 2026 (30c658c)"
_SCRIPTS = {
    "qwen_image_train_network.py": "qwen", "zimage_train_network.py": "zimage", "flux_2_train_network.py": "flux2",
    "flux_kontext_train_network.py": None, "hv_train_network.py": None, "wan_train_network.py": None,
    "fpack_train_network.py": None, "krea2_train_network.py": None, "ideogram4_train_network.py": None,
    "kandinsky5_train_network.py": None, "hv_1_5_train_network.py": None, "hidream_o1_train_network.py": None,
}  # fmt: skip
_MODULES = {"lora_qwen_image": "qwen", "lora_zimage": "zimage", "lora_flux_2": "flux2"}
_GROUPS = groups("musubi")
ROWS = _GROUPS["arguments"] | LISTS | prefixed(_GROUPS["dataset"], "general.", "datasets[].")
_DATASET_KEYS = {
    "image_directory",
    "image_jsonl_file",
    "video_directory",
    "video_jsonl_file",
    "cache_directory",
    "control_directory",
}


def _recognises(document: Document) -> bool:
    values = document.values
    if document.kind == "command":
        return document.command in _SCRIPTS
    if document.kind != "toml" or not isinstance(values, dict):
        return False
    module = str(values.get("network_module", "")).rpartition(".")[2]
    return _is_dataset(values) or module in _MODULES or ("dit" in values and "network_module" in values)


def _is_dataset(values: dict[str, Any]) -> bool:
    datasets = values.get("datasets")
    return isinstance(datasets, list) and any(
        isinstance(entry, dict) and _DATASET_KEYS & set(entry) for entry in datasets
    )


def _flatten(document: Document) -> dict[str, Any]:
    return sd_scripts.arguments_apart(documents.flatten(document.values))


def _read(reading: Reading) -> None:
    if (
        (dataset := reading.beside("dataset_config")) is not None
        and isinstance(dataset.values, dict)
        and _is_dataset(dataset.values)
    ):
        reading.values |= documents.flatten(dataset.values)
        reading.translated("dataset_config", "", "the file of that name beside this one is read too")
    elif reading.has("dataset_config"):
        reading.cannot(
            "dataset_config", "no such file lies beside this one; import it as well, or set data and captions"
        )
    bases.put_base(reading, _family(reading), "dit")
    reading.name = reading.text("output_name") or reading.text("metadata_title")
    for key in ("output_name", "metadata_title"):
        reading.translated(key, "the preset's name")

    # Batch and repeats stand in the dataset config.
    repeats = _put_data(reading)
    an_epoch = kohya_learning.put_steps(reading, repeats, kohya_data.key_of(reading, "batch_size"))
    reading.no_effect("train_batch_size", "the dataset config says it")
    kohya_network.put_network(reading)
    reading.put("adapter.text_encoder", False) if reading.settings["adapter.method"] != "oft" else None
    kohya_learning.put_rates(reading)
    kohya_blocks.put_blocks(reading)
    if reading.settings["family"] == "zimage":
        _leave_refiners_out(reading)
    kohya_learning.put_optimizer(reading)
    _put_objective(reading)
    # Its precision is another than sd-scripts' where none is said.
    if not reading.has("mixed_precision"):
        reading.seen = {**reading.seen, "mixed_precision": "bf16"}
    kohya_learning.put_running(reading, an_epoch)
    if reading.flag("compile"):
        reading.put("memory.compile", "blocks", "compile")


def _leave_refiners_out(reading: Reading) -> None:
    """Z-Image's refiners aren't adapted (networks/lora_zimage.py), unless a pattern takes them in again."""
    key = "network_args.include_patterns"
    if WITH_REFINERS in reading.text(key):
        reading.unmark(key)
        reading.translated(key, "", "the refiners are adapted too, as here")
        return
    held = reading.settings.get("adapter.without_layers", [])
    reading.put("adapter.without_layers", [*held, REFINERS], "network_module")


def _family(reading: Reading) -> str:
    if reading.asked_family:
        return reading.asked_family
    family = _SCRIPTS.get(reading.document.command, "")
    module = kohya_network.module_of(reading).rpartition(".")[2]
    if family == "":
        family = (
            _MODULES.get(module) or bases.family_of(reading.text("dit")) or ("qwen" if not reading.has("dit") else None)
        )
        if not reading.has("dit") and module not in _MODULES:
            reading.notes.append("the file doesn't say which family it trains; qwen is taken; give --family")
    version = reading.text("model_version", "original").lower()
    if not family or "edit" in version or "layered" in version or reading.flag("edit") or reading.flag("edit_plus"):
        raise ConfigError(f"{bases.cannot_train(reading, reading.document.command or version)}.")
    if family == "flux2" and version.startswith("dev"):
        family = "flux2dev"
    reading.translated("model_version", f"family = {family}")
    return family


def _put_data(reading: Reading) -> int:
    # The size: two sides are the square of the same area.
    resolution = kohya_data.key_of(reading, "resolution")
    size = kohya_data.size_of(reading, resolution, 723)  # 960 x 544 by itself
    pixels = round((size[0] * size[1]) ** 0.5 / 16) * 16
    reading.put("resolution_px", max(64, min(4096, pixels)), resolution)

    # Buckets.
    buckets, upscale = kohya_data.key_of(reading, "enable_bucket"), kohya_data.key_of(reading, "bucket_no_upscale")
    reading.put("data.buckets", reading.flag(buckets), buckets)
    if reading.flag(buckets):
        reading.put("data.bucket_step_px", 16, buckets)
        reading.put("data.max_aspect_ratio", 8.0, buckets)
    reading.put("data.max_upscale", 1.0 if reading.flag(upscale) else 16.0, upscale)
    reading.put("data.caption_dropout", 0.0)

    # Captions.
    extension = kohya_data.key_of(reading, "caption_extension")
    if reading.text(extension, ".txt") not in kohya_data.CAPTION_SUFFIXES:
        reading.cannot(extension, "captions are read from .txt, else .caption, here; rename the files")
    else:
        reading.no_effect(extension, "captions are read from .txt, else .caption, here")

    # Repeats: on average, as how many pictures each dataset has isn't known.
    counts = [
        reading.whole(key, 1) for key in reading.seen if key.startswith("datasets[") and key.endswith("num_repeats")
    ][:64]
    for key in [key for key in reading.seen if key.endswith("num_repeats")][:64]:
        reading.translated(key, "max_steps", "it counts in the steps")
    return max(1, round(sum(counts) / len(counts))) if counts else max(1, reading.whole("general.num_repeats", 1))


def _put_objective(reading: Reading) -> None:
    kohya_objective.put_objective(reading, "sigma", 1.0, "raw")
    reading.no_effect("guidance_scale", "only HunyuanVideo reads it")
    if reading.text("timestep_sampling", "sigma") != "sigma":  # these narrow the range there
        low, high = reading.number("min_timestep"), reading.number("max_timestep", 1000) or 1000
        for key, setting, share in (
            ("min_timestep", "objective.timesteps_low", low),
            ("max_timestep", "objective.timesteps_high", high),
        ):
            reading.unmark(key)
            if 0 < share < 1000:
                reading.put(setting, share / 1000, key)


TOOL = Tool(
    name="musubi-tuner", turn=70, title="musubi-tuner", version=VERSION, rows=ROWS, recognises=_recognises,
    flatten=_flatten, read=_read,
)  # fmt: skip
