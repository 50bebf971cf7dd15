"""What families do alike with a diffusers pipeline: opening it, latents, tokens of 2 x 2 latents, names of layers.

A family that does otherwise says so in its own file and uses none of this.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.lazy import diffusers, torch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainer.objective import Guidance, Schedule


# In a conditioning, what Python reads: it stays on the CPU, as to read it from a GPU is to wait for that.
LENGTHS = "lengths"

# Opening.


def load(kind: str, folder: Path, device: str, dtype: torch.dtype, **parts: Any) -> Any:
    """The pipeline of a diffusers folder, frozen, in eval mode; `parts` take the place of the folder's.

    Nothing is fetched and no remote code runs.
    """
    pipeline = getattr(diffusers, kind)
    pipe = pipeline.from_pretrained(
        str(folder), torch_dtype=dtype, local_files_only=True, use_safetensors=True, **parts
    ).to(device)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def device_of(pipe: Any) -> torch.device:
    """Where a pipeline computes, also while its weights wait elsewhere."""
    # The public `pipe.device` is where the weights wait.
    device: torch.device = pipe._execution_device
    return device


# What most families say of their bases.


def predicts_flow(folder: Path) -> str:
    """What the model in a diffusers folder predicts, where there is no choice."""
    return "flow"


def is_not_v2(pipe: Any) -> bool:
    """False: `ss_v2` is about Stable Diffusion 2.x."""
    return False


def flow_schedule(pipe: Any) -> Schedule:
    """The training noise of a flow base, with the shift its scheduler draws with."""
    from trainer import objective

    return objective.flow_schedule(pipe.scheduler.config)


# Latents and conditioning.


def encode_image(pipe: Any, images: Tensor) -> Tensor:
    """Latents (B, C, H/f, W/f) of images (B, 3, H, W) in [-1, 1], shifted and scaled as the denoiser knows them."""
    # The mean, not a draw: latents are cached, and alike in every epoch.
    latents: Tensor = pipe.vae.encode(images.to(pipe.vae.device, pipe.vae.dtype)).latent_dist.mode()
    scale, shift = float(pipe.vae.config.scaling_factor), float(getattr(pipe.vae.config, "shift_factor", None) or 0)
    return (latents - shift) * scale


def together(conditionings: list[dict[str, Tensor]], *keys: str) -> dict[str, Tensor]:
    """Dicts of one caption each as one of a batch."""
    return {key: torch.stack([conditioning[key] for conditioning in conditionings]) for key in keys}


def masked_batch(conditionings: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """`{encoder_hidden_states: (B, L, D), mask: (B, L)}`; the mask is 0 at padding."""
    return together(conditionings, "encoder_hidden_states", "mask")


def masked_call(
    pipe: Any, positive: dict[str, Tensor], negative: dict[str, Tensor] | None, guidance: Guidance
) -> dict[str, Any]:
    """Arguments of the call of a pipeline that takes a mask with the text's hidden states."""
    return _text_call(positive, negative, guidance, "prompt_attention_mask", "mask")


def pooled_call(positive: dict[str, Tensor], negative: dict[str, Tensor] | None, guidance: Guidance) -> dict[str, Any]:
    """Arguments of the call of a pipeline that takes a pooled embedding with the text's hidden states."""
    return _text_call(positive, negative, guidance, "pooled_prompt_embeds", "pooled")


def _text_call(
    positive: dict[str, Tensor], negative: dict[str, Tensor] | None, guidance: Guidance, argument: str, key: str
) -> dict[str, Any]:
    """Hidden states, and what goes with them by the name of its argument and its key in the conditioning."""
    settings = {
        "prompt_embeds": positive["encoder_hidden_states"],
        argument: positive[key],
        "guidance_scale": guidance.scale,
    }
    if negative:
        settings |= {"negative_prompt_embeds": negative["encoder_hidden_states"], f"negative_{argument}": negative[key]}
    return settings


# Tokens of 2 x 2 latents.


def tokens(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as tokens (B, h/2 * w/2, 4C) of 2 x 2."""
    count, channels, height, width = latents.shape
    split = latents.reshape(count, channels, height // 2, 2, width // 2, 2)
    # A token's channels first and its 2 x 2 latents last, as FLUX packs them.
    return split.permute(0, 2, 4, 1, 3, 5).reshape(count, height * width // 4, channels * 4)


def latents(tokens: Tensor, like: Tensor) -> Tensor:
    """Tokens of 2 x 2 as latents of the shape of `like` (B, C, h, w)."""
    count, channels, height, width = like.shape
    return tokens.reshape(count, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(like.shape)


def places(like: Tensor, axes: int) -> Tensor:
    """Row and column of every token of 2 x 2 latents (B, C, h, w), (h/2 * w/2, axes).

    They stand in the second and third axis; the others are 0.
    """
    rows, columns = like.shape[-2] // 2, like.shape[-1] // 2
    # Made on the device, which every step would else wait for.
    positions = torch.zeros(rows, columns, axes, device=like.device)
    positions[..., 1] = torch.arange(rows, device=like.device)[:, None]
    positions[..., 2] = torch.arange(columns, device=like.device)[None, :]
    return positions.reshape(-1, axes).to(like.dtype)


def text_places(text: Tensor, device: torch.device) -> Tensor:
    """The place of every token of hidden states (B, L, D) in the last of four axes, (L, 4)."""
    positions = torch.zeros(text.shape[1], 4, device=device)
    positions[:, 3] = torch.arange(text.shape[1], device=device)
    return positions


# Names of layers.


def own_names(pipe: Any, components: Iterable[str]) -> dict[str, str]:
    """The name in a LoRA file of every linear layer and ungrouped convolution, by `component.module.path`: the same."""
    names = {}
    for component in components:
        for path, module in part.named_modules() if (part := getattr(pipe, component)) is not None else ():
            if isinstance(module, torch.nn.Linear) or (isinstance(module, torch.nn.Conv2d) and module.groups == 1):
                # PEFT puts an adapted layer one deeper; files know nothing of that.
                names[f"{component}.{path}"] = f"{component}.{path}".replace(".base_layer", "")
    return names


def padded(conditionings: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Conditioning of captions of their own lengths, (L, D) each, filled up with zeros to one length.

    `{encoder_hidden_states: (B, longest, D), lengths: (B,)}`; the lengths are on the CPU.
    """
    from torch.nn.utils.rnn import pad_sequence

    rows = [conditioning["encoder_hidden_states"] for conditioning in conditionings]
    return {
        "encoder_hidden_states": pad_sequence(rows, batch_first=True),
        LENGTHS: torch.tensor([len(row) for row in rows]),
    }
