"""What a tool builds an optimizer with where a recipe leaves it out, if it isn't what ours has: `eps`, betas, decay.

By the name in small letters and digits, as `learning.spelled` makes it. Where they stand: ai-toolkit's
`toolkit/optimizer.py`, SimpleTuner's `helpers/training/optimizer_param.py`, diffusion-pipe's `train.py` and the
defaults of optimi, sd-scripts' `library/train_util.py` and musubi-tuner's `training/trainer_base.py`, which turn on
what transformers' Adafactor has by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.other_trainers import learning

_COARSE = {"eps": 1e-6}
_FINDS_RATE = {"relative_step": True, "scale_parameter": True}
_OPTIMI = {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.0}

AI_TOOLKIT: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("adam", "adamw", "adam8", "adam8bit", "adamw8bit", "ademamix8bit", "prodigy", "prodigy8bit", "dadaptation"),
        _COARSE,
    ),
    "adamw8": {"eps": 1e-6, "weight_decay": 0.0},
}
SIMPLETUNER: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("adamwbf16", "bnbadamw", "bnbadamw8bit", "bnbadamwpaged", "bnbadamw8bitpaged", "aoadamw8bit"), _COARSE
    ),
    **dict.fromkeys(("optimiadamw", "optimiadam", "optimiradam", "optimiranger"), _OPTIMI),
    "optimiadan": {"betas": (0.98, 0.92, 0.999), "eps": 1e-6}, "optimistableadamw": _OPTIMI | {"weight_decay": 0.01},
    "adamwschedulefree": {"weight_decay": 0.01}, "prodigy": {"betas": (0.9, 0.99)},
}  # fmt: skip
DIFFUSION_PIPE: dict[str, dict[str, Any]] = {
    "adamwoptimi": _OPTIMI, "stableadamw": _OPTIMI | {"weight_decay": 0.01},
    "genericoptim": {"eps": 1e-6, "weight_decay": 0.0}, "adafactor": _FINDS_RATE,
}  # fmt: skip
KOHYA: dict[str, dict[str, Any]] = {"adafactor": _FINDS_RATE}


def with_left_out(tool: Mapping[str, dict[str, Any]], name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a recipe gives, and those that the tool gives its class beside them."""
    return {**tool.get(learning.spelled(name), {}), **options}
