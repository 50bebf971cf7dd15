"""One picture from a pipeline as it stands: the family's own diffusers pipeline and scheduler, our settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from trainer.config import StackConfig

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image


@torch.no_grad()
def draw(pipe: DiffusionPipeline, stack: StackConfig) -> Image:
    """The stack's picture with whatever weights `pipe` holds now; noise comes from the CPU, the same on every device."""
    picture: Image = pipe(
        prompt=stack.prompt,
        negative_prompt=stack.negative_prompt or None,
        num_inference_steps=stack.steps,
        guidance_scale=stack.guidance_scale,
        guidance_rescale=stack.guidance_rescale if stack.guidance_scale > 1 else 0.0,
        width=stack.width_px,
        height=stack.height_px,
        generator=torch.Generator().manual_seed(stack.seed),
    ).images[0]
    return picture
