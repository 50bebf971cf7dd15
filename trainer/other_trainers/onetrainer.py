"""OneTrainer: its config as JSON, with concepts and samples in it, beside it, or alone.

Its alpha is 1 and its rank 16 where a config says neither. It counts in batches: a warm-up over as many steps as there
are batches in it, and a bucket's last batch that isn't full is left out.
"""

from __future__ import annotations

import math
from typing import Any

from trainer.errors import ConfigError
from trainer.other_trainers import bases, documents, onetrainer_training, onetrainer_versions, previews, steps
from trainer.other_trainers.contract import Tool
from trainer.other_trainers.documents import Document
from trainer.other_trainers.reading import Reading
from trainer.other_trainers.tables import groups, prefixed

VERSION = "August 2026 (23df383)"
PARTS = (
    "unet", "prior", "transformer", "unconditional_transformer", "text_encoder", "text_encoder_2", "text_encoder_3",
    "text_encoder_4", "vae", "effnet_encoder", "decoder", "decoder_text_encoder", "decoder_vqgan",
)  # fmt: skip
TRAINED = ("unet", "transformer", "text_encoder", "text_encoder_2")  # the parts that are trained here
_GROUPS = groups("onetrainer")
_NESTED = prefixed(_GROUPS["part"], *(f"{part}." for part in PARTS)) | prefixed(_GROUPS["optimizer"], "optimizer.")
ROWS = {
    **_GROUPS["config"],
    **_NESTED,
    **prefixed(_GROUPS["concept"], "concepts[]."),
    **prefixed(_GROUPS["sample"], "samples[]."),
    **{f"{place}__version": _GROUPS["config"]["__version"] for place in (
        "concepts[].", "concepts[].image.", "concepts[].text.", "samples[].", "optimizer.", "quantization.", "cloud.",
        "embedding.", "secrets.", *(f"{part}." for part in PARTS))},
    **{old: (_NESTED | _GROUPS["config"])[new] for old, new in onetrainer_versions.RENAMED.items()},
}  # fmt: skip
FAMILIES = {
    "STABLE_DIFFUSION_15": "sd", "STABLE_DIFFUSION_20": "sd", "STABLE_DIFFUSION_20_BASE": "sd",
    "STABLE_DIFFUSION_21": "sd", "STABLE_DIFFUSION_21_BASE": "sd", "STABLE_DIFFUSION_3": "sd3",
    "STABLE_DIFFUSION_35": "sd3", "STABLE_DIFFUSION_XL_10_BASE": "sdxl", "PIXART_ALPHA": "pixart",
    "PIXART_SIGMA": "pixart", "FLUX_DEV_1": "flux", "FLUX_2": "flux2", "SANA": "sana", "HI_DREAM_FULL": "hidream",
    "CHROMA_1": "chroma", "QWEN": "qwen", "Z_IMAGE": "zimage",
}  # fmt: skip
DTYPES = {
    "FLOAT_32": "float32", "TFLOAT_32": "float32", "FLOAT_16": "float16", "BFLOAT_16": "bfloat16",
}  # fmt: skip
_QUANTISED = {"INT": "int8", "FLOAT_8": "fp8", "NFLOAT_4": "nf4", "FLOAT_W8A8": "fp8", "GGUF": "int8"}
_MEMORY_OF_A_PART = ("weight_dtype", "gradient_checkpointing", "offload_fraction", "activation_offloading")
_TRAINING_OF_A_PART = ("train", "learning_rate", "dropout_probability")
_ASPECT, _STEP_PX = 4.0, 64  # of its buckets
_KEYS = {"training_method", "model_type", "base_model_name", "lora_rank", "layer_filter", "concept_file_name"}


def _recognises(document: Document) -> bool:
    values = document.values
    if document.kind != "json":
        return False
    if isinstance(values, list):
        return (
            bool(values)
            and all(isinstance(entry, dict) for entry in values)
            and (_is_concepts(values) or _is_samples(values))
        )
    return (
        isinstance(values, dict) and len(_KEYS & set(values)) >= 2 and not {"network_dim", "model_family"} & set(values)
    )


def _is_concepts(values: list[Any]) -> bool:
    return all(
        isinstance(entry, dict) and "path" in entry and ("text" in entry or "image" in entry or "balancing" in entry)
        for entry in values
    )


def _is_samples(values: list[Any]) -> bool:
    return all(
        isinstance(entry, dict) and "prompt" in entry and ("diffusion_steps" in entry or "cfg_scale" in entry)
        for entry in values
    )


def _flatten(document: Document) -> dict[str, Any]:
    if isinstance(document.values, list):
        return documents.flatten({"concepts" if _is_concepts(document.values) else "samples": document.values})
    return documents.flatten(document.values)


def _read(reading: Reading) -> None:
    _take_up(reading)
    bases.put_base(reading, _family(reading), "base_model_name", family_keys=("model_type",))
    reading.name = reading.text("save_filename_prefix").strip("-_ ") or _last(reading.text("output_model_destination"))
    an_epoch = _put_steps(reading)
    _put_data(reading)
    onetrainer_training.put_adapter(reading)
    onetrainer_training.put_layers(reading)
    onetrainer_training.put_rates(reading)
    onetrainer_training.put_optimizer(reading)
    onetrainer_training.put_objective(reading)
    onetrainer_training.put_timesteps(reading)
    _put_running(reading, an_epoch)
    _put_paces(reading, an_epoch)


def _take_up(reading: Reading) -> None:
    """Old names as new names, and the files of concepts and samples that lie beside the config."""
    reading.seen, reading.origin = onetrainer_versions.as_today(reading.values)

    # Concepts and samples: of the config itself, else of the file beside it.
    for key, name in (("concept_file_name", "concepts"), ("sample_definition_file_name", "samples")):
        inside = any(place.startswith(f"{name}[") for place in reading.values)
        if not inside and (document := reading.beside(key)) is not None and isinstance(document.values, list):
            flat = documents.flatten({name: document.values})
            reading.values |= flat
            reading.seen |= flat
            reading.translated(key, "", "the file of that name beside this one is read too")
        elif inside:
            reading.no_effect(key, f"the {name} stand in the config itself")
        elif reading.has(key):
            reading.cannot(key, "no such file lies beside this one")


def _last(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2].removesuffix(".safetensors")


def _family(reading: Reading) -> str:
    if reading.asked_family:
        return reading.asked_family
    kind = reading.text("model_type", "STABLE_DIFFUSION_15").rpartition(".")[2]
    if not reading.has("model_type") and not reading.has("base_model_name"):
        reading.notes.append("the file names no base; sdxl is taken; give --family")
        return "sdxl"
    if kind not in FAMILIES:
        raise ConfigError(f"{bases.cannot_train(reading, kind)}.")
    is_dev = FAMILIES[kind] == "flux2" and bases.family_of(reading.text("base_model_name")) == "flux2dev"
    return "flux2dev" if is_dev else FAMILIES[kind]  # both are one kind there, told apart by the model's own size


# How long.


def _places(reading: Reading, name: str) -> list[str]:
    """The places of concepts or samples that are on: `concepts[0].`"""
    found = dict.fromkeys(key.partition("]")[0] + "]." for key in reading.seen if key.startswith(f"{name}["))
    return [place for place in list(found)[:64] if reading.flag(f"{place}enabled", True)]


def _put_steps(reading: Reading) -> int:
    steps.put_batch(reading, "batch_size", "gradient_accumulation_steps")
    batch, accumulation = reading.settings["batch_size"], reading.settings["accumulation"]

    # A concept's balance is how often its pictures are shown, or how many of them are.
    places = [
        place for place in _places(reading, "concepts") if reading.text(f"{place}type", "STANDARD") != "VALIDATION"
    ]
    pictures = reading.pictures or steps.ASSUMED_PICTURES
    shown_pictures = 0.0
    for place in places:
        balance = max(0.0, reading.number(f"{place}balancing", 1.0))
        samples = reading.text(f"{place}balancing_strategy", "REPEATS") == "SAMPLES"
        shown_pictures += balance if samples else balance * pictures / len(places)
        for key in ("balancing", "balancing_strategy", "enabled"):
            reading.translated(f"{place}{key}", "max_steps", "it counts in the steps")

    # Batches and steps of an epoch.
    shown_pictures = min(shown_pictures, 1e9) if places else float(pictures)
    batches = max(1, int(shown_pictures // batch))
    an_epoch: int = max(1, batches // accumulation)
    source = "" if reading.pictures else ", as the recipe doesn't say how many; give --pictures N"
    epochs = max(1, reading.whole("epochs", 100))
    how = f"{epochs} epochs of {pictures} pictures{source}, {shown_pictures:g} shown: {batches} batches an epoch"
    steps.put_steps(
        reading, epochs * batches // accumulation, how, "epochs"
    )  # a step may begin in an epoch and end in the next
    return an_epoch


# On what.


def _put_data(reading: Reading) -> None:
    # Sizes: the first is the resolution.
    sizes = [_pixels(part) for part in reading.text("resolution", "512").split(",")[:5]]
    known = [size for size in sizes if size]
    multiple = 32 if reading.settings["family"] == "sana" else 16
    sizes = [max(64, min(4096, round(size / multiple) * multiple)) for size in known] or [512]
    reading.put("resolution_px", sizes[0], "resolution")
    if more := sorted(set(sizes[1:]) - {sizes[0]}):
        reading.put("data.more_resolutions_px", more, "resolution")

    # Buckets: their shape can't be set there.
    reading.put("data.buckets", reading.flag("aspect_ratio_bucketing", True), "aspect_ratio_bucketing")
    if reading.settings["data.buckets"]:
        reading.put("data.max_aspect_ratio", _ASPECT, "aspect_ratio_bucketing")
        reading.put("data.bucket_step_px", _STEP_PX, "aspect_ratio_bucketing")
    reading.put("data.max_upscale", 16.0)

    # Captions and masks.
    _put_concept(reading)
    dropouts = [reading.number(f"{part}.dropout_probability") for part in ("text_encoder", "text_encoder_2")]
    reading.put("data.caption_dropout", dropouts[0], "text_encoder.dropout_probability")
    if reading.flag("masked_training"):
        reading.put("data.mask", "file", "masked_training")
        reading.put("objective.unmasked_weight", reading.number("unmasked_weight", 0.1), "unmasked_weight")
    else:
        reading.no_effect("unmasked_weight", "there are no masks")
        reading.no_effect("unmasked_probability", "there are no masks")


def _pixels(text: str) -> int:
    """A side in pixels of "512" or "1024x768"; 0 if it is neither."""
    parts = text.strip().lower().split("x")[:2]
    if not all(part.strip().isdecimal() and len(part.strip()) < 6 for part in parts):
        return 0
    return round(math.sqrt(int(parts[0]) * int(parts[-1])))


def _put_concept(reading: Reading) -> None:
    """What the first concept that is on says of its pictures and captions."""
    place = next(iter(_places(reading, "concepts")), "")
    reading.put("data.flip", reading.flag(f"{place}image.enable_random_flip"), f"{place}image.enable_random_flip")
    jitter = f"{place}image.enable_crop_jitter"
    reading.put("data.crop", "random" if reading.flag(jitter, True) else "centre", jitter)

    # Tags.
    shuffle = f"{place}text.enable_tag_shuffling"
    reading.put("captions.shuffle_tags", reading.flag(shuffle), shuffle)
    dropped = 0.0
    if reading.flag(f"{place}text.tag_dropout_enable"):
        if reading.text(f"{place}text.tag_dropout_mode", "FULL") == "FULL":
            reading.cannot(f"{place}text.tag_dropout_mode", "tags are left out one by one here, not all at once")
        else:
            dropped = min(0.99, max(0.0, reading.number(f"{place}text.tag_dropout_probability")))
            reading.put("captions.tag_dropout", dropped, f"{place}text.tag_dropout_probability")
    if dropped or reading.flag(shuffle):
        reading.put(
            "captions.keep_tags",
            max(0, reading.whole(f"{place}text.keep_tags_count", 1)),
            f"{place}text.keep_tags_count",
        )
        reading.put(
            "captions.separator",
            reading.text(f"{place}text.tag_delimiter", ",").strip() or ",",
            f"{place}text.tag_delimiter",
        )

    # Where captions come from.
    if reading.text(f"{place}text.prompt_source", "sample") == "sample":
        reading.put(
            "captions.lines",
            "choose",
            f"{place}text.prompt_source",
            why="a line of a caption file is one caption there",
        )
    elif place:
        reading.cannot(f"{place}text.prompt_source", "captions lie beside their pictures here")


# How it runs.


def _put_running(reading: Reading, an_epoch: int) -> None:
    unet = "unet" if reading.settings["family"] in ("sd", "sdxl") else "transformer"
    # Dtypes.
    dtype = reading.text("train_dtype", "FLOAT_16")
    if dtype not in DTYPES:
        reading.cannot("train_dtype", f"allowed: {', '.join(DTYPES)}")
    reading.put("dtype", DTYPES.get(dtype, "float16"), "train_dtype")
    reading.put("save_dtype", DTYPES.get(reading.text("output_dtype", "FLOAT_32"), "float32"), "output_dtype")

    # Memory.
    weights = reading.text(f"{unet}.weight_dtype", "FLOAT_32")
    quantised = next((ours for word, ours in _QUANTISED.items() if weights.startswith(word)), "none")
    if quantised != "none" and reading.settings["adapter.method"] == "lora":
        reading.put("memory.quantise", quantised, f"{unet}.weight_dtype")
    elif weights in DTYPES:
        reading.translated(f"{unet}.weight_dtype", "dtype", "the base has the dtype it is computed with here")
    checkpointing = f"{unet}.gradient_checkpointing"
    reading.put("memory.gradient_checkpointing", reading.flag(checkpointing, True), checkpointing)
    if reading.number(f"{unet}.offload_fraction") > 0:
        reading.put("memory.offload", "blocks", f"{unet}.offload_fraction", why="all blocks take turns here (GPU only)")
    if reading.flag(f"{unet}.activation_offloading"):
        reading.put("memory.offload_activations", True, f"{unet}.activation_offloading")
    if reading.flag("compile"):
        reading.put("memory.compile", "blocks", "compile")
    reading.put("seed", 0)

    # What other parts have of their own; not what an old config says under another part's name or for all of them.
    taken_up = {*reading.origin, *reading.origin.values()}
    for part in PARTS:
        reasons = dict.fromkeys(_MEMORY_OF_A_PART if part != unet else (), "it changes the memory of that part alone")
        if part != unet and part not in TRAINED:
            reasons |= dict.fromkeys(_TRAINING_OF_A_PART, "this part isn't trained with a LoRA here")
        for name, why in reasons.items():
            if f"{part}.{name}" not in taken_up:
                reading.no_effect(f"{part}.{name}", why)
    reading.no_effect(f"{unet}.dropout_probability", "only text encoders read it")
    if reading.text("train_device").startswith("cpu"):
        reading.put("device", "cpu", "train_device")
    _put_samples(reading)


def _put_paces(reading: Reading, an_epoch: int) -> None:
    kept = reading.whole("rolling_backup_count", 3)
    if reading.flag("rolling_backup"):
        reading.put("keep_checkpoints", min(1000, max(1, kept)), "rolling_backup_count")

    # By epochs or steps; minutes, which is what it takes where nothing is said, have no counterpart.
    for name, setting in (
        ("sample", "preview_every_steps"),
        ("backup", "checkpoint_every_steps"),
        ("validate", "validate_every_steps"),
    ):
        after, unit = (
            reading.whole(f"{name}_after", {"sample": 10, "backup": 30}.get(name, 1)),
            reading.text(f"{name}_after_unit", "MINUTE"),
        )
        keys = (f"{name}_after", f"{name}_after_unit")
        if unit in ("EPOCH", "STEP") and after > 0:
            steps.put_every(reading, setting, after * (an_epoch if unit == "EPOCH" else 1), *keys)
        elif unit == "NEVER" and name == "sample":
            reading.put("preview_every_steps", 0, *keys)
        else:
            for key in keys:
                reading.cannot(key, "it goes by steps here, not by the clock")


def _put_samples(reading: Reading) -> None:
    places = _places(reading, "samples")
    prompts = [reading.text(f"{place}prompt") for place in places]
    previews.put_prompts(reading, prompts, f"{places[0]}prompt" if places else "")
    for place in places[1:]:
        reading.translated(f"{place}prompt", "preview.prompts")
    if places:
        for key, setting in (("seed", "preview.seed"), ("diffusion_steps", "preview.steps")):
            if reading.has(places[0] + key):
                reading.put(setting, max(0, reading.whole(places[0] + key)), places[0] + key)
        if reading.has(f"{places[0]}cfg_scale"):
            reading.put("preview.guidance_scale", reading.number(f"{places[0]}cfg_scale", 7.0), f"{places[0]}cfg_scale")


TOOL = Tool(
    name="onetrainer", turn=30, title="OneTrainer", version=VERSION, rows=ROWS, recognises=_recognises,
    flatten=_flatten, read=_read,
)  # fmt: skip
