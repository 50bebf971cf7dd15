"""Our samplers as other tools name them, both ways."""

from __future__ import annotations

import re

# As A1111: sampler and, where it isn't the sampler's usual schedule, schedule type.
A1111: dict[str, tuple[str, str]] = {
    "ddim": ("DDIM", ""),
    "ddpm": ("DDPM", ""),
    "euler": ("Euler", ""),
    "euler_a": ("Euler a", ""),
    "heun": ("Heun", ""),
    "lms": ("LMS", ""),
    "dpm++_2m": ("DPM++ 2M", "Uniform"),
    "dpm++_2m_karras": ("DPM++ 2M", "Karras"),
    "dpm++_2m_sde": ("DPM++ 2M SDE", "Uniform"),
    "unipc": ("UniPC", ""),
    "flow_euler": ("Euler", "Simple"),
    "flow_heun": ("Heun", "Simple"),
}
# As ComfyUI's KSampler, Fooocus and SwarmUI: sampler_name and scheduler (comfy/samplers.py).
COMFYUI: dict[str, tuple[str, str]] = {
    "ddim": ("ddim", "ddim_uniform"),
    "ddpm": ("ddpm", "normal"),
    "euler": ("euler", "normal"),
    "euler_a": ("euler_ancestral", "normal"),
    "heun": ("heun", "normal"),
    "lms": ("lms", "normal"),
    "dpm++_2m": ("dpmpp_2m", "normal"),
    "dpm++_2m_karras": ("dpmpp_2m", "karras"),
    "dpm++_2m_sde": ("dpmpp_2m_sde", "normal"),
    "unipc": ("uni_pc", "normal"),
    "flow_euler": ("euler", "simple"),
    "flow_heun": ("heun", "simple"),
}
# As InvokeAI (invokeai/backend/stable_diffusion/schedulers/schedulers.py).
INVOKEAI: dict[str, str] = {
    "ddim": "ddim",
    "ddpm": "ddpm",
    "euler": "euler",
    "euler_a": "euler_a",
    "heun": "heun",
    "lms": "lms",
    "dpmpp_2m": "dpm++_2m",
    "dpmpp_2m_k": "dpm++_2m_karras",
    "dpmpp_2m_sde": "dpm++_2m_sde",
    "unipc": "unipc",
}
# Elsewhere each two of these have one name, for noise and for flow.
TWINS = {"flow_euler": "euler", "flow_heun": "heun", "euler": "flow_euler", "heun": "flow_heun"}
_PLAIN = ("", "Automatic", "Uniform")


def from_a1111(name: str, schedule: str) -> str:
    """Our name of a sampler and schedule of A1111's, or the name as it stands there."""
    # Before A1111 1.9 the schedule stood behind the sampler's name, and nothing stood for the plain schedule.
    if match := re.fullmatch(r"(.{1,60}) (Karras|Exponential|Polyexponential)", name):
        name, schedule = match[1], match[2]
    fitting = [
        ours
        for ours, (theirs, kind) in A1111.items()
        if theirs == name and (kind == schedule or (kind in _PLAIN and schedule in _PLAIN))
    ]
    return fitting[0] if fitting else f"{name} {'' if schedule in _PLAIN else schedule}".strip()


def from_comfyui(name: str, scheduler: str) -> tuple[str, str]:
    """Our name of a sampler of ComfyUI's, or the name as it stands there; and a scheduler that ours hasn't, if any."""
    without_device = name.removesuffix("_gpu")
    same_sampler = [ours for ours, (theirs, _) in COMFYUI.items() if theirs == without_device]
    same_scheduler = [ours for ours in same_sampler if scheduler in ("", COMFYUI[ours][1])]
    if same_scheduler:
        return same_scheduler[0], ""
    return (same_sampler[0], scheduler) if same_sampler else (name, "")
