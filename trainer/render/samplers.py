"""Samplers by the names that users of A1111 and ComfyUI know: diffusers' schedulers with the base's own settings."""

from __future__ import annotations

from typing import Any

from trainer.errors import ConfigError
from trainer.families.contract import Family

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpm++_2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
}


def fitting(family: Family) -> list[str]:
    """Those that can draw with a family's bases."""
    return [
        name
        for name in SAMPLERS
        if name.startswith("flow_") == ("flow" in family.prediction) and name not in family.unfit_samplers
    ]


def check(name: str, family: Family) -> None:
    """Raises: ConfigError if there is no such sampler, or it isn't for this family."""
    if name and name not in fitting(family):
        raise ConfigError(
            f"sampler is {name!r}; allowed for this base: {', '.join(fitting(family))}, or empty for the base's own."
        )
