"""sd-scripts (kohya-ss): a training config or a dataset config as TOML, and its command lines.

A TOML's sections are only for people: the tool itself reads the keys of all as one list.
"""

from __future__ import annotations

from collections.abc import Callable
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
)
from trainer.other_trainers.contract import Tool
from trainer.other_trainers.documents import Document
from trainer.other_trainers.reading import Reading
from trainer.other_trainers.tables import groups, prefixed

VERSION = "0.10.1"
_GROUPS = groups("sd_scripts")
TRAINING, NETWORK_ARGS = _GROUPS["training"], _GROUPS["network_args"]
LISTS = _GROUPS["lists"] | prefixed(NETWORK_ARGS, "network_args.")  # of `key=value` texts
_ROWS = TRAINING | LISTS | prefixed(_GROUPS["dataset"], "general.", "datasets[].", "datasets[].subsets[].")
_SCRIPTS = {
    "train_network.py": "", "sdxl_train_network.py": "sdxl", "flux_train_network.py": "flux",
    "sd3_train_network.py": "sd3", "lumina_train_network.py": "lumina2", "anima_train_network.py": None,
    "hunyuan_image_train_network.py": None,
}  # fmt: skip
_MODULES = {
    "lora_flux": "flux",
    "oft_flux": "flux",
    "lora_sd3": "sd3",
    "lora_lumina": "lumina2",
    "lora_anima": "",
    "lora_hunyuan_image": "",
}
# What the script for a flow family does where timestep_sampling, discrete_flow_shift and model_prediction_type are left
# out (flux_train_utils.py, lumina_train_util.py).
_FLOW = {"flux": ("sigma", 3.0, "sigma_scaled"), "lumina2": ("shift", 6.0, "raw")}
_ARGUMENTS = ("network_args", "optimizer_args", "lr_scheduler_args")


def _recognises(document: Document) -> bool:
    if document.kind == "command":
        return document.command in _SCRIPTS
    if document.kind != "toml" or not isinstance(document.values, dict):
        return False
    return is_dataset(document.values) or len(set(_flat(document.values)) & set(TRAINING)) >= 3


def is_dataset(values: Any) -> bool:
    """Whether these are the values of a dataset config: datasets with subsets."""
    datasets = values.get("datasets") if isinstance(values, dict) else None
    return isinstance(datasets, list) and any(isinstance(entry, dict) and "subsets" in entry for entry in datasets)


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """The keys of all sections as one list."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return flat


def _flatten(document: Document) -> dict[str, Any]:
    if is_dataset(document.values):
        return documents.flatten(document.values)
    return arguments_apart(documents.flatten(_flat(document.values)))


def arguments_apart(values: dict[str, Any]) -> dict[str, Any]:
    """The values with the lists of `key=value` texts as keys of their own: `network_args.conv_dim`."""
    apart: dict[str, Any] = {}
    for key, value in values.items():
        if key not in _ARGUMENTS or not isinstance(value, str | list) or not value:
            apart[key] = value
            continue
        texts = (
            value[:4000].replace('"', "").split()
            if isinstance(value, str)
            else [str(entry)[:400] for entry in value[:64]]
        )
        for text in texts:
            name, equals, argument = text.partition("=")
            apart[f"{key}.{name.strip()[:60]}"] = argument.strip().strip("'\"")[:400] if equals else True
    return apart


def _read(reading: Reading) -> None:
    # The dataset's own file, if it lies beside this file.
    if (dataset := reading.beside("dataset_config")) is not None and is_dataset(dataset.values):
        reading.values |= documents.flatten(dataset.values)
        reading.translated("dataset_config", "", "the file of that name beside this one is read too")
    elif reading.has("dataset_config"):
        reading.cannot(
            "dataset_config", "no such file lies beside this one; import it as well, or set data and captions"
        )
    bases.put_base(reading, family_of(reading), "pretrained_model_name_or_path")
    read_training(reading)


def read_training(
    reading: Reading, put_steps: Callable[[Reading, int, str, bool], int] = kohya_learning.put_steps
) -> None:
    """All but family and base, which a front-end's recipe says in other words, and steps, if it counts its own way."""
    reading.name = reading.text("output_name") or reading.text("metadata_title")
    for key in ("output_name", "metadata_title"):
        reading.translated(key, "the preset's name")
    repeats, twice = kohya_data.put_data(reading)

    # In this order: each reads what those before it set.
    an_epoch = put_steps(reading, repeats, kohya_data.key_of(reading, "batch_size"), twice)
    kohya_network.put_network(reading)
    kohya_learning.put_rates(reading)
    kohya_blocks.put_blocks(reading)
    kohya_learning.put_optimizer(reading)
    kohya_objective.put_objective(reading, *_FLOW.get(reading.settings["family"], _FLOW["flux"]))
    kohya_learning.put_running(reading, an_epoch)
    if reading.flag("torch_compile"):
        reading.put("memory.compile", "blocks", "torch_compile")


def family_of(reading: Reading) -> str:
    """The family by script, network and base, or as the user says. Raises: ConfigError if it isn't trained here."""
    if reading.asked_family:
        return reading.asked_family
    # The script says it, else the network, else keys and base. None and "" are families that aren't trained here.
    module = kohya_network.module_of(reading).rpartition(".")[2]
    family = _SCRIPTS.get(reading.document.command, "")
    if family == "":
        family = _MODULES[module] if module in _MODULES else _by_keys(reading)
    if not family:
        raise ConfigError(f"{bases.cannot_train(reading, reading.document.command or module)}.")
    if family == "flux" and reading.text("model_type") == "chroma":
        reading.translated("model_type", "family = chroma")
        return "chroma"
    reading.no_effect("model_type", "the usual one")
    return family


def _by_keys(reading: Reading) -> str:
    """The family that keys and the base's name speak of; SD 1.5 is what the plain script trains."""
    if reading.has("clip_g"):
        return "sd3"
    if reading.has("gemma2"):
        return "lumina2"
    if reading.has("ae") and reading.has("t5xxl"):
        return "flux"
    if named := bases.family_of(reading.text("pretrained_model_name_or_path")):
        return named
    if any(reading.flag(key) for key in ("no_half_vae", "cache_text_encoder_outputs")):
        return "sdxl"
    size = kohya_data.size_of(reading, kohya_data.key_of(reading, "resolution"), 512)[0]
    family = "sdxl" if size >= 1024 else "sd"
    if not named:
        reading.notes.append(
            f"the recipe doesn't say which family it trains; {family} is taken by its size of {size} px; give --family"
        )
    return family


TOOL = Tool(
    name="sd-scripts", turn=100, title="sd-scripts", version=VERSION, rows=_ROWS, recognises=_recognises,
    flatten=_flatten, read=_read,
)  # fmt: skip
