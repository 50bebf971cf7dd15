"""How diffusers itself trains and draws each family: its training scripts' way to a loss, its pipeline's own call. None of our families' code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from diffusers.training_utils import compute_snr
from PIL import Image
from torch import Tensor

from trainer.config import StackConfig


def pixels(dataset: Any, name: str, size: tuple[int, int], pipe: Any) -> tuple[Tensor, tuple[int, int, int, int, int, int]]:
    """A picture in [-1, 1] scaled and cut at the centre to the latents' size, and its height, width, top, left and those of the cut."""
    path = next(Path(item.path) for item in dataset.items if item.path.name == name)
    image = Image.open(path).convert("RGB")
    height, width = (side * pipe.vae_scale_factor for side in size)
    scale = max(width / image.width, height / image.height)
    left, top = (image.width * scale - width) / 2, (image.height * scale - height) / 2
    box = (left / scale, top / scale, (left + width) / scale, (top + height) / scale)
    framed = numpy.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box))
    return torch.from_numpy(framed.copy()).permute(2, 0, 1).float() / 127.5 - 1, (image.height, image.width, round(top), round(left), height, width)


def losses(pipe: Any, images: list[Any], captions: list[str], noise: Tensor, timesteps: Tensor) -> Tensor:
    """The loss of each picture (N,): min-SNR 5 where the base predicts noise or v, plain for flow."""
    made = [
        _loss(pipe, image, size, caption, noise[row : row + 1], timesteps[row : row + 1])
        for row, ((image, size), caption) in enumerate(zip(images, captions, strict=True))
    ]
    return torch.cat(made)


def _loss(pipe: Any, image: Tensor, size: tuple[int, ...], caption: str, noise: Tensor, timestep: Tensor) -> Tensor:
    config = pipe.vae.config
    latents = (pipe.vae.encode(image[None]).latent_dist.mode() - (config.shift_factor or 0)) * config.scaling_factor
    if isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler):
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
    said = _PREDICTIONS[type(pipe).__name__](pipe, noised, timestep, caption, size)
    return ((said - target) ** 2).mean((1, 2, 3)) * weight


def _sd(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    hidden, _ = pipe.encode_prompt(caption, "cpu", 1, False)
    return pipe.unet(noised, timestep, encoder_hidden_states=hidden).sample


def _sdxl(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    """As train_text_to_image_lora_sdxl.py."""
    hidden, _, pooled, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False)
    sizes = pipe._get_add_time_ids(size[:2], size[2:4], size[4:], torch.float32, pooled.shape[-1])
    return pipe.unet(noised, timestep, encoder_hidden_states=hidden, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}).sample


def _sd3(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    """As train_dreambooth_lora_sd3.py."""
    hidden, _, pooled, _ = pipe.encode_prompt(caption, caption, caption, do_classifier_free_guidance=False)
    return pipe.transformer(hidden_states=noised, timestep=timestep, encoder_hidden_states=hidden, pooled_projections=pooled, return_dict=False)[0]


def _flux(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    """As train_dreambooth_lora_flux.py, at guidance 1."""
    hidden, pooled, text_ids = pipe.encode_prompt(caption, caption)
    packed = pipe._pack_latents(noised, *noised.shape)
    said = pipe.transformer(
        hidden_states=packed, timestep=timestep / 1000, guidance=torch.ones(1), pooled_projections=pooled, encoder_hidden_states=hidden, txt_ids=text_ids,
        img_ids=pipe._prepare_latent_image_ids(1, noised.shape[2] // 2, noised.shape[3] // 2, "cpu", torch.float32), return_dict=False,
    )[0]  # fmt: skip
    return pipe._unpack_latents(said, *(side * pipe.vae_scale_factor for side in noised.shape[2:]), pipe.vae_scale_factor)


_PREDICTIONS = {"StableDiffusionPipeline": _sd, "StableDiffusionXLPipeline": _sdxl, "StableDiffusion3Pipeline": _sd3, "FluxPipeline": _flux}


def shifted(pipe: Any, shares: Tensor, height: int, width: int) -> Tensor:
    """Sigmas as the pipeline's scheduler makes them of evenly laid ones for latents of this size."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    config = scheduler.config
    mu = None
    if config.use_dynamic_shifting:
        mu = calculate_shift((height // 2) * (width // 2), config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
    scheduler.set_timesteps(sigmas=shares.double().numpy(), mu=mu)
    return scheduler.sigmas[:-1]


@torch.no_grad()
def picture(pipe: Any, stack: StackConfig) -> numpy.ndarray:
    """(H, W, 3) in [0, 1] from the pipeline's own call with the stack's words and numbers."""
    return pipe(
        prompt=stack.prompt, num_inference_steps=stack.steps, width=stack.width_px, height=stack.height_px, output_type="np",
        generator=torch.Generator().manual_seed(stack.seed), **_CALLS[type(pipe).__name__](stack),
    ).images[0]  # fmt: skip


def _guided(stack: StackConfig) -> dict[str, Any]:
    return {"negative_prompt": stack.negative_prompt, "guidance_scale": stack.guidance_scale, "guidance_rescale": stack.guidance_rescale}


def _guided_flow(stack: StackConfig) -> dict[str, Any]:
    return {"negative_prompt": stack.negative_prompt, "guidance_scale": stack.guidance_scale}


def _distilled(stack: StackConfig) -> dict[str, Any]:
    return {"negative_prompt": stack.negative_prompt, "guidance_scale": stack.guidance_scale, "true_cfg_scale": stack.true_guidance_scale}


_CALLS = {
    "StableDiffusionPipeline": _guided, "StableDiffusionXLPipeline": _guided, "StableDiffusion3Pipeline": _guided_flow, "FluxPipeline": _distilled,
}  # fmt: skip
