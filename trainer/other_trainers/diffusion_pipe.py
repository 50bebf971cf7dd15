"""diffusion-pipe (tdrussell): its config as TOML, with its dataset config beside it or alone.

Its alpha is the rank. Buckets lose a last batch that isn't full; a warm-up is linear, then `lr_scheduler`.
"""

from __future__ import annotations

from typing import Any

from trainer.errors import ConfigError
from trainer.other_trainers import bases, class_options, documents, learning, steps
from trainer.other_trainers.contract import Tool
from trainer.other_trainers.documents import Document
from trainer.other_trainers.reading import Reading, shown
from trainer.other_trainers.tables import groups, prefixed

VERSION = "August 2026 (8f83dbf)"
FAMILIES = {
    "sdxl": "sdxl", "flux": "flux", "flux2": "flux2", "chroma": "chroma", "hidream": "hidream", "sd3": "sd3",
    "qwen_image": "qwen", "lumina_2": "lumina2", "auraflow": "auraflow", "z_image": "zimage",
}  # fmt: skip
_HARDLY = 0.1  # of a schedule: the rate stays within a tenth
_DTYPES = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}
_GROUPS = groups("diffusion_pipe")
ROWS = _GROUPS["config"] | prefixed(_GROUPS["dataset"], "", "directory[].")


def _recognises(document: Document) -> bool:
    values = document.values
    if document.kind != "toml" or not isinstance(values, dict):
        return False
    model = values.get("model")
    has_model = isinstance(model, dict) and "type" in model and isinstance(values.get("optimizer", {}), dict)
    return has_model or _is_dataset(values)


def _is_dataset(values: dict[str, Any]) -> bool:
    return isinstance(values.get("directory"), list) and ("resolutions" in values or "enable_ar_bucket" in values)


def _read(reading: Reading) -> None:
    # The dataset's settings are a file of their own; what stands in this file counts before it.
    dataset = reading.beside("dataset")
    if dataset is not None and isinstance(dataset.values, dict) and _is_dataset(dataset.values):
        reading.values |= {
            key: value for key, value in documents.flatten(dataset.values).items() if key not in reading.values
        }
        reading.translated("dataset", "", "the file of that name beside this one is read too")
    elif reading.has("dataset"):
        reading.cannot("dataset", "no such file lies beside this one; import it as well, or set data and captions")

    # Which key names the base goes by the kind of model.
    keys = ["model.diffusers_path", "model.checkpoint_path", "model.transformer_path", "model.diffusion_model"]
    family = _family(reading)
    if family == "chroma":  # what lies beside it is FLUX.1's
        keys.reverse()
    bases.put_base(reading, family, *keys, family_keys=("model.type",))
    for key in keys:  # of several parts the first that is named stands for the base
        reading.no_effect(key, "another key names the base") if reading.has(
            key
        ) and key not in reading.marks and key not in reading.sources.get("base", ()) else None

    # Steps first: what is counted in epochs needs their number.
    an_epoch = _put_steps(reading)
    _put_data(reading)
    _put_adapter(reading)
    _put_learning(reading, an_epoch)
    _put_objective(reading)
    _put_running(reading, an_epoch)


def _family(reading: Reading) -> str:
    if reading.asked_family:
        return reading.asked_family
    kind = reading.text("model.type")
    if not kind:
        reading.notes.append("the file names no model; sdxl is taken; give --family")
        return "sdxl"
    # Editing models have the plain kind, and show only in their paths.
    edits = any(
        "kontext" in reading.text(key).lower() or "edit" in reading.text(key).lower()
        for key in ("model.transformer_path", "model.diffusers_path")
    )
    if kind not in FAMILIES or edits:
        raise ConfigError(f"{bases.cannot_train(reading, kind)}.")
    return FAMILIES[kind]


def _put_steps(reading: Reading) -> int:
    steps.put_batch(reading, "micro_batch_size_per_gpu", "gradient_accumulation_steps")
    sizes = reading.seen.get("micro_batch_size_per_gpu")
    # A batch size may be given for each resolution, as a list of pairs.
    if (
        isinstance(sizes, list)
        and sizes
        and isinstance(sizes[-1], list)
        and sizes[-1]
        and isinstance(sizes[-1][-1], int)
    ):
        reading.unmark("micro_batch_size_per_gpu")
        reading.put(
            "batch_size",
            max(1, sizes[-1][-1]),
            "micro_batch_size_per_gpu",
            why="all sizes share a batch size here: that of the last",
        )

    # Repeats: on average, as how many pictures each folder has isn't known.
    repeats = [
        reading.number(key, 1) for key in reading.seen if key.startswith("directory[") and key.endswith("num_repeats")
    ][:64]
    for key in [key for key in reading.seen if key.endswith("num_repeats")][:64]:
        reading.translated(key, "max_steps", "it counts in the steps")
    shown = max(1, round(sum(repeats) / len(repeats))) if repeats else max(1, reading.whole("num_repeats", 1))
    # Its batches are of all that a step takes, and a last batch that isn't full is dropped (dataset.py, post_init).
    a_step = reading.settings["batch_size"] * reading.settings["accumulation"]
    an_epoch, how = steps.per_epoch(reading, shown, a_step, 1, drops_last=True)

    # Epochs or max_steps, whichever ends first.
    epochs, most = max(1, reading.whole("epochs", 1)), reading.whole("max_steps")
    if 0 < most <= epochs * an_epoch:
        steps.put_steps(reading, most, "", "max_steps")
        reading.no_effect("epochs", "max_steps ends the run before")
    else:
        steps.put_steps(reading, epochs * an_epoch, f"{epochs} epochs of {how}", "epochs")
        reading.no_effect("max_steps", "the epochs end the run before")
    return an_epoch


def _place(reading: Reading, name: str) -> str:
    """The key of a dataset's setting: a directory's own, else the key for all."""
    key = f"directory[0].{name}"
    return key if reading.has(key) else name


def _put_data(reading: Reading) -> None:
    # Sizes: two sides are the square of the same area, and a multiple of 32 fits every family.
    value = reading.seen.get(_place(reading, "resolutions"))
    sizes = set()
    for entry in value[:5] if isinstance(value, list) else []:
        pair = entry[:2] if isinstance(entry, list) and len(entry) >= 2 else [entry, entry]
        if all(isinstance(side, int | float) and 16 <= side <= 8192 for side in pair):
            sizes.add(max(64, min(4096, round((pair[0] * pair[1]) ** 0.5 / 32) * 32)))
        else:
            reading.cannot(_place(reading, "resolutions"), f"it is {shown(value)}; allowed: sizes in pixels")
    ordered = sorted(sizes) or [512]
    reading.put("resolution_px", ordered[-1], _place(reading, "resolutions"))
    if more := ordered[:-1][-4:]:
        reading.put("data.more_resolutions_px", more, _place(reading, "resolutions"))

    # Buckets: one ratio bounds both ways here, so the wider bound is taken.
    buckets = _place(reading, "enable_ar_bucket")
    reading.put("data.buckets", reading.flag(buckets), buckets)
    if reading.flag(buckets):
        low, high = (
            max(0.01, reading.number(_place(reading, name), default))
            for name, default in (("min_ar", 0.5), ("max_ar", 2.0))
        )
        ratio = round(min(8.0, max(1.0, high, 1 / low)), 4)
        reading.put("data.max_aspect_ratio", ratio, _place(reading, "min_ar"), _place(reading, "max_ar"))
    reading.put("data.max_upscale", 16.0)

    # Captions: a prefix, and shuffled variants that are made once.
    reading.put("data.caption_dropout", reading.number("uncond_fraction"), "uncond_fraction")
    if prefix := reading.text(_place(reading, "caption_prefix")):
        reading.put("captions.prefix", prefix.rstrip()[:500], _place(reading, "caption_prefix"))
    count = reading.whole(_place(reading, "cache_shuffle_num"))
    if count > 0 or reading.flag(_place(reading, "shuffle_tags")):
        reading.put(
            "captions.shuffle_tags", True, _place(reading, "cache_shuffle_num"), _place(reading, "shuffle_tags")
        )
        reading.put("captions.variants", min(256, max(1, count)), _place(reading, "cache_shuffle_num"))
        reading.put("captions.keep_tags", 0)
        delimiter = reading.text(_place(reading, "cache_shuffle_delimiter"), ", ").strip() or ","
        reading.put("captions.separator", delimiter[:8], _place(reading, "cache_shuffle_delimiter"))

    # Masks, outside of which nothing counts there.
    if reading.has("directory[0].mask_path"):
        reading.put("data.mask", "file", "directory[0].mask_path")
        reading.put("objective.unmasked_weight", 0.0)


def _put_adapter(reading: Reading) -> None:
    kind, family = reading.text("adapter.type", "lora"), reading.settings["family"]
    method = {"lora": "lora", "lokr": "lokr"}.get(kind)
    if method is None or not any(key.startswith("adapter.") for key in reading.seen):
        reading.notes.append("the whole model is trained there; here a LoRA of rank 32 is")
    if method is None:
        reading.cannot("adapter.type", "allowed: lora, lokr")
    method = method or "lora"
    reading.put("adapter.method", method, "adapter.type")

    # Rank and alpha, which is always the rank.
    rank = max(1, reading.whole("adapter.rank", 32))
    if method == "lokr" and rank > 256:
        rank = 256
        reading.translated(
            "adapter.rank", "adapter.rank = 256", "the whole matrix, which is as much as this rank is here"
        )
    reading.put("adapter.rank", rank, "adapter.rank")
    reading.put("adapter.alpha", float(rank), "adapter.rank")
    reading.put("adapter.dropout", reading.number("adapter.dropout"), "adapter.dropout")
    if method == "lokr":
        reading.put("adapter.factor", reading.whole("adapter.decompose_factor", -1), "adapter.decompose_factor")
    if reading.has("adapter.alpha"):
        reading.no_effect("adapter.alpha", "it is the rank there, whatever is said")

    # Layers: all that are linear, but in SDXL's UNet only those of its transformers.
    reading.put("adapter.targets", "linear", "adapter.type")
    if family == "sdxl":
        reading.put("optimizer.block_rates", ["resnets.=0"], "adapter.type")
    if words := [word for word in reading.texts("adapter.exclude_modules") if word.strip("* ")][:64]:
        reading.put("adapter.without_layers", words, "adapter.exclude_modules")


def _put_learning(reading: Reading, an_epoch: int) -> None:
    main, text = reading.number("optimizer.lr", 1e-6), dict[str, float]()
    # Rates: only SDXL's parts have their own.
    key = "optimizer.lr"
    if reading.settings["family"] == "sdxl":
        key = "model.unet_lr" if reading.has("model.unet_lr") else key
        text = {
            f"text_encoder{suffix}": reading.number(f"model.text_encoder_{number}_lr", main)
            for number, suffix in ((1, ""), (2, "_2"))
        }
    # It stands for the optimizer's rate and for the schedule.
    if reading.has("force_constant_lr"):
        main, key = reading.number("force_constant_lr", main), "force_constant_lr"
    denoiser = reading.number("model.unet_lr", main) if key == "model.unet_lr" else main
    learning.put_part_rates(reading, denoiser, text, (key,), ("model.text_encoder_1_lr", "model.text_encoder_2_lr"))

    # The optimizer: its arguments stand beside its type.
    prefix = "optimizer."
    options = {
        key[len(prefix) :]: value
        for key, value in reading.seen.items()
        if key.startswith(prefix) and key != "optimizer.type"
    }
    name = reading.text("optimizer.type", "adamw_optimi")
    options = class_options.with_left_out(class_options.DIFFUSION_PIPE, name, options)
    if learning.spelled(name) == "automagic":
        options = {}
    learning.put_optimizer(reading, name, options, "optimizer.type", prefix + "{}")

    # The schedule goes over all epochs, even if max_steps ends the run long before.
    learning.put_schedule(reading, reading.text("lr_scheduler", "constant"), "lr_scheduler")
    all_epochs = max(1, reading.whole("epochs", 1)) * an_epoch
    share = reading.settings["max_steps"] / all_epochs
    if reading.settings["optimizer.schedule"] != "constant" and share < _HARDLY:
        why = f"it falls over all {all_epochs:,} steps of the epochs there, of which {share:.0%} are made"
        reading.put("optimizer.schedule", "constant", "lr_scheduler", why=why)
    elif reading.settings["optimizer.schedule"] != "constant" and share < 1:
        why = f"it falls over all {all_epochs:,} steps of the epochs there, of which {share:.0%} are made; here to zero"
        reading.cannot("lr_scheduler", why)
    if reading.has("force_constant_lr"):
        reading.put("optimizer.schedule", "constant", "force_constant_lr")
    learning.put_warmup(reading, max(0, reading.whole("warmup_steps")), reading.settings["max_steps"], "warmup_steps")
    learning.put_clip(reading, "gradient_clipping")


def _put_objective(reading: Reading) -> None:
    if (corner := reading.number("pseudo_huber_c")) > 0:
        reading.put("objective.loss", "huber", "pseudo_huber_c")
        reading.put("objective.huber_delta", corner, "pseudo_huber_c", why="theirs bends where ours has its corner")
    if reading.settings["family"] == "sdxl":
        if (gamma := reading.number("model.min_snr_gamma")) > 0:
            reading.put("objective.weighting", "min-snr", "model.min_snr_gamma")
            reading.put("objective.min_snr_gamma", gamma, "model.min_snr_gamma")
        elif reading.flag("model.debiased_estimation_loss"):
            reading.put("objective.weighting", "debiased", "model.debiased_estimation_loss")
        return

    # Timesteps: logit-normal by itself, and a shift where that is asked for.
    method, scale = (
        reading.text("model.timestep_sample_method", "logit_normal"),
        reading.number("model.sigmoid_scale", 1.0),
    )
    if method == "logit_normal" and scale == 1:
        reading.put("objective.timesteps", "sigmoid", "model.timestep_sample_method")
    elif method == "logit_normal":
        reading.put("objective.timesteps", "logit-normal", "model.timestep_sample_method")
        reading.put("objective.timesteps_std", scale, "model.sigmoid_scale")
    else:
        reading.put("objective.timesteps", "uniform", "model.timestep_sample_method")
        if method != "uniform":
            reading.cannot("model.timestep_sample_method", "allowed: logit_normal, uniform")

    # The shift: a number, or by the picture's size.
    shift = reading.number("model.shift", 1.0)
    if shift not in (0, 1):
        reading.put("objective.shift", "fixed", "model.shift")
        reading.put("objective.shift_factor", shift, "model.shift")
    elif reading.flag("model.flux_shift") or reading.flag("model.lumina_shift"):
        reading.put("objective.shift", "resolution", "model.flux_shift", "model.lumina_shift")

    # The range.
    for key, setting in (("model.min_t", "objective.timesteps_low"), ("model.max_t", "objective.timesteps_high")):
        share = reading.number(key, 0.0 if key.endswith("min_t") else 1.0)
        if 0 < share < 1:
            reading.put(setting, share, key)


def _put_running(reading: Reading, an_epoch: int) -> None:
    reading.put("seed", 0)
    # Dtypes: the file's is the model's where none is said.
    for key, setting, default in (
        ("model.dtype", "dtype", "bfloat16"),
        ("save_dtype", "save_dtype", reading.text("model.dtype", "bfloat16")),
    ):
        name = reading.text(key, default)
        if name not in _DTYPES and reading.has(key):
            reading.cannot(key, f"allowed: {', '.join(_DTYPES)}")
        reading.put(setting, _DTYPES.get(name, "bfloat16"), key)

    # Memory.
    weights = reading.text("model.transformer_dtype") or reading.text("model.diffusion_model_dtype")
    key = "model.transformer_dtype" if reading.has("model.transformer_dtype") else "model.diffusion_model_dtype"
    ours = "fp8" if weights.startswith("float8") else "nf4" if weights == "nf4" else ""
    if ours and reading.settings["adapter.method"] == "lora":
        reading.put("memory.quantise", ours, key)
    checkpointing = reading.seen.get("activation_checkpointing")
    reading.put("memory.gradient_checkpointing", checkpointing not in (None, False, ""), "activation_checkpointing")
    if reading.whole("blocks_to_swap") > 0:
        reading.put("memory.offload", "blocks", "blocks_to_swap", why="all blocks take turns here (GPU only)")
    if reading.flag("compile"):
        reading.put("memory.compile", "blocks", "compile")

    # Checkpoints and validation: in steps, epochs or examples there.
    if reading.whole("checkpoint_every_n_epochs") > 0:
        every = reading.whole("checkpoint_every_n_epochs") * an_epoch
        steps.put_every(reading, "checkpoint_every_steps", every, "checkpoint_every_n_epochs")
    per_step = reading.settings["batch_size"] * reading.settings["accumulation"]
    for what, setting in (("save", "checkpoint_every_steps"), ("eval", "validate_every_steps")):
        every = (
            reading.whole(f"{what}_every_n_steps")
            or reading.whole(f"{what}_every_n_epochs") * an_epoch
            or reading.whole(f"{what}_every_n_examples") // per_step
        )
        steps.put_every(
            reading, setting, every, *(f"{what}_every_n_{unit}" for unit in ("steps", "epochs", "examples"))
        )
    # It draws none.
    reading.put("preview_every_steps", 0)


TOOL = Tool(
    name="diffusion-pipe", turn=90, title="diffusion-pipe", version=VERSION, rows=ROWS, recognises=_recognises,
    flatten=lambda document: documents.flatten(document.values), read=_read,
)  # fmt: skip
