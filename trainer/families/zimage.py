"""Z-Image, base and turbo: one stack of blocks over image and text that predicts flow, conditioned on Qwen 3.

The denoiser takes lists, a picture and a caption of its own length each; its time runs from noise to picture and its
prediction points there, the other way round than ours. Some of its layers see all pictures of a batch as one row, so
that pictures of one batch have the same weights. Turbo is drawn without guidance in some eight steps; a LoRA trained on
it unlearns that unless a training adapter is stacked while training (`against.adapters`, such as ostris'
zimage_turbo_training_adapter). Qwen is never adapted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import pipelines, tiny_parts
from trainer.lazy import diffusers, torch

if TYPE_CHECKING:
    import torch
    from diffusers import ZImagePipeline
    from torch import Tensor, nn

    from trainer.objective import Guidance

name = "zimage"
title = "Z-Image"
pipeline = "ZImagePipeline"
prediction = ("flow",)
guidance = "classifier-free"
guidance_layout = "positive first"
batch_limit = "weights"
unfit_samplers = ("flow_heun",)  # the pipeline gives the scheduler its sigmas, which that sampler doesn't take
comfyui_graph = False
default_px = 1024
usual = (50, 5.0)  # the pipeline's own
multiple_px = 16
patch = 2
components = {"transformer": "transformer."}
file_names = "peft"
words: dict[str, str] = {}
architecture = "z-image/lora"
base_version = "zimage"

_TOKENS = 512
_BLOCKS = r"(layers|noise_refiner|context_refiner)\.\d+"
_ATTENTION = r"attention\.to_(q|k|v|out\.0)"
_FEED_FORWARD = r"feed_forward\.w[123]"
_MODULATION = r"(layers|noise_refiner)\.\d+\.adaLN_modulation\.0"
_LINEAR = rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD})|{_MODULATION}"
_EMBEDDERS = r"all_x_embedder\.2-1|cap_embedder\.1|t_embedder\.mlp\.[02]"
_OUTPUT = r"all_final_layer\.2-1\.(linear|adaLN_modulation\.1)"
targets = {
    "attention": rf"{_BLOCKS}\.{_ATTENTION}",
    "attention-ff": rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD})",
    "linear": _LINEAR,
    "all": rf"{_LINEAR}|{_EMBEDDERS}|{_OUTPUT}",
}
text_layers = ""
placeless_layers = r"\.(cap_embedder|context_refiner)"
joined_layers = r"\.layers\."
image_first = True
encode_image = pipelines.encode_image
is_v2 = pipelines.is_not_v2
prediction_of = pipelines.predicts_flow
prepare_batch = pipelines.padded
schedule = pipelines.flow_schedule


def load(folder: Path, device: str, dtype: torch.dtype) -> ZImagePipeline:
    """The pipeline of a diffusers folder, frozen, in eval mode."""
    return pipelines.load(pipeline, folder, device, dtype)


def window(pipe: ZImagePipeline) -> int:
    """How many tokens of a caption are read: what the chat's marks leave."""
    chat = pipe.tokenizer.apply_chat_template(
        [{"role": "user", "content": ""}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    return _TOKENS - count_tokens(pipe, chat)


def count_tokens(pipe: ZImagePipeline, caption: str) -> int:
    """How many tokens a caption has for Qwen."""
    return len(pipe.tokenizer(caption, add_special_tokens=False).input_ids)


def encode_text(pipe: ZImagePipeline, captions: list[str], chunks: int) -> list[dict[str, Tensor]]:
    """One `{encoder_hidden_states: (L, D)}` a caption, each of its own length; long ones are cut off."""
    # The pipeline writes into the list that it is given, so it gets a copy.
    hidden, _ = pipe.encode_prompt([*captions], pipelines.device_of(pipe), False, max_sequence_length=_TOKENS)
    return [{"encoder_hidden_states": row} for row in hidden]


def _unpadded(conditioning: dict[str, Tensor]) -> list[Tensor]:
    """The text's hidden states of each caption, (L, D) of its own length."""
    return [
        row[:length]
        for row, length in zip(
            conditioning["encoder_hidden_states"], conditioning[pipelines.LENGTHS].tolist(), strict=True
        )
    ]


def denoise(denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    """The prediction (B, C, h, w), noise minus latents, for noised latents at timesteps (B,) from 1 to 1000."""
    frames = list(noised[:, :, None].unbind(0))  # B of (C, 1, h, w)
    velocities: list[Tensor] = denoiser(frames, (1000 - timesteps) / 1000, _unpadded(conditioning)).sample
    return -torch.stack(velocities)[:, :, 0]  # they point from noise to latents


def call_settings(
    pipe: ZImagePipeline, positive: dict[str, Tensor], negative: dict[str, Tensor] | None, guidance: Guidance
) -> dict[str, Any]:
    """Arguments of the pipeline's call; in its scale of guidance 0 is off, in ours 1."""
    return {
        "prompt_embeds": _unpadded(positive),
        "negative_prompt_embeds": _unpadded(negative) if negative else [],
        "guidance_scale": guidance.scale - 1,
    }


def file_keys(pipe: ZImagePipeline) -> dict[str, str]:
    """`component.module.path` of every linear layer -> its name in a LoRA file, which is the same."""
    return pipelines.own_names(pipe, components)


def tiny(folder: Path) -> Path:
    """A random 1 MB model of this architecture, saved in `folder`; needs no network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, tokenizer = tiny_parts.qwen("Qwen3Model")
        transformer = diffusers.ZImageTransformer2DModel(
            all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=64, n_layers=2,
            n_refiner_layers=1, n_heads=4, n_kv_heads=4, qk_norm=True,
            cap_feat_dim=encoder.config.hidden_size, axes_dims=(8, 4, 4), axes_lens=(1024, 64, 64),
        )  # fmt: skip
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            torch.nn.init.normal_(token)
        torch.nn.init.normal_(
            transformer.all_x_embedder["2-1"].weight
        )  # so that the picture outweighs the random blocks
        pipe = diffusers.ZImagePipeline(
            diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            tiny_parts.autoencoder(4, 0.3611, 0.1159),
            encoder,
            tokenizer,
            transformer,
        )
    pipe.save_pretrained(str(folder))
    return folder
