"""SimpleTuner (bghira): its config as JSON, with dataloader and LyCORIS config beside it.

Its alpha is the rank where none is said, its LoRA drops a tenth of its inputs, and gradients are clipped by value at 2.
A flow base is trained on sigmoid timesteps shifted by 3 unless told otherwise.
"""

from __future__ import annotations

from typing import Any

from trainer.errors import ConfigError
from trainer.other_trainers import bases, class_options, documents, learning, previews, steps
from trainer.other_trainers.contract import Tool
from trainer.other_trainers.documents import Document
from trainer.other_trainers.reading import Reading, shown
from trainer.other_trainers.tables import groups, prefixed

VERSION = "4.8.0 (bc8e6ab)"
FAMILIES = {
    "sd1x": "sd", "sd2x": "sd", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux", "flux2": "flux2dev", "chroma": "chroma",
    "z_image": "zimage", "z_image_turbo": "zimage", "qwen_image": "qwen", "pixart_sigma": "pixart", "sana": "sana",
    "lumina2": "lumina2", "hidream": "hidream", "auraflow": "auraflow",
}  # fmt: skip
_DTYPES = {"no": "float32", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8": "bfloat16"}
_GROUPS = groups("simpletuner")
ROWS = _GROUPS["config"] | prefixed(_GROUPS["backend"], "data_backends[].")


def _recognises(document: Document) -> bool:
    values = document.values
    if document.kind not in ("json", "toml") or not isinstance(values, dict):
        return False
    keys = {str(key).lstrip("-") for key in values}
    return "model_family" in keys and bool({"model_type", "lora_rank", "data_backend_config", "learning_rate"} & keys)


def _flatten(document: Document) -> dict[str, Any]:
    return {key.lstrip("-"): value for key, value in documents.flatten(document.values).items()}


def _read(reading: Reading) -> None:
    _take_beside(reading)
    bases.put_base(
        reading, _family(reading), "pretrained_model_name_or_path", "pretrained_transformer_model_name_or_path",
        "pretrained_unet_model_name_or_path", family_keys=("model_family",),
    )  # fmt: skip
    if reading.has("model_flavour") and not reading.has("pretrained_model_name_or_path"):
        reading.cannot(
            "model_flavour", f"set base to the hub id of this flavour if it isn't {reading.settings['base']}"
        )
    else:
        reading.no_effect("model_flavour", "the base is named")
    for key in ("hub_model_id", "tracker_run_name"):
        reading.translated(key, "the preset's name")
    reading.name = reading.text("hub_model_id").rpartition("/")[2]
    an_epoch = _put_steps(reading)
    _put_data(reading)
    _put_adapter(reading)
    _put_learning(reading)
    _put_objective(reading)
    _put_running(reading, an_epoch)


def _take_beside(reading: Reading) -> None:
    """The files of the dataloader and of LyCORIS that lie beside the config."""
    for key, name in (("data_backend_config", "data_backends"), ("lycoris_config", "lycoris_config")):
        document = reading.beside(key)
        if (
            document is not None
            and document.kind == "json"
            and isinstance(document.values, list if name == "data_backends" else dict)
        ):
            reading.values |= documents.flatten({name: document.values})
            reading.translated(key, "", "the file of that name beside this one is read too")
        elif reading.has(key):
            reading.cannot(key, "no such file lies beside this one")


def _family(reading: Reading) -> str:
    if reading.asked_family:
        return reading.asked_family
    name, flavour = reading.text("model_family"), reading.text("model_flavour").lower()
    family = FAMILIES.get(name)
    if family == "flux2dev" and "klein" in flavour:
        family = "flux2"
    if (
        not family
        or any(word in flavour for word in ("kontext", "edit"))
        or reading.flag("control")
        or reading.flag("controlnet")
    ):
        raise ConfigError(f"{bases.cannot_train(reading, f'{name} {flavour}'.strip())}.")
    return family


def _backends(reading: Reading) -> list[str]:
    """The places of the datasets of pictures."""
    places = dict.fromkeys(key.partition("]")[0] + "]." for key in reading.values if key.startswith("data_backends["))
    return [
        place
        for place in list(places)[:64]
        if reading.text(f"{place}dataset_type", "image") == "image" and not reading.flag(f"{place}disabled")
    ]


def _put_steps(reading: Reading) -> int:
    steps.put_batch(reading, "train_batch_size", "gradient_accumulation_steps", 4)
    places = _backends(reading)
    repeats = [reading.whole(f"{place}repeats") + 1 for place in places]
    for place in places:
        reading.translated(f"{place}repeats", "max_steps", "it counts in the steps; 0 is once there")
    shown_often = max(1, round(sum(repeats) / len(repeats))) if repeats else 1
    an_epoch, how = steps.per_epoch(
        reading, shown_often, reading.settings["batch_size"], reading.settings["accumulation"], drops_last=True
    )
    if reading.whole("max_train_steps") > 0:
        steps.put_steps(reading, reading.whole("max_train_steps"), "", "max_train_steps")
        reading.no_effect("num_train_epochs", "max_train_steps counts where both are given")
    else:
        epochs = max(1, reading.whole("num_train_epochs", 1))
        steps.put_steps(reading, epochs * an_epoch, f"{epochs} epochs of {how}", "num_train_epochs")
    return an_epoch


def _put_data(reading: Reading) -> None:
    # The size: in pixels, or in megapixels if it is an area.
    places = _backends(reading)
    keys = [f"{place}resolution" for place in places if reading.has(f"{place}resolution")] or ["resolution"]
    sizes = []
    for key in keys[:5]:
        kind = reading.text(
            key.removesuffix("resolution") + "resolution_type", reading.text("resolution_type", "pixel_area")
        )
        value = reading.number(key, 1024)
        pixels = (value * 1_000_000) ** 0.5 if kind == "area" and 0 < value < 64 else value
        multiple = 32 if reading.settings["family"] == "sana" else 16
        sizes.append(max(64, min(4096, round(min(pixels, 1e5) / multiple) * multiple)))
    reading.put("resolution_px", sizes[0], keys[0])
    if more := sorted(set(sizes) - {sizes[0]}):
        reading.put("data.more_resolutions_px", more, *keys[1:])

    # Shape and captions, as the first dataset has them.
    place = places[0] if places else ""
    square = reading.flag(f"{place}crop") and reading.text(f"{place}crop_aspect", "square") == "square"
    reading.put("data.buckets", not square, f"{place}crop", f"{place}crop_aspect")
    random_crop = reading.flag(f"{place}crop") and reading.text(f"{place}crop_style", "random") == "random"
    reading.put("data.crop", "random" if random_crop else "centre", f"{place}crop_style")
    if not square:
        reading.put("data.max_aspect_ratio", 8.0)
        reading.put(
            "data.bucket_step_px",
            max(16, reading.whole("aspect_bucket_alignment", 64) // 16 * 16),
            "aspect_bucket_alignment",
        )
    reading.put("data.max_upscale", 16.0)
    key = (
        f"{place}caption_dropout_probability"
        if reading.has(f"{place}caption_dropout_probability")
        else "caption_dropout_probability"
    )
    reading.put("data.caption_dropout", reading.number(key), key)
    prompt = f"{place}instance_prompt" if place and reading.has(f"{place}instance_prompt") else "instance_prompt"
    if text := reading.text(prompt).strip():
        reading.put("data.trigger", text[:80], prompt)


def _put_adapter(reading: Reading) -> None:
    if reading.text("model_type", "full") != "lora":
        reading.cannot("model_type", "the whole model isn't trained here; a LoRA is")
    kind = reading.text("lora_type", "standard").lower()
    prefix, algorithm = "lycoris_config.", reading.text("lycoris_config.algo", "lokr").lower()
    if kind == "lycoris":
        method = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}.get(algorithm)
        if method is None:
            reading.cannot(f"{prefix}algo", "no such method here; plain LoRA is set")
        rank, alpha = f"{prefix}linear_dim", f"{prefix}linear_alpha"
    else:
        method, rank, alpha = "dora" if reading.flag("use_dora") else "lora", "lora_rank", "lora_alpha"
    method = method or "lora"
    reading.put(
        "adapter.method", method, "model_type", "lora_type", "use_dora" if method == "dora" else f"{prefix}algo"
    )
    size = max(1, reading.whole(rank, 16))
    if method == "lokr" and (reading.flag(f"{prefix}full_matrix") or size >= 10_000):
        reading.put(
            "adapter.rank",
            256,
            f"{prefix}full_matrix",
            rank,
            why="the whole matrix, which is as much as this rank is here",
        )
        reading.put("adapter.alpha", 256.0, alpha, why="a whole matrix is unscaled there")
    else:
        reading.put("adapter.rank", size, rank)
        reading.put("adapter.alpha", reading.number(alpha, float(size) if kind != "lycoris" else 1.0), alpha)
    if method == "lokr":
        reading.put("adapter.factor", reading.whole(f"{prefix}factor", -1), f"{prefix}factor")
    if kind != "lycoris":
        reading.put("adapter.dropout", reading.number("lora_dropout", 0.1), "lora_dropout")
    start = reading.text("lora_init_type", "default").lower()
    if method == "lora" and start in ("gaussian", "pissa", "olora"):
        reading.put("adapter.init", start, "lora_init_type")
    elif start not in ("default", "true"):
        reading.cannot("lora_init_type", "no such start here; the usual one is set")

    # Layers.
    target = reading.text("flux_lora_target", "all").lower()
    if reading.settings["family"] == "flux" and target in ("all+ffs", "all+ffs+embedder", "context+ffs"):
        reading.put("adapter.targets", "attention-ff", "flux_lora_target")
    elif reading.settings["family"] == "flux" and target == "ai-toolkit":
        reading.put("adapter.targets", "linear", "flux_lora_target")
    else:
        wide = kind == "lycoris" and any(
            "feedforward" in str(value).lower() for key, value in reading.values.items() if key.startswith(prefix)
        )
        reading.put("adapter.targets", "attention-ff" if wide else "attention", "flux_lora_target")
        if target not in ("all", ""):
            reading.cannot("flux_lora_target", "no choice of layers here is the same; attention is set")
    if modules := [f".{name.strip('. ')}" for name in reading.texts("peft_lora_target_modules") if name.strip(". ")]:
        reading.put("adapter.targets", "linear", "peft_lora_target_modules")
        reading.put("adapter.only_layers", modules[:64], "peft_lora_target_modules")


def _put_learning(reading: Reading) -> None:
    learning.put_part_rates(
        reading, reading.number("learning_rate", 4e-7), {}, ("learning_rate",), ("train_text_encoder",)
    )
    if reading.flag("train_text_encoder"):
        reading.cannot("train_text_encoder", "SimpleTuner trains no text encoder with a LoRA")

    # The optimizer's arguments stand in one text.
    texts = (
        reading.text("optimizer_config").split(",")
        if reading.text("optimizer_config").count("(") == 0
        else [reading.text("optimizer_config")]
    )
    options: dict[str, Any] = dict(learning.arguments(texts))
    betas = [reading.number(f"optimizer_beta{number}") for number in (1, 2)]
    if all(betas):
        options["betas"] = betas
    name = reading.text("optimizer", "adamw_bf16")
    options = class_options.with_left_out(class_options.SIMPLETUNER, name, options)
    learning.put_optimizer(reading, name, options, "optimizer", "optimizer_config")
    if learning.spelled(name) == "prodigy":
        reading.notes.append("its prodigy is the schedule-free one of prodigyplus; plain Prodigy is set")
    _put_schedule(reading)
    learning.put_clip(reading, "max_grad_norm", 2.0)
    if reading.text("grad_clip_method", "value") == "value":
        reading.cannot("grad_clip_method", "gradients are clipped by their length here, not value by value")
        reading.notes.append("gradients are clipped value by value there; here by their length, at the same number")

    # A mean that is taken every few steps.
    if reading.flag("use_ema"):
        decay, interval = reading.number("ema_decay", 0.995), max(1, reading.whole("ema_update_interval", 1))
        if 0 < decay < 1:
            reading.put(
                "optimizer.ema_decay", round(decay ** (1 / interval), 9), "use_ema", "ema_decay", "ema_update_interval"
            )
    else:
        for key in ("ema_decay", "ema_update_interval"):
            reading.no_effect(key, "use_ema is off")


def _put_schedule(reading: Reading) -> None:
    name, steps_made = reading.text("lr_scheduler", "constant_with_warmup"), reading.settings["max_steps"]
    if name in ("cosine", "cosine_with_restarts", "sine"):
        # Its own classes: the rate falls over as many steps as the warm-up says, 1000 for none, and begins anew.
        length = max(0, reading.whole("lr_warmup_steps")) or 1000
        cycles = max(1, round(steps_made / length))
        reading.put("optimizer.schedule", "cosine" if cycles == 1 else "restarts", "lr_scheduler")
        if cycles > 1:
            reading.put("optimizer.cycles", min(cycles, 1000), "lr_warmup_steps")
        reading.put("optimizer.warmup_steps", 0, "lr_warmup_steps")
        reading.no_effect("lr_num_cycles", "lr_warmup_steps says how long a cycle is")
        if name != "sine" and length * cycles == steps_made:
            reading.translated("lr_warmup_steps", "", "how long the rate falls there, which has no warm-up")
        else:
            why = f"the rate falls over {length} steps there and then begins anew; here over a whole part of the run"
            reading.cannot("lr_warmup_steps", why)
        return
    learning.put_schedule(reading, name, "lr_scheduler", "lr_num_cycles", "lr_power")
    if name == "constant":
        reading.put("optimizer.warmup_steps", 0)
        reading.no_effect("lr_warmup_steps", "a constant schedule has no warm-up; constant_with_warmup has")
    else:
        learning.put_warmup(reading, reading.number("lr_warmup_steps"), steps_made, "lr_warmup_steps")


def _put_objective(reading: Reading) -> None:
    kind = reading.text("loss_type", "l2")
    loss = {"l2": "l2", "huber": "huber", "smooth_l1": "smooth_l1"}.get(kind)
    if loss is None:
        reading.cannot("loss_type", f"it is {shown(kind)}; allowed: l2, huber, smooth_l1")
    reading.put("objective.loss", loss or "l2", "loss_type")
    if loss in ("huber", "smooth_l1"):
        reading.put("objective.huber_delta", reading.number("huber_c", 0.1), "huber_c")
        if reading.text("huber_schedule", "snr") != "constant":
            reading.cannot("huber_schedule", "the corner is the same at every timestep here")
    else:
        for key in ("huber_c", "huber_schedule"):
            reading.no_effect(key, "only a Huber loss reads it")
    if reading.text("flux_guidance_mode", "constant") == "constant" and reading.number("flux_guidance_value", 1) == 1:
        for key in ("flux_guidance_mode", "flux_guidance_value", "flux_guidance_min", "flux_guidance_max"):
            reading.no_effect(key, "guidance is 1 there too")
    if (strength := reading.number("input_perturbation")) > 0:
        reading.put("objective.input_perturbation", strength, "input_perturbation")
    if reading.settings["family"] in bases.DIFFUSION:
        if (gamma := reading.number("snr_gamma")) > 0:
            reading.put("objective.weighting", "min-snr", "snr_gamma")
            reading.put("objective.min_snr_gamma", gamma, "snr_gamma")
        if reading.flag("offset_noise"):
            reading.put("objective.noise_offset", reading.number("noise_offset", 0.1), "offset_noise", "noise_offset")
        else:
            reading.no_effect("noise_offset", "offset_noise is off")
        for key in (
            "flow_sigmoid_scale",
            "flow_use_uniform_schedule",
            "flow_schedule_shift",
            "flow_schedule_auto_shift",
        ):
            reading.no_effect(key, "only flow models read it")
        return

    # Timesteps of a flow model.
    for key in ("snr_gamma", "noise_offset", "offset_noise"):
        reading.no_effect(key, "only models that predict noise read it")
    scale = reading.number("flow_sigmoid_scale", 1.0)
    if reading.flag("flow_use_uniform_schedule"):
        reading.put("objective.timesteps", "uniform", "flow_use_uniform_schedule")
        reading.no_effect("flow_sigmoid_scale", "the timesteps are uniform")
    elif scale == 1:
        reading.put("objective.timesteps", "sigmoid", "flow_sigmoid_scale")
    else:
        reading.put("objective.timesteps", "logit-normal", "flow_sigmoid_scale")
        reading.put("objective.timesteps_std", scale, "flow_sigmoid_scale")

    # The shift.
    shift = reading.number("flow_schedule_shift", 3.0)
    if reading.flag("flow_schedule_auto_shift"):
        reading.put("objective.shift", "resolution", "flow_schedule_auto_shift")
        reading.no_effect("flow_schedule_shift", "the shift goes by the picture's size")
    elif shift not in (0, 1):
        reading.put("objective.shift", "fixed", "flow_schedule_shift")
        reading.put("objective.shift_factor", shift, "flow_schedule_shift")


def _put_running(reading: Reading, an_epoch: int) -> None:
    reading.put("seed", max(0, reading.whole("seed", 0)), "seed")
    dtype = reading.text("mixed_precision", "bf16").lower()
    if dtype not in _DTYPES:
        reading.cannot("mixed_precision", f"allowed: {', '.join(_DTYPES)}")
    reading.put("dtype", _DTYPES.get(dtype, "bfloat16"), "mixed_precision")
    reading.put("memory.gradient_checkpointing", reading.flag("gradient_checkpointing", True), "gradient_checkpointing")
    precision = reading.text("base_model_precision", "no_change").lower()
    ours = (
        "int8"
        if "int8" in precision
        else "fp8"
        if "fp8" in precision
        else "nf4"
        if any(word in precision for word in ("nf4", "int4", "int2", "uint"))
        else ""
    )
    if ours and reading.settings["adapter.method"] == "lora":
        reading.put("memory.quantise", ours, "base_model_precision")
    for key in ("musubi_blocks_to_swap", "enable_group_offload", "ramtorch"):
        if reading.values.get(key) not in (None, False, 0, "", "false"):
            reading.put("memory.offload", "blocks", key, why="all blocks take turns here (GPU only)")
    for key in ("checkpoint_step_interval", "checkpointing_steps"):
        if reading.has(key):
            steps.put_every(reading, "checkpoint_every_steps", reading.whole(key), key)
    if reading.whole("checkpoints_total_limit", 5) > 0:
        reading.put(
            "keep_checkpoints", min(1000, reading.whole("checkpoints_total_limit", 5)), "checkpoints_total_limit"
        )
    if reading.has("validation_prompt") and not reading.flag("validation_disable"):
        previews.put_prompts(reading, [reading.text("validation_prompt")], "validation_prompt")
    key = "validation_steps" if reading.has("validation_steps") else "validation_step_interval"
    every = 0 if reading.flag("validation_disable") else reading.whole(key, 100)
    reading.put("preview_every_steps", min(steps.MAX_STEPS, max(0, every)), key, "validation_disable")
    for key, setting in (("validation_seed", "preview.seed"), ("validation_num_inference_steps", "preview.steps")):
        if reading.has(key):
            reading.put(setting, max(0, reading.whole(key)), key)
    if reading.settings["family"] in bases.DIFFUSION and reading.has("validation_guidance_rescale"):
        rescale = reading.number("validation_guidance_rescale")
        reading.put("preview.guidance_rescale", rescale, "validation_guidance_rescale")
    if reading.text("dynamo_backend", "no").lower() not in ("no", ""):
        reading.put("memory.compile", "blocks", "dynamo_backend")
    if reading.has("validation_guidance"):
        reading.put("preview.guidance_scale", reading.number("validation_guidance"), "validation_guidance")


TOOL = Tool(
    name="simpletuner", turn=50, title="SimpleTuner", version=VERSION, rows=ROWS, recognises=_recognises,
    flatten=_flatten, read=_read,
)  # fmt: skip
