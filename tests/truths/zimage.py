"""Z-Image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.config import StackConfig

PIPELINE = "ZImagePipeline"


def predict(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    """As train_dreambooth_lora_z_image.py, which turns the prediction round."""
    prompt_embeds, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False)
    pictures = list(noised.unsqueeze(2).unbind(dim=0))
    prediction = pipe.transformer(pictures, (1000 - timestep) / 1000, prompt_embeds, return_dict=False)[0]
    return -torch.stack(prediction, dim=0).squeeze(2)


def call(pipe: Any, stack: StackConfig) -> dict[str, Any]:
    """The pipeline adds its scale times what guidance changes, so that its 2 is everybody's 3."""
    return {"negative_prompt": stack.negative_prompt, "guidance_scale": stack.guidance_scale - 1}
