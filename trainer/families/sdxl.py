"""Stable Diffusion XL and what was made of it (Pony, Illustrious, NoobAI): a UNet with two CLIP text encoders.

The denoiser is conditioned on both encoders' last hidden states but one, side by side, on the second one's pooled
output, and on six sizes: those of the picture as it was, of where it was cut, and of the cut (arXiv 2307.01952,
section 2.2). An empty negative prompt is encoded like any other, as ComfyUI does; A1111 and a diffusers pipeline that
is given none put zeros there. NoobAI's v bases are SDXL whose scheduler's config says `v_prediction` and
`rescale_betas_zero_snr`.

LoRA files name the UNet's layers as its first code base did (SGM: `input_blocks_4_1_...`), which is what every tool
reads; text encoders keep Hugging Face's names, with the `text_model.` that transformers >= 5.6 dropped from the first
one's paths.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer import foreign_json, pipelines
from trainer.lazy import diffusers, torch, transformers

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionXLPipeline
    from torch import Tensor, nn

    from trainer.objective import Guidance, Schedule

name = "sdxl"
title = "Stable Diffusion XL"
pipeline = "StableDiffusionXLPipeline"
prediction = ("epsilon", "v")
guidance = "classifier-free"
default_px = 1024
usual = (25, 5.0)  # the pipeline's own guidance; of its 50 steps half do
multiple_px = 8
patch = 1
components = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
file_names = "kohya"
words = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
architecture = "stable-diffusion-xl-v1-base/lora"
base_version = "sdxl_base_v1-0"

_KINDS: dict[str, Literal["epsilon", "v"]] = {"epsilon": "epsilon", "v_prediction": "v"}
_ATTENTION = r"attn[12]\.to_(q|k|v|out\.0)"
_LINEAR = rf"{_ATTENTION}|ff\.net\.(0\.proj|2)|proj_in|proj_out|time_emb_proj"
targets = {
    "attention": rf".*\.{_ATTENTION}",
    "attention-ff": rf".*\.({_ATTENTION}|ff\.net\.(0\.proj|2))",
    "linear": rf".*\.({_LINEAR})",
    "all": rf".*\.({_LINEAR}|conv[12]|conv_shortcut|[du][a-z]+samplers\.0\.conv)",
}
text_targets = r".*\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
text_layers = r"\.attn2\.to_[kv]$"
placeless_layers = ""
joined_layers = ""
cross_attention = (r"up_blocks\.(.*\.)?attn2", r"(down_blocks|mid_block)\.(.*\.)?attn2")  # the decoder's, else all
# What SGM calls the layers outside the blocks, and those within a residual block.
_OUTSIDE = {
    "conv_in": "input_blocks.0.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_RESIDUAL = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def load(folder: Path, device: str, dtype: torch.dtype) -> diffusers.StableDiffusionXLPipeline:
    """The pipeline of a diffusers folder, frozen, in eval mode; nothing is fetched and no remote code runs."""
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(
        str(folder), torch_dtype=dtype, local_files_only=True, use_safetensors=True, add_watermarker=False
    ).to(device)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.requires_grad_(False).eval()
    _mark_end(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _mark_end(pipe: StableDiffusionXLPipeline) -> None:
    """Have captions read as a whole at the token that ends them.

    Older configs call that token 2 (https://github.com/huggingface/transformers/pull/24773), and transformers then
    reads at the largest id: the same token, until a new word's is larger.
    """
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        for module in encoder.modules():
            if getattr(module, "eos_token_id", None) == 2:
                module.eos_token_id = tokenizer.eos_token_id


def prediction_of(folder: Path) -> str:
    """What the model in this diffusers folder predicts, read from its scheduler's config."""
    config = foreign_json.table(folder / "scheduler" / "scheduler_config.json")
    return _KINDS[config.get("prediction_type", "epsilon")]


def window(pipe: StableDiffusionXLPipeline) -> int:
    """How many tokens of a caption the text encoders read, their two marks left out."""
    return int(pipe.tokenizer.model_max_length) - 2


def count_tokens(pipe: StableDiffusionXLPipeline, caption: str) -> int:
    """How many tokens a caption has, without the two marks; both tokenizers have one vocabulary."""
    return len(pipe.tokenizer(pipe.maybe_convert_prompt(caption, pipe.tokenizer), add_special_tokens=False).input_ids)


def num_chunks(pipe: StableDiffusionXLPipeline, caption: str) -> int:
    """How many windows a caption fills, at least one."""
    return max(1, -(-count_tokens(pipe, caption) // window(pipe)))


def encode_text(pipe: StableDiffusionXLPipeline, captions: list[str], chunks: int) -> list[dict[str, Tensor]]:
    """One `{encoder_hidden_states: (chunks * L, D), pooled: (P,)}` a caption; L is the encoders' window with its marks.

    One chunk is encoded by the pipeline itself. More are encoded window by window and laid end to end, and `pooled` is
    the first one's, as A1111 and sd-scripts do; what is beyond the last is cut off.
    """
    if chunks == 1:
        hidden, _, pooled, _ = pipe.encode_prompt(
            captions, device=pipelines.device_of(pipe), num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return [{"encoder_hidden_states": row, "pooled": whole} for row, whole in zip(hidden, pooled, strict=True)]
    size, rows = window(pipe), []
    for caption in captions:
        ids = pipe.tokenizer(pipe.maybe_convert_prompt(caption, pipe.tokenizer), add_special_tokens=False).input_ids
        windows, whole = encode_windows(pipe, [ids[start * size : (start + 1) * size] for start in range(chunks)])
        hidden_states = torch.cat(windows, -1).flatten(0, 1)  # (chunks, L, D1 + D2) -> (chunks * L, D1 + D2)
        rows.append({"encoder_hidden_states": hidden_states, **whole})
    return rows


def encode_windows(pipe: StableDiffusionXLPipeline, windows: list[list[int]]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Both text encoders' hidden states of k windows of token ids without marks, (k, L, D) each, and `pooled` (P,).

    `pooled` is that of the first window.
    """
    hidden, size = [], window(pipe)
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        first, last, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        marked = [[first, *part, last, *[pad] * (size - len(part))] for part in windows]
        output = encoder(torch.tensor(marked, device=pipelines.device_of(pipe)), output_hidden_states=True)
        hidden.append(output.hidden_states[-2])
    return hidden, {"pooled": output.text_embeds[0]}  # of the second encoder, which alone projects


def encode_image(pipe: StableDiffusionXLPipeline, images: Tensor) -> Tensor:
    """Latents (B, C, H/f, W/f) of images (B, 3, H, W) in [-1, 1], scaled as the denoiser knows them.

    The first release's autoencoder overflows in float16, as its config says; it is then computed in float32.
    """
    vae, dtype = pipe.vae, pipe.vae.dtype
    overflows = dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    if overflows:
        vae.to(torch.float32)
    encoded = vae.encode(images.to(vae.device, vae.dtype))
    if overflows:
        vae.to(dtype)
    latents: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    scale: float = vae.config.scaling_factor
    # Some bases normalise every channel as well.
    mean, deviation = (getattr(vae.config, f"latents_{key}", None) for key in ("mean", "std"))
    if mean is not None and deviation is not None:
        mean, deviation = (torch.tensor(values).to(latents).view(1, -1, 1, 1) for values in (mean, deviation))
        latents = (latents - mean) / deviation
    return (latents * scale).to(dtype)


def prepare_batch(conditionings: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """`{encoder_hidden_states: (B, L, D), pooled: (B, P), frame: (B, 6)}`."""
    return pipelines.together(conditionings, *conditionings[0])


def denoise(denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    """The prediction (B, C, h, w) for noised latents at integer timesteps (B,)."""
    added = {"text_embeds": conditioning["pooled"], "time_ids": conditioning["frame"]}
    prediction: Tensor = denoiser(
        noised, timesteps, conditioning["encoder_hidden_states"], added_cond_kwargs=added
    ).sample
    return prediction


def schedule(pipe: StableDiffusionXLPipeline) -> Schedule:
    """The training noise of this base: its scheduler's own alphas and prediction type."""
    from trainer.objective import Schedule

    return Schedule(
        prediction=_KINDS[pipe.scheduler.config.prediction_type],
        alphas_cumprod=pipe.scheduler.alphas_cumprod.float().cpu(),
    )


def call_settings(
    pipe: StableDiffusionXLPipeline, positive: dict[str, Tensor], negative: dict[str, Tensor] | None, guidance: Guidance
) -> dict[str, Any]:
    """Arguments of the pipeline's call."""
    settings = {
        "prompt_embeds": positive["encoder_hidden_states"],
        "pooled_prompt_embeds": positive["pooled"],
        "guidance_scale": guidance.scale,
        "guidance_rescale": guidance.rescale if guidance.scale > 1 else 0.0,
    }
    if negative:
        settings |= {
            "negative_prompt_embeds": negative["encoder_hidden_states"],
            "negative_pooled_prompt_embeds": negative["pooled"],
        }
    return settings


def is_v2(pipe: StableDiffusionXLPipeline) -> bool:
    """False: `ss_v2` is about Stable Diffusion 2.x."""
    return False


def file_keys(pipe: StableDiffusionXLPipeline) -> dict[str, str]:
    """`component.module.path` of every linear and convolution -> its kohya key, as sd-scripts spells it."""
    keys = {}
    for component, prefix in components.items():
        for path, module in getattr(pipe, component).named_modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                spelled = path.replace(".base_layer", "")
                if component == "unet":
                    spelled = _sgm(spelled, pipe.unet.config)
                elif not spelled.startswith(("text_model.", "text_projection")):
                    spelled = f"text_model.{spelled}"
                keys[f"{component}.{path}"] = prefix + spelled.replace(".", "_")
    return keys


def _sgm(path: str, config: Any) -> str:
    """A layer of the UNet in SGM's spelling.

    A block of diffusers is several of SGM's: one for each residual block, one for a change of size.
    """
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    match = re.fullmatch(
        r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", path
    )
    if match is None:
        raise ValueError(f"{path} is no layer of an SDXL UNet.")
    side, block, kind, number, inner = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    inner = _RESIDUAL.get(inner, inner)
    if side == "mid":
        return f"middle_block.{2 * number if kind == 'resnets' else 2 * number + 1}.{inner}"
    size = config.layers_per_block + 1  # how many of SGM's blocks are one of diffusers'
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * size}.0.op"
        return f"input_blocks.{block * size + number + 1}.{int(kind == 'attentions')}.{inner}"
    if kind == "upsamplers":
        return f"output_blocks.{block * size + size - 1}.{1 + ('Attn' in config.up_block_types[block])}.conv"
    return f"output_blocks.{block * size + number}.{int(kind == 'attentions')}.{inner}"


def tiny(folder: Path) -> Path:
    """A random 1 MB model of this architecture (KL autoencoder, epsilon), saved in `folder`; needs no network."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(Path(__file__).parents[1] / "imprimatura" / "tokenizer"), local_files_only=True
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32, 32),
            norm_num_groups=8, cross_attention_dim=64, attention_head_dim=(2, 4, 4), use_linear_projection=True,
            transformer_layers_per_block=(1, 1, 2),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 32,
        )  # fmt: skip
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 16), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, scaling_factor=0.13025, force_upcast=True,
        )  # fmt: skip
        text = transformers.CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            projection_dim=32, max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        scheduler = diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        )
        encoders = transformers.CLIPTextModel(text), transformers.CLIPTextModelWithProjection(text)
        pipe = diffusers.StableDiffusionXLPipeline(
            vae, *encoders, tokenizer, tokenizer, unet, scheduler, add_watermarker=False
        )
    pipe.save_pretrained(str(folder))
    return folder
