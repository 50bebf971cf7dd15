"""How long and how fast a recipe in kohya's words learns: steps, rates, optimizer, schedule, precision, saves."""

from __future__ import annotations

import math

from trainer.other_trainers import class_options, learning, previews, steps
from trainer.other_trainers.bases import CLIP_FAMILIES
from trainer.other_trainers.reading import Reading

_DTYPES = {
    "no": "float32", "fp32": "float32", "float": "float32", "float32": "float32", "fp16": "float16",
    "float16": "float16",
    "bf16": "bfloat16", "bfloat16": "bfloat16",
}  # fmt: skip
_APART = ("text_encoder_lr1", "text_encoder_lr2")  # as its documentation for SDXL has it, though its parser hasn't
_TEXT_ENCODERS = {"sd": 1, "sdxl": 2, "sd3": 2, "flux": 1}


def put_steps(reading: Reading, repeats: int, batch_key: str, twice: bool = False) -> int:
    """Set batch, accumulation and steps; steps an epoch. Epochs count before steps, as there."""
    steps.put_batch(reading, batch_key, "gradient_accumulation_steps")
    batch, accumulation = reading.settings["batch_size"], reading.settings["accumulation"]
    shown = repeats * (2 if twice else 1)  # regularisation pictures are shown as often again
    an_epoch, how = steps.per_epoch(reading, shown, batch, accumulation)
    epochs = reading.whole("max_train_epochs")
    if epochs > 0:
        steps.put_steps(reading, epochs * an_epoch, f"{epochs} epochs of {how}", "max_train_epochs")
        reading.no_effect("max_train_steps", "max_train_epochs counts where both are given")
    else:
        steps.put_steps(reading, reading.whole("max_train_steps", 1600), "", "max_train_steps")
    return an_epoch


def put_rates(reading: Reading) -> None:
    """Set the learning rate of the denoiser and of the text encoders; a rate left out is `learning_rate`."""
    family = reading.settings["family"]
    main = reading.number("learning_rate", 2e-6)
    denoiser = reading.number("unet_lr", main)
    text_keys = ("text_encoder_lr", *_APART, "network_train_unet_only", "network_train_text_encoder_only")
    text: dict[str, float] = {}

    # Which text encoders are trained; T5 is adapted nowhere here.
    if reading.flag("network_train_unet_only") or family not in CLIP_FAMILIES:
        for key in ("text_encoder_lr", *_APART):
            reading.no_effect(key, "no text encoder is trained")
        if family not in CLIP_FAMILIES:
            reading.no_effect("network_train_unet_only", f"no text encoder of {family} is trained here anyway")
    else:
        rates = _rates(reading, main)
        count = _TEXT_ENCODERS[family]
        names = ["text_encoder", "text_encoder_2"][:count]
        text = {name: rates[min(place, len(rates) - 1)] for place, name in enumerate(names)}
        if len(rates) > count and rates[count] > 0:
            reading.notes.append("T5 is not adapted here; its learning rate goes nowhere")
    if reading.flag("network_train_text_encoder_only"):
        denoiser = 0.0

    # The main rate is the denoiser's.
    main_keys = ("unet_lr",) if reading.has("unet_lr") else ("learning_rate",)
    learning.put_part_rates(reading, denoiser, text, main_keys, text_keys)
    if reading.has("unet_lr") and reading.has("learning_rate") and (not text or reading.has("text_encoder_lr")):
        reading.no_effect("learning_rate", "unet_lr and text_encoder_lr count where they are given")


def _rates(reading: Reading, main: float) -> list[float]:
    """Rates of the text encoders, one for all or one each."""
    value = reading.seen.get("text_encoder_lr")
    if isinstance(value, list):
        rates = []
        for entry in value[:4]:
            try:
                rates.append(abs(float(entry)))
            except (TypeError, ValueError, OverflowError):
                continue
        return [rate for rate in rates if math.isfinite(rate)] or [main]
    if value is None and any(reading.has(key) for key in _APART):
        return [reading.number(key, main) for key in _APART]
    return [reading.number("text_encoder_lr", main)]


def put_optimizer(reading: Reading) -> None:
    """Set optimizer, schedule, warm-up, clipping and weight-norm limit."""
    # The optimizer: two old flags name an optimizer as well.
    name = reading.text("optimizer_type", "")
    key = "optimizer_type"
    for flag, meant in (("use_8bit_adam", "AdamW8bit"), ("use_lion_optimizer", "Lion")):
        if not name and reading.flag(flag):
            name, key = meant, flag
    prefix = "optimizer_args."
    options = {name[len(prefix) :]: value for name, value in reading.seen.items() if name.startswith(prefix)}
    options = class_options.with_left_out(class_options.KOHYA, name, options)
    learning.put_optimizer(reading, name, options, key, prefix + "{}")

    # The schedule: adafactor that finds its rate has its own.
    schedule = reading.text("lr_scheduler", "constant")
    if reading.settings["optimizer.name"] == "adafactor" and learning.finds_rate(options):
        reading.put("optimizer.schedule", "constant")
        reading.put("optimizer.warmup_steps", 0)
        for key in ("lr_scheduler", "lr_warmup_steps", "lr_scheduler_num_cycles", "lr_scheduler_power"):
            reading.no_effect(key, "with relative_step on, Adafactor's own schedule stands for it")
        _put_limits(reading)
        return
    learning.put_schedule(reading, schedule, "lr_scheduler", "lr_scheduler_num_cycles", "lr_scheduler_power")
    if learning.spelled(schedule) == "constant":  # there it takes no warm-up, and refuses it
        reading.put("optimizer.warmup_steps", 0)
        reading.no_effect("lr_warmup_steps", "a constant schedule has no warm-up; constant_with_warmup has")
    else:
        learning.put_warmup(
            reading, reading.number("lr_warmup_steps"), reading.settings["max_steps"], "lr_warmup_steps"
        )
    _put_limits(reading)


def _put_limits(reading: Reading) -> None:
    learning.put_clip(reading, "max_grad_norm")
    if (limit := reading.number("scale_weight_norms")) > 0:
        reading.put("optimizer.max_weight_norm", limit, "scale_weight_norms")


def put_running(reading: Reading, an_epoch: int) -> None:
    """Set seed, precision, memory, saves and previews."""
    # Seed, precision and memory.
    reading.put("seed", max(0, reading.whole("seed", 0)), "seed")
    reading.put("dtype", _dtype(reading, "mixed_precision", "no"), "mixed_precision")
    reading.put("save_dtype", _dtype(reading, "save_precision", "float32"), "save_precision")
    reading.put("memory.gradient_checkpointing", reading.flag("gradient_checkpointing"), "gradient_checkpointing")
    if reading.settings["adapter.method"] == "lora":
        for key in ("fp8_base", "fp8_base_unet", "fp8_scaled"):
            if reading.flag(key):
                reading.put("memory.quantise", "fp8", key)
    elif reading.flag("fp8_base"):
        reading.cannot("fp8_base", "a quantised base is for plain LoRA here")
    if reading.whole("blocks_to_swap") > 0:
        reading.put("memory.offload", "blocks", "blocks_to_swap", why="all blocks take turns here (GPU only)")

    # What is kept and shown.
    every = reading.whole("save_every_n_steps") or reading.whole("save_every_n_epochs") * an_epoch
    steps.put_every(reading, "checkpoint_every_steps", every, "save_every_n_steps", "save_every_n_epochs")
    kept, within = reading.whole("save_last_n_epochs"), reading.whole("save_last_n_steps")
    if kept > 0:
        reading.put("keep_checkpoints", min(kept, 1000), "save_last_n_epochs")
    elif within > 0 and every > 0:  # those saved within so many steps, and the newest
        reading.put("keep_checkpoints", min(within // every + 1, 1000), "save_last_n_steps")
    shown = reading.whole("sample_every_n_steps") or reading.whole("sample_every_n_epochs") * an_epoch
    reading.put("preview_every_steps", max(0, shown), "sample_every_n_steps", "sample_every_n_epochs")
    validated = reading.whole("validate_every_n_steps") or reading.whole("validate_every_n_epochs") * an_epoch
    steps.put_every(reading, "validate_every_steps", validated, "validate_every_n_steps", "validate_every_n_epochs")
    _put_prompts(reading)


def _dtype(reading: Reading, key: str, default: str) -> str:
    name = reading.text(key, default).lower()
    if name not in _DTYPES:
        reading.cannot(key, f"allowed: {', '.join(_DTYPES)}")
    return _DTYPES.get(name, _DTYPES[default])


def _put_prompts(reading: Reading) -> None:
    """Prompts that stand in the recipe, or in a text file beside it."""
    text = reading.text("sample_prompts")
    if "\n" in text or " " in text.strip():
        previews.put_lines(reading, text.splitlines(), "sample_prompts")
    elif text:
        reading.cannot("sample_prompts", "it names a file; write the prompts into preview.prompts")
