"""PixArt-Sigma. Diffusers has neither a training script nor a loader of LoRAs for it: its pipeline's own step and
PEFT's loader are the truth.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor

from trainer.config import StackConfig

PIPELINE = "PixArtSigmaPipeline"
TOKENS = 32  # what the tiny model's tokenizer takes


def predict(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    hidden, mask, _, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=TOKENS)
    prediction = pipe.transformer(
        noised, encoder_hidden_states=hidden, encoder_attention_mask=mask, timestep=timestep,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]  # fmt: skip
    return prediction.chunk(2, dim=1)[0]


def load(pipe: Any, path: Path) -> None:
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
        tensors = {name.removeprefix("transformer."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    names = ("r", "lora_alpha", "target_modules")
    inject_adapter_in_model(
        LoraConfig(**{name: metadata[f"transformer.{name}"] for name in names}), pipe.transformer, adapter_name="a"
    )
    result = set_peft_model_state_dict(pipe.transformer, tensors, adapter_name="a")
    assert not result.unexpected_keys
    pipe.transformer.requires_grad_(False).eval()


def weigh(pipe: Any, factor: float) -> None:
    for module in pipe.transformer.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(factor)


def call(pipe: Any, stack: StackConfig) -> dict[str, Any]:
    options = {"negative_prompt": stack.negative_prompt, "guidance_scale": stack.guidance_scale}
    return options | {"max_sequence_length": TOKENS, "use_resolution_binning": False, "clean_caption": False}
