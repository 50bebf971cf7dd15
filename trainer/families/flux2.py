"""FLUX.2 klein: a transformer that predicts flow, conditioned on three layers of Qwen 3.

Latents are normalised in patches of 2 x 2, which are its tokens. The base is guided by a second pass; the distilled one
is drawn without, at guidance 1. FLUX.2 dev is a family of its own. Qwen is never adapted. How far the scheduler shifts
goes by the number of steps too: training takes that of 50.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import foreign_json, pipelines, tiny_parts
from trainer.lazy import diffusers, torch

if TYPE_CHECKING:
    import torch
    from diffusers import Flux2KleinPipeline
    from torch import Tensor, nn

    from trainer.objective import Guidance, Schedule

name = "flux2"
title = "FLUX.2 klein"
pipeline = "Flux2KleinPipeline"
prediction = ("flow",)
guidance = "classifier-free"
guidance_layout = "separate calls"
unfit_samplers = ("flow_heun",)  # the pipeline gives the scheduler its sigmas, which that sampler doesn't take
comfyui_graph = False
default_px = 1024
usual = (50, 4.0)  # the pipeline's own; the distilled model's are in `usual_of`
multiple_px = 16
patch = 2
components = {"transformer": "transformer."}
file_names = "peft"
words: dict[str, str] = {}
architecture = "flux-2/lora"
base_version = "flux2"

_TOKENS, _STEPS = 512, 50
_BLOCKS, _SINGLE = r"transformer_blocks\.\d+", r"single_transformer_blocks\.\d+"
_ATTENTION = rf"{_BLOCKS}\.attn\.(to_(q|k|v|out\.0|add_out)|add_[qkv]_proj)|{_SINGLE}\.attn\.(to_qkv_mlp_proj|to_out)"
_FEED_FORWARD = rf"{_BLOCKS}\.ff(_context)?\.linear_(in|out)"
_MODULATION = r"(double_stream_modulation_(img|txt)|single_stream_modulation)\.linear"
_LINEAR = rf"{_ATTENTION}|{_FEED_FORWARD}|{_MODULATION}"
_EMBEDDERS = r"x_embedder|context_embedder|time_guidance_embed\.timestep_embedder\.linear_[12]"
_OUTPUT = r"norm_out\.linear|proj_out"
targets = {
    "attention": _ATTENTION,  # in the single blocks attention and feed-forward are one layer
    "attention-ff": rf"{_ATTENTION}|{_FEED_FORWARD}",
    "linear": _LINEAR,
    "all": rf"{_LINEAR}|{_EMBEDDERS}|{_OUTPUT}",
}
text_layers = r"\.attn\.(add_[kqv]_proj|to_add_out)$"
placeless_layers = r"\.context_embedder|_(context|txt)\."
joined_layers = r"\.single_transformer_blocks\."
is_v2 = pipelines.is_not_v2
prediction_of = pipelines.predicts_flow


def usual_of(folder: Path) -> tuple[int, float]:
    """Steps and guidance that this base is drawn with.

    The distilled base says so in its index; it takes 4 steps without guidance (its model card).
    """
    is_distilled = foreign_json.table(folder / "model_index.json").get("is_distilled")
    return (4, 1.0) if is_distilled else usual


def load(folder: Path, device: str, dtype: torch.dtype) -> Flux2KleinPipeline:
    """The pipeline of a diffusers folder, frozen, in eval mode."""
    return pipelines.load(pipeline, folder, device, dtype)


def _tokens(pipe: Flux2KleinPipeline) -> int:
    return min(_TOKENS, int(pipe.tokenizer.model_max_length))


def _depths(pipe: Flux2KleinPipeline) -> tuple[int, ...]:
    """The text encoder's layers whose output is used: a quarter, half and three quarters of the way.

    In the published models these are the pipeline's own 9, 18, 27; the tiny model has fewer layers.
    """
    count = int(pipe.text_encoder.config.num_hidden_layers)
    return tuple(count * quarter // 4 for quarter in (1, 2, 3))


def window(pipe: Flux2KleinPipeline) -> int:
    """How many tokens of a caption are read: what the chat's marks leave."""
    chat = pipe.tokenizer.apply_chat_template(
        [{"role": "user", "content": ""}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return _tokens(pipe) - count_tokens(pipe, chat)


def count_tokens(pipe: Flux2KleinPipeline, caption: str) -> int:
    """How many tokens a caption has for Qwen."""
    return len(pipe.tokenizer(caption, add_special_tokens=False).input_ids)


def encode_text(pipe: Flux2KleinPipeline, captions: list[str], chunks: int) -> list[dict[str, Tensor]]:
    """One `{encoder_hidden_states: (L, D)}` a caption; long ones are cut off."""
    hidden, _ = pipe.encode_prompt(
        captions, pipelines.device_of(pipe), max_sequence_length=_tokens(pipe), text_encoder_out_layers=_depths(pipe)
    )
    return [{"encoder_hidden_states": row} for row in hidden]


def encode_image(pipe: Flux2KleinPipeline, images: Tensor) -> Tensor:
    """Latents (B, C, H/f, W/f) of images (B, 3, H, W) in [-1, 1].

    Each of the 4C values of a 2 x 2 patch has zero mean and unit deviation.
    """
    latents: Tensor = pipe.vae.encode(images.to(pipe.vae.device, pipe.vae.dtype)).latent_dist.mode()
    norm = pipe.vae.bn
    deviation = (norm.running_var + pipe.vae.config.batch_norm_eps).sqrt()
    return pipelines.latents((pipelines.tokens(latents) - norm.running_mean) / deviation, latents)


def prepare_batch(conditionings: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """`{encoder_hidden_states: (B, L, D)}`."""
    return pipelines.together(conditionings, "encoder_hidden_states")


def denoise(denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    """The prediction (B, C, h, w), noise minus latents, for noised latents at timesteps (B,) from 1 to 1000."""
    text = conditioning["encoder_hidden_states"]
    # Four axes of positions: tokens of the image use the second and third, those of the text the fourth.
    text_ids = pipelines.text_places(text, noised.device)
    prediction: Tensor = denoiser(
        hidden_states=pipelines.tokens(noised),
        timestep=timesteps / 1000,
        guidance=None,
        encoder_hidden_states=text,
        txt_ids=text_ids.expand(len(noised), -1, -1),
        img_ids=pipelines.places(noised, 4).expand(len(noised), -1, -1),
    ).sample
    return pipelines.latents(prediction, noised)


def schedule(pipe: Flux2KleinPipeline) -> Schedule:
    """The training noise of this base, with the shift that the pipeline draws fifty steps with."""
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    from trainer.objective import Schedule

    # The shift grows linearly with the number of tokens, so that two points give the whole line.
    few, many = ((tokens, float(compute_empirical_mu(tokens, _STEPS))) for tokens in (256, 4096))
    return Schedule("flow", None, int(pipe.scheduler.config.num_train_timesteps), (few, many))


def call_settings(
    pipe: Flux2KleinPipeline, positive: dict[str, Tensor], negative: dict[str, Tensor] | None, guidance: Guidance
) -> dict[str, Any]:
    """Arguments of the pipeline's call."""
    settings = {"prompt_embeds": positive["encoder_hidden_states"], "guidance_scale": guidance.scale}
    return settings | {"negative_prompt_embeds": negative["encoder_hidden_states"]} if negative else settings


def file_keys(pipe: Flux2KleinPipeline) -> dict[str, str]:
    """`component.module.path` of every linear layer -> its name in a LoRA file, which is the same."""
    return pipelines.own_names(pipe, components)


def tiny(folder: Path) -> Path:
    """A random 2 MB model of this architecture, saved in `folder`; needs no network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, tokenizer = tiny_parts.qwen("Qwen3ForCausalLM", 96)
        transformer = diffusers.Flux2Transformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16,
            num_attention_heads=4, joint_attention_dim=3 * encoder.config.hidden_size,
            timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        )  # fmt: skip
        vae = diffusers.AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
        )  # fmt: skip
        vae.bn.running_mean.normal_(std=0.2)
        vae.bn.running_var.uniform_(0.5, 1.5)
        pipe = diffusers.Flux2KleinPipeline(
            diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
            vae,
            encoder,
            tokenizer,
            transformer,
        )
    pipe.save_pretrained(str(folder))
    return folder
