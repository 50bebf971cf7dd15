"""diffusers' training scripts: a command line that starts such a script, in a shell script or any text.

Alpha is the rank where a script has no `--lora_alpha`, else 4; factors start as normal numbers (init = gaussian). A
flow base is trained on the timesteps of its own scheduler: shifted by what its config says, unless that goes by size.
"""

from __future__ import annotations

from trainer.errors import ConfigError
from trainer.other_trainers import bases, learning, previews, steps
from trainer.other_trainers.contract import Tool
from trainer.other_trainers.documents import Document
from trainer.other_trainers.reading import Reading
from trainer.other_trainers.tables import groups

VERSION = "August 2026 (58eb52c)"
_SCRIPTS = {
    "train_dreambooth_lora.py": "sd", "train_text_to_image_lora.py": "sd",
    "train_dreambooth_lora_sd15_advanced.py": "sd",
    "train_dreambooth_lora_sdxl.py": "sdxl", "train_text_to_image_lora_sdxl.py": "sdxl",
    "train_dreambooth_lora_sdxl_advanced.py": "sdxl", "train_dreambooth_lora_sd3.py": "sd3",
    "train_dreambooth_lora_flux.py": "flux", "train_dreambooth_lora_flux_advanced.py": "flux",
    "train_dreambooth_lora_flux2.py": "flux2dev", "train_dreambooth_lora_flux2_klein.py": "flux2",
    "train_dreambooth_lora_qwen_image.py": "qwen", "train_dreambooth_lora_z_image.py": "zimage",
    "train_dreambooth_lora_lumina2.py": "lumina2", "train_dreambooth_lora_hidream.py": "hidream",
    "train_dreambooth_lora_sana.py": "sana",
}  # fmt: skip
WITH_ALPHA = ("flux", "flux2", "flux2dev", "qwen", "zimage", "sana")  # whose scripts have `--lora_alpha`
CAPTION_TO_SET = "the caption of all your pictures"  # stands where a recipe of ours has none to give
_SHIFTED = ("sd3", "zimage", "lumina2", "sana", "hidream")  # by a number in the base's own config
_DTYPES = {"no": "float32", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
ROWS = groups("diffusers_scripts")["arguments"]


def _recognises(document: Document) -> bool:
    return document.kind == "command" and (document.command in _SCRIPTS or _is_other(document.command))


def _is_other(script: str) -> bool:
    """Whether this is a script of diffusers for what isn't trained here."""
    return script.startswith(
        ("train_dreambooth_lora_", "train_text_to_image_lora_", "train_lcm_distill_lora", "train_control_lora")
    )


def _read(reading: Reading) -> None:
    family = reading.asked_family or _SCRIPTS.get(reading.document.command, "")
    if not family:
        raise ConfigError(f"{bases.cannot_train(reading, reading.document.command)}.")
    bases.put_base(reading, family, "pretrained_model_name_or_path")
    # The preset is called as the last folder, which may be of a Windows path.
    reading.name = reading.text("output_dir").replace("\\", "/").rstrip("/").rpartition("/")[2]
    reading.translated("output_dir", "the preset's name")

    # Steps first: previews are counted in epochs, which have so many.
    an_epoch = _put_steps(reading)
    _put_data(reading)
    _put_adapter(reading)
    _put_rates(reading)
    _put_optimizer(reading)
    _put_objective(reading)
    _put_running(reading, an_epoch)


def _by_text(reading: Reading) -> bool:
    """Whether it is a text-to-image script, whose defaults are others than DreamBooth's."""
    return "text_to_image" in reading.document.command


def _put_steps(reading: Reading) -> int:
    steps.put_batch(reading, "train_batch_size", "gradient_accumulation_steps", 16 if _by_text(reading) else 4)
    batch, accumulation = reading.settings["batch_size"], reading.settings["accumulation"]
    twice = 2 if reading.flag("with_prior_preservation") else 1
    an_epoch, how = steps.per_epoch(reading, max(1, reading.whole("repeats", 1)), batch, accumulation)
    if twice == 2:
        reading.cannot("with_prior_preservation", "give the class's pictures with data.regularisation")

    # Steps count before epochs.
    if reading.whole("max_train_steps") > 0:
        steps.put_steps(reading, reading.whole("max_train_steps"), "", "max_train_steps")
        reading.no_effect("num_train_epochs", "max_train_steps counts where both are given")
    else:
        epochs = max(1, reading.whole("num_train_epochs", 100 if _by_text(reading) else 1))
        steps.put_steps(reading, epochs * an_epoch, f"{epochs} epochs of {how}", "num_train_epochs")
    return an_epoch


def _put_data(reading: Reading) -> None:
    family = reading.settings["family"]
    # The default size goes by the script, what a size must be a multiple of by the family.
    default = 1024 if family in ("sdxl", "sana", "hidream", "lumina2") else 512
    multiple = 32 if family == "sana" else 8 if family in ("sd", "sdxl") else 16
    size = round(reading.whole("resolution", default) / multiple) * multiple
    reading.put("resolution_px", max(64, min(4096, size)), "resolution")
    bucketed = reading.flag("use_aspect_ratio_buckets") or reading.has("aspect_ratio_buckets")
    reading.put("data.buckets", bucketed, "aspect_ratio_buckets", "use_aspect_ratio_buckets")
    # Small pictures are enlarged to the size there, however small.
    reading.put("data.max_upscale", 16.0)
    reading.put("data.crop", "centre" if reading.flag("center_crop") else "random", "center_crop")
    reading.put("data.flip", reading.flag("random_flip"), "random_flip")
    reading.put("data.caption_dropout", reading.number("caption_dropout"), "caption_dropout")

    # The one caption of all pictures.
    prompt = reading.text("instance_prompt").strip()
    if prompt == CAPTION_TO_SET:
        reading.no_effect("instance_prompt", "it is yours to set")
    elif prompt:
        reading.put(
            "captions.prefix",
            prompt[:500],
            "instance_prompt",
            why="it is the caption of every picture there; here it stands before captions, or alone without one",
        )

    # The class's pictures.
    if reading.flag("with_prior_preservation"):
        reading.put("data.regularisation_weight", reading.number("prior_loss_weight", 1.0), "prior_loss_weight")
        if reading.has("class_prompt"):
            reading.put("data.class_caption", reading.text("class_prompt").strip()[:200], "class_prompt")
    else:
        reading.no_effect("prior_loss_weight", "there is no prior preservation")
        reading.no_effect("class_prompt", "there is no prior preservation")


def _put_adapter(reading: Reading) -> None:
    family, dora = reading.settings["family"], reading.flag("use_dora")
    reading.put("adapter.method", "dora" if dora else "lora", "use_dora")
    rank = max(1, reading.whole("rank", 4))
    reading.put("adapter.rank", rank, "rank")
    reading.put(
        "adapter.alpha", reading.number("lora_alpha", 4.0) if family in WITH_ALPHA else float(rank), "lora_alpha"
    )
    reading.put("adapter.dropout", reading.number("lora_dropout"), "lora_dropout")
    if not dora:
        reading.put("adapter.init", "gaussian")

    # Layers: a list of names, or those that each script takes by itself.
    layers = [layer.strip() for layer in reading.text("lora_layers").split(",")[:64] if layer.strip()]
    keys = ("lora_layers",)
    # No target here is what FLUX's and Qwen's scripts take by themselves: a rate of 0 freezes the rest.
    if not layers and family == "flux":
        reading.put("adapter.targets", "attention-ff", *keys)
        reading.put("optimizer.block_rates", ["proj_mlp=0", "proj_out=0"], *keys)
    elif not layers and family == "qwen":
        reading.put("adapter.targets", "attention", *keys)
        reading.put("optimizer.block_rates", ["add_=0"], *keys)
    else:
        has_ff = any("ff" in layer or "mlp" in layer or "feed_forward" in layer for layer in layers)
        reading.put("adapter.targets", "attention-ff" if has_ff else "attention", *keys)
        if layers and not any("to_" in layer or "attn" in layer for layer in layers):
            reading.cannot("lora_layers", "no choice of layers here is the same")
    if reading.has("lora_blocks"):
        reading.cannot("lora_blocks", "freeze the other blocks by optimizer.block_rates")


def _put_rates(reading: Reading) -> None:
    family, main = (
        reading.settings["family"],
        reading.number("learning_rate", 5e-4 if reading.document.command == "train_dreambooth_lora.py" else 1e-4),
    )
    if reading.flag("scale_lr"):
        main *= reading.settings["batch_size"] * reading.settings["accumulation"]
        reading.translated("scale_lr", "learning_rate", "the rate is multiplied by what a step sees")
    text: dict[str, float] = {}
    if reading.flag("train_text_encoder") and family in bases.CLIP_FAMILIES:
        # SD's script has no rate for its text encoder alone.
        rate = reading.number("text_encoder_lr", 5e-6) if reading.has("text_encoder_lr") or family != "sd" else main
        text = dict.fromkeys(("text_encoder", "text_encoder_2")[: 2 if family in ("sdxl", "sd3") else 1], rate)
        # Only the encoders' attention is adapted there; their MLPs are frozen here.
        held = list(reading.settings.get("optimizer.block_rates", []))
        reading.put("optimizer.block_rates", [".mlp.fc=0", *held], "train_text_encoder")
    else:
        reading.no_effect("text_encoder_lr", "no text encoder is trained")
    learning.put_part_rates(reading, main, text, ("learning_rate",), ("train_text_encoder", "text_encoder_lr"))
    if text:  # the lines of parts stand first; what is frozen in them must come before
        lines = reading.settings["optimizer.block_rates"]
        reading.settings["optimizer.block_rates"] = sorted(lines, key=lambda line: not line.endswith("=0"))


def _put_optimizer(reading: Reading) -> None:
    name = reading.text("optimizer", "AdamW")
    key = "optimizer"
    if learning.spelled(name) == "adamw" and reading.flag("use_8bit_adam"):
        name, key = "AdamW8bit", "use_8bit_adam"

    # Arguments; those left out are what the script has by itself.
    options: dict[str, object] = {
        "weight_decay": reading.number("adam_weight_decay", 1e-2 if _by_text(reading) else 1e-4)
    }
    beta2 = reading.number("adam_beta2", 0.999)
    if reading.has("adam_beta1") or reading.has("adam_beta2"):
        options["betas"] = [reading.number("adam_beta1", 0.9), beta2]
    if reading.has("adam_epsilon"):
        options["eps"] = reading.number("adam_epsilon", 1e-8)
    if learning.spelled(name) == "prodigy":
        for option in ("decouple", "use_bias_correction", "safeguard_warmup"):
            options[option] = reading.flag(f"prodigy_{option}", True)
        if reading.has("prodigy_beta3"):
            options["beta3"] = reading.number("prodigy_beta3")
    names = {"weight_decay": "adam_weight_decay", "betas": "adam_beta1", "eps": "adam_epsilon"}
    learning.put_optimizer(reading, name, {option: value for option, value in options.items()}, key, "prodigy_{}")
    # The scripts have options of their own for these; the call above marks them as prodigy's.
    reading.put("optimizer.weight_decay", reading.settings["optimizer.weight_decay"], names["weight_decay"])
    if reading.settings.get("optimizer.options"):
        reading.put(
            "optimizer.options", reading.settings["optimizer.options"], "adam_beta1", "adam_beta2", "adam_epsilon"
        )

    # The schedule: a constant rate has no warm-up, though the scripts' default is a warm-up of 500 steps.
    schedule = reading.text("lr_scheduler", "constant")
    learning.put_schedule(reading, schedule, "lr_scheduler", "lr_num_cycles", "lr_power")
    if learning.spelled(schedule) == "constant":
        reading.put("optimizer.warmup_steps", 0)
        reading.no_effect("lr_warmup_steps", "a constant schedule has no warm-up; constant_with_warmup has")
    else:
        learning.put_warmup(
            reading, reading.whole("lr_warmup_steps", 500), reading.settings["max_steps"], "lr_warmup_steps"
        )
    learning.put_clip(reading, "max_grad_norm")


def _put_objective(reading: Reading) -> None:
    family, loss = reading.settings["family"], reading.text("loss_type", "l2")
    if loss in ("huber", "smooth_l1"):
        reading.put("objective.loss", loss, "loss_type")
        reading.put("objective.huber_delta", reading.number("huber_c", 0.1), "huber_c")
        reading.cannot("huber_schedule", "the corner is the same at every timestep here")

    # Diffusion models.
    if family in bases.DIFFUSION:
        if (gamma := reading.number("snr_gamma")) > 0:
            reading.put("objective.weighting", "min-snr", "snr_gamma")
            reading.put("objective.min_snr_gamma", gamma, "snr_gamma")
        if (offset := reading.number("noise_offset")) > 0:
            reading.put("objective.noise_offset", offset, "noise_offset")
        return

    # Flow models: how timesteps are drawn.
    scheme = reading.text("weighting_scheme", "logit_normal" if family == "sd3" else "none")
    if scheme == "logit_normal":  # a larger number is cleaner there
        reading.put("objective.timesteps", "logit-normal", "weighting_scheme")
        reading.put("objective.timesteps_mean", -reading.number("logit_mean"), "logit_mean")
        reading.put("objective.timesteps_std", reading.number("logit_std", 1.0), "logit_std")
    elif scheme == "mode" and reading.number("mode_scale", 1.29) == 0:
        reading.put("objective.timesteps", "uniform", "weighting_scheme", "mode_scale", why="a mode of 0 is uniform")
    elif scheme == "mode":
        reading.put("objective.timesteps", "mode", "weighting_scheme")
        reading.put("objective.timesteps_mode_scale", reading.number("mode_scale", 1.29), "mode_scale")
    else:
        reading.put("objective.timesteps", "uniform", "weighting_scheme")
        if scheme in ("sigma_sqrt", "cosmap"):
            reading.cannot("weighting_scheme", "noise levels of a flow model count alike here")

    # The shift of the base's own scheduler, and the guidance of a distilled base.
    if family in _SHIFTED:
        reading.put("objective.shift", "resolution")
    guidance = reading.number("guidance_scale", 3.5)
    if family == "flux" and guidance != 1:
        reading.cannot("guidance_scale", "a distilled base is trained at guidance 1 here")
    else:
        reading.no_effect("guidance_scale", "1, as here")


def _put_running(reading: Reading, an_epoch: int) -> None:
    # Seed, dtype and memory.
    reading.put("seed", max(0, reading.whole("seed", 0)), "seed")
    dtype = reading.text("mixed_precision", "no").lower()
    if dtype not in _DTYPES:
        reading.cannot("mixed_precision", f"allowed: {', '.join(_DTYPES)}")
    reading.put("dtype", _DTYPES.get(dtype, "float32"), "mixed_precision")
    reading.put("memory.gradient_checkpointing", reading.flag("gradient_checkpointing"), "gradient_checkpointing")
    for key, ours in (("do_fp8_training", "fp8"), ("bnb_quantization_config_path", "nf4")):
        if reading.has(key) and reading.values.get(key) is not False and reading.settings["adapter.method"] == "lora":
            reading.put("memory.quantise", ours, key)
    if reading.flag("offload"):
        reading.put("memory.offload", "encoders", "offload")

    # Checkpoints and previews; these are counted in epochs there.
    steps.put_every(reading, "checkpoint_every_steps", reading.whole("checkpointing_steps", 500), "checkpointing_steps")
    if reading.whole("checkpoints_total_limit") > 0:
        reading.put("keep_checkpoints", min(1000, reading.whole("checkpoints_total_limit")), "checkpoints_total_limit")
    if reading.has("validation_prompt"):
        previews.put_prompts(reading, [reading.text("validation_prompt")], "validation_prompt")
        every = max(1, reading.whole("validation_epochs", 1 if _by_text(reading) else 50)) * an_epoch
        reading.put("preview_every_steps", min(steps.MAX_STEPS, every), "validation_epochs")
    else:
        reading.put("preview_every_steps", 0)


TOOL = Tool(
    name="diffusers", turn=80, title="diffusers' scripts", version=VERSION, rows=ROWS, recognises=_recognises,
    flatten=lambda document: dict(document.values), read=_read,
)  # fmt: skip
