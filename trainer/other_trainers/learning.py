"""Optimizers, their arguments and schedules by the names other trainers have for them -> ours.

What a tool's class does by itself where a recipe leaves an argument out is set here, since ours has other defaults: a
weight decay of 0.01 is AdamW's alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trainer.other_trainers.reading import Reading, shown

# The name in small letters and digits -> our name, the class if it is `other`, its weight decay where none is said.
_OPTIMIZERS: dict[str, tuple[str, str, float]] = {
    **dict.fromkeys(
        ("adamw", "adamwbf16", "adamwoptimi", "optimiadamw", "adamwkahan", "genericoptim", "torchadamw", "bnbadamw",
         "bnbadamwpaged"),
        ("adamw", "", 0.01),
    ),
    **dict.fromkeys(
        ("adamw8bit", "pagedadamw8bit", "adamw8bitkahan", "bnbadamw8bit", "bnbadamw8bitpaged", "adamw8", "pagedadamw",
         "torchaoadamw8bit", "aoadamw8bit", "adamw32bit", "pagedadamw32bit"),
        ("adamw8bit", "", 0.01),
    ),
    **dict.fromkeys(("adam", "torchadam", "optimiadam", "bnbadam"), ("adamw", "", 0.0)),
    "bnbadam8bit": ("adamw8bit", "", 0.0), "adam8bit": ("adamw8bit", "", 0.0), "adam8": ("adamw8bit", "", 0.0),
    **dict.fromkeys(
        ("lion", "lion8bit", "pagedlion8bit", "optimilion", "lionpytorch", "bnblion8bit", "bnblion8bitpaged",
         "bnblion", "bnblionpaged"),
        ("lion", "", 0.0),
    ),
    "adafactor": ("adafactor", "", 0.0),
    **dict.fromkeys(("prodigy", "prodigyopt", "prodigy8bit"), ("prodigy", "", 0.0)),
    **dict.fromkeys(
        ("adamwschedulefree", "schedulefreeadamw", "adamwschedulefreekahan", "schedulefree"), ("schedule-free", "", 0.0)
    ),
    "came": ("other", "CAME", 0.0), "came8bit": ("other", "CAME", 0.0), "soap": ("other", "SOAP", 0.01),
    "dadaptadam": ("other", "DAdaptAdam", 0.0), "dadaptation": ("other", "DAdaptAdam", 0.0),
    "dadaptadampreprint": ("other", "DAdaptAdam", 0.0), "dadaptlion": ("other", "DAdaptLion", 0.0),
    "dadaptadan": ("other", "DAdaptAdan", 0.0), "dadaptadagrad": ("other", "DAdaptAdaGrad", 0.0),
    "dadaptsgd": ("other", "DAdaptSGD", 0.0),
    "ademamix": ("other", "AdEMAMix", 0.0), "ademamix8bit": ("other", "AdEMAMix", 0.01),
    "stableadamw": ("other", "StableAdamW", 0.01), "optimistableadamw": ("other", "StableAdamW", 0.01),
    "adopt": ("other", "ADOPT", 0.0), "adabelief": ("other", "AdaBelief", 0.0), "adan": ("other", "Adan", 0.0),
    "lamb": ("other", "Lamb", 0.0), "yogi": ("other", "Yogi", 0.0), "tiger": ("other", "Tiger", 0.01),
    **dict.fromkeys(("radam", "torchradam", "optimiradam"), ("other", "RAdam", 0.0)),
    **dict.fromkeys(("ranger", "optimiranger"), ("other", "Ranger", 0.0)), "optimiadan": ("other", "Adan", 0.02),
    "sophiah": ("other", "SophiaH", 0.0),
}  # fmt: skip
_OPTIONS: dict[str, tuple[str, ...]] = {
    "adamw": ("betas", "eps", "amsgrad"),
    "adamw8bit": ("betas", "eps", "amsgrad"),
    "lion": ("betas",),
    "adafactor": ("clip_threshold", "decay_rate", "beta1"),
    "prodigy": (
        "betas", "beta3", "eps", "decouple", "use_bias_correction", "safeguard_warmup", "d0", "d_coef", "growth_rate",
        "slice_p",
    ),
    "schedule-free": ("betas", "eps", "r", "weight_lr_power"),
}  # fmt: skip
_FIXED = {"scale_parameter": False, "relative_step": False, "warmup_init": False}  # of adafactor, as it is here
SAFE_RATE = 1e-4  # where the tool's adafactor finds another by itself
_SCHEDULES = {
    "constant": "constant", "constantwithwarmup": "constant", "linear": "linear", "linearwithwarmup": "linear",
    "cosine": "cosine", "cosineannealing": "cosine", "cosinewithrestarts": "restarts",
    "cosinewithhardrestarts": "restarts", "cosineannealingwithrestarts": "restarts", "polynomial": "linear",
    "rex": "rex", "none": "constant", "": "constant",
}  # fmt: skip
NO_LIMIT = 1e9  # of a gradient's length, where a tool doesn't clip


def spelled(name: str) -> str:
    """A name in small letters and digits: `AdamW8bit`, `adamw_8bit` and `ADAMW_8BIT` are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower().rpartition(".")[2] if "." in name else name.lower())


def arguments(texts: list[str]) -> dict[str, str]:
    """`["weight_decay=0.1", "betas=0.9,0.99"]` as a table; what has no `=` is left to its own key."""
    pairs = (text.partition("=") for text in texts[:32])
    return {key.strip()[:60]: value.strip()[:200] for key, equals, value in pairs if equals and key.strip()}


def put_optimizer(
    reading: Reading, name: str, options: Mapping[str, Any], key: str, option_key: str, default: str = "adamw"
) -> None:
    """Set optimizer, weight decay and options.

    `options` are the class's own arguments, or texts that spell them; `option_key` is an argument's key in the recipe,
    with `{}` for its name.
    """
    # The class.
    choice = _OPTIMIZERS.get(spelled(name) if name else default)
    if choice is None and name.startswith("pytorch_optimizer."):
        choice = "other", name.rpartition(".")[2], 0.01
    if choice is None:
        reading.cannot(key, f"no optimizer here is {shown(name)}; adamw is set, whose rates differ")
        choice, options = _OPTIMIZERS["adamw"], {}
    ours, other, decay = choice
    reading.put("optimizer.name", ours, key)
    if other:
        reading.put("optimizer.other", other, key)

    # Its arguments: the weight decay has a setting of its own.
    lines, keys = [], []
    for option, value in options.items():
        text, its_key = _literal(value), option_key.format(option)
        if option == "weight_decay":
            decay = _number(text, decay)
        elif option in _FIXED and ours == "adafactor":
            if text.lower() == str(_FIXED[option]).lower():
                reading.no_effect(its_key, "it is so here")
            else:
                reading.cannot(
                    its_key,
                    "adafactor takes the rate that is set here; scale_parameter, relative_step and warmup_init are off",
                )
        elif option in ("lr", "fused", "foreach", "stabilize", "is_paged", "block_wise"):
            reading.no_effect(its_key, "it changes how a step is computed, not what comes of it")
        elif ours == "other" or option in _OPTIONS[ours]:
            lines.append(f"{option}={text}")
            keys.append(its_key)
        else:
            reading.cannot(its_key, f"{ours} takes no {option[:40]} here")
    reading.put("optimizer.weight_decay", decay, option_key.format("weight_decay"))
    if lines:
        reading.put("optimizer.options", lines[:16], *keys)
    if ours == "adafactor":
        _put_adafactors_rate(reading, {option: _literal(value).lower() for option, value in options.items()})


def _put_adafactors_rate(reading: Reading, options: Mapping[str, str]) -> None:
    """Set a rate that is safe where the tool's adafactor takes another than is said.

    With `relative_step` it drops all rates that are said, those of the parts too; with `scale_parameter` it multiplies
    each by the size of its weights, which of a LoRA's is a thousandth to a fiftieth.
    """
    finds = finds_rate(options)
    if not finds and options.get("scale_parameter") != "true":
        return
    held = float(reading.settings.get("learning_rate", SAFE_RATE))
    rate = SAFE_RATE if finds else min(held, SAFE_RATE)
    what = "relative_step" if finds else "scale_parameter"
    does = "drops the rate and finds one by itself" if finds else "multiplies the rate by the size of the weights"
    why = f"with {what} on, as it is unless the recipe says {what}=False, Adafactor {does}; {rate:g} is set"
    reading.put_instead("learning_rate", rate, why)
    if finds:
        # The text encoders' factors go; what is frozen stays so.
        lines = reading.settings.get("optimizer.block_rates", [])
        kept = [line for line in lines if not line.startswith("text_encoder") or line.endswith("=0")]
        if kept != lines:
            reading.put_instead("optimizer.block_rates", kept, "with relative_step on, all parts have one rate")
    reading.notes.append(f"the learning rate is a guess: {why}")


def finds_rate(options: Mapping[str, Any]) -> bool:
    """Whether adafactor with these options finds its rate by itself; kohya's tools turn it on for `warmup_init`."""
    return any(str(options.get(key)).lower() == "true" for key in ("relative_step", "warmup_init"))


def _literal(value: Any) -> str:
    """An argument's value as our options spell it."""
    if isinstance(value, list | tuple):
        return f"({', '.join(_literal(entry) for entry in value[:8])})"
    text = str(value).strip()[:200]
    return f"({text})" if re.fullmatch(r"[\d.eE+-]+(,\s*[\d.eE+-]+)+", text) else text


def _number(text: str, default: float) -> float:
    try:
        return float(text)
    except ValueError:
        return default


def put_schedule(reading: Reading, name: str, key: str, cycles_key: str = "", power_key: str = "") -> None:
    """Set schedule and cycles from a scheduler's name."""
    ours = _SCHEDULES.get(spelled(name))
    if ours is None:
        reading.cannot(key, f"no schedule here is {shown(name)}; cosine is set, which also falls to zero")
        ours = "cosine"
    if spelled(name) == "polynomial" and power_key and reading.number(power_key, 1) != 1:
        reading.cannot(power_key, "the rate falls linearly here: a power of 1")
    if ours == "restarts":
        reading.put("optimizer.cycles", max(1, reading.whole(cycles_key, 1)), cycles_key)
    elif cycles_key:
        reading.no_effect(cycles_key, "only cosine with restarts reads it")
    if power_key and spelled(name) != "polynomial":
        reading.no_effect(power_key, "only a polynomial schedule reads it")
    reading.put("optimizer.schedule", ours, key)


def put_warmup(reading: Reading, steps: float, max_steps: int, *keys: str) -> None:
    """Set the warm-up: in steps, or as a share of all if it is below 1."""
    count = int(steps * max_steps) if 0 < steps < 1 else int(max(0.0, steps))
    reading.put("optimizer.warmup_steps", min(count, max(0, max_steps - 1)), *keys)


def put_clip(reading: Reading, key: str, default: float = 1.0) -> None:
    """Set the longest gradient; 0 is no limit elsewhere, and a very large one here."""
    limit = reading.number(key, default)
    reading.put("optimizer.max_grad_norm", limit if limit > 0 else NO_LIMIT, key)


def put_part_rates(
    reading: Reading, denoiser: float, text: dict[str, float], main_keys: tuple[str, ...], text_keys: tuple[str, ...]
) -> None:
    """Set the learning rate of the denoiser and, as factors on it, those of the text encoders by component.

    0 freezes. Where only text encoders are trained, theirs is the rate and the denoiser is frozen.
    """
    if reading.settings.get("adapter.method") == "oft":  # it adapts the denoiser alone
        text = {}
    trained = {part: rate for part, rate in text.items() if rate > 0}
    main = denoiser if denoiser > 0 else max(trained.values(), default=0.0)
    reading.put("learning_rate", main, *(main_keys if denoiser > 0 else text_keys))
    if reading.settings.get("adapter.method") != "oft":
        reading.put("adapter.text_encoder", bool(trained), *text_keys)

    # Factors on the main rate by component.
    lines = []
    if trained and main > 0:
        lines += [f"{part}/={rate / main:.10g}" for part, rate in text.items() if rate != main]
    if denoiser <= 0 and trained:
        lines += ["unet/=0" if reading.settings.get("family") in ("sd", "sdxl") else "transformer/=0"]
    if lines:
        # Before the lines of single blocks: the first that fits counts.
        held = list(reading.settings.get("optimizer.block_rates", []))
        reading.put("optimizer.block_rates", [*lines, *held], *text_keys)
