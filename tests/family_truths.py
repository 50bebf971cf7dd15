"""How diffusers itself trains and draws each family: its training scripts' way to a loss, its pipeline's own call
(`tests/truths`).
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import numpy
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from diffusers.training_utils import compute_snr
from PIL import Image
from torch import Tensor

from tests import truths
from trainer.config import StackConfig


def pixels(
    dataset: Any, name: str, size: tuple[int, int], pipe: Any
) -> tuple[Tensor, tuple[int, int, int, int, int, int]]:
    """A picture in [-1, 1] scaled and cut at the centre to the latents' size, and its height, width, top, left and
    those of the cut.
    """
    path = next(Path(item.path) for item in dataset.items if item.path.name == name)
    image = Image.open(path).convert("RGB")
    height, width = (side * pipe.vae_scale_factor for side in size)
    scale = max(width / image.width, height / image.height)
    left, top = (image.width * scale - width) / 2, (image.height * scale - height) / 2
    box = (left / scale, top / scale, (left + width) / scale, (top + height) / scale)
    framed = numpy.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box))
    return torch.from_numpy(framed.copy()).permute(2, 0, 1).float() / 127.5 - 1, (
        image.height,
        image.width,
        round(top),
        round(left),
        height,
        width,
    )


def _of(pipe: Any) -> ModuleType:
    """The module of `tests/truths` for this pipeline."""
    names = [info.name for info in pkgutil.iter_modules(truths.__path__)]
    return next(
        truth
        for truth in (importlib.import_module(f"tests.truths.{name}") for name in names)
        if type(pipe).__name__ == truth.PIPELINE
    )


def _scheduler(pipe: Any) -> Any:
    return _of(pipe).scheduler(pipe) if hasattr(_of(pipe), "scheduler") else pipe.scheduler


def losses(pipe: Any, images: list[Any], captions: list[str], noise: Tensor, timesteps: Tensor) -> Tensor:
    """The loss of each picture (N,): min-SNR 5 where the base predicts noise or v, plain for flow."""
    made = [
        _loss(pipe, image, size, caption, noise[row : row + 1], timesteps[row : row + 1])
        for row, ((image, size), caption) in enumerate(zip(images, captions, strict=True))
    ]
    return torch.cat(made)


def _loss(pipe: Any, image: Tensor, size: tuple[int, ...], caption: str, noise: Tensor, timestep: Tensor) -> Tensor:
    if hasattr(_of(pipe), "latents"):
        latents = _of(pipe).latents(pipe, image)
    else:
        config = pipe.vae.config
        latents = (pipe.vae.encode(image[None]).latent_dist.mode() - (config.shift_factor or 0)) * config.scaling_factor
    if isinstance(_scheduler(pipe), FlowMatchEulerDiscreteScheduler):
        scheduler = FlowMatchEulerDiscreteScheduler()  # the sigmas of all timesteps, unshifted
        noised = (1 - timestep / 1000).view(1, 1, 1, 1) * latents + (timestep / 1000).view(1, 1, 1, 1) * noise
        assert scheduler.config.num_train_timesteps == 1000
        target, weight = noise - latents, torch.ones(1)
    else:
        scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        noised, snr = scheduler.add_noise(latents, noise, timestep), compute_snr(scheduler, timestep)
        is_v = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, timestep) if is_v else noise
        weight = snr.clamp(max=5) / (snr + 1 if is_v else snr)
    prediction = _of(pipe).predict(pipe, noised, timestep, caption, size)
    return ((prediction - target) ** 2).mean((1, 2, 3)) * weight


def shifted(pipe: Any, shares: Tensor, height: int, width: int) -> Tensor:
    """Sigmas as the pipeline's scheduler makes them of evenly laid ones for latents of this size."""
    if hasattr(_of(pipe), "shifted"):
        shift: Tensor = _of(pipe).shifted(pipe, shares, (height // 2) * (width // 2))
        return shift
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        _scheduler(pipe).config, shift_terminal=None
    )  # which goes by the number of steps
    config = scheduler.config
    mu = None
    if config.use_dynamic_shifting:
        mu = calculate_shift(
            (height // 2) * (width // 2),
            config.base_image_seq_len,
            config.max_image_seq_len,
            config.base_shift,
            config.max_shift,
        )
    scheduler.set_timesteps(sigmas=shares.double().numpy(), mu=mu)
    return scheduler.sigmas[:-1]


def load(pipe: Any, path: Path) -> None:
    """A LoRA file into the pipeline, by its own loader if it has one."""
    if hasattr(_of(pipe), "load"):
        _of(pipe).load(pipe, path)
    else:
        pipe.load_lora_weights(str(path.parent), weight_name=path.name, use_safetensors=True, adapter_name="a")


def weigh(pipe: Any, factor: float) -> None:
    """That LoRA's weight."""
    if hasattr(_of(pipe), "weigh"):
        _of(pipe).weigh(pipe, factor)
    else:
        pipe.set_adapters(["a"], [factor])


@torch.no_grad()
def picture(pipe: Any, stack: StackConfig) -> numpy.ndarray:
    """(H, W, 3) in [0, 1] from the pipeline's own call with the stack's words and numbers."""
    return pipe(
        num_inference_steps=stack.steps, width=stack.width_px, height=stack.height_px, output_type="np",
        generator=torch.Generator().manual_seed(stack.seed), **{"prompt": stack.prompt, **_of(pipe).call(pipe, stack)},
    ).images[0]  # fmt: skip


# As the names are explained in diffusers' own page on schedulers (docs/source/en/api/schedulers/overview.md).
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIM", {}), "ddpm": ("DDPM", {}), "euler": ("EulerDiscrete", {}),
    "euler_a": ("EulerAncestralDiscrete", {}), "heun": ("HeunDiscrete", {}),
    "lms": ("LMSDiscrete", {}), "dpm++_2m": ("DPMSolverMultistep", {}),
    "dpm++_2m_karras": ("DPMSolverMultistep", {"use_karras_sigmas": True}),
    "dpm++_2m_sde": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}), "unipc": ("UniPCMultistep", {}),
    "flow_euler": ("FlowMatchEulerDiscrete", {}), "flow_heun": ("FlowMatchHeunDiscrete", {}),
}  # fmt: skip


def drawn_by(pipe: Any, stack: StackConfig) -> numpy.ndarray:
    """The picture that the pipeline itself draws with diffusers' scheduler of that name."""
    kind, changes = SCHEDULERS[stack.sampler]
    own = pipe.scheduler
    if kind.startswith("Flow") and "flow_shift" in own.config:
        changes = changes | {"shift": own.config["flow_shift"]}
    pipe.scheduler = getattr(diffusers, f"{kind}Scheduler").from_config(own.config, **changes)
    try:
        return picture(pipe, stack)
    finally:
        pipe.scheduler = own
