"""HiDream-I1: a transformer with experts that predicts flow, conditioned on two CLIPs, T5 and every layer of Llama.

No text encoder is adapted. The denoiser predicts latents minus noise. Pictures that aren't square are filled up to its
largest number of tokens, so that a step costs as much as one of that size, and none of them may be larger. Its experts
see tokens of all pictures as rows: pictures of a batch have the same weights, and a region acts there by its share. In
eval mode routed experts let no gradient through; they alone are run as in training, which gives the same numbers. The
pipeline scales every picture to a size of its own and gives a stochastic scheduler no seed: `prepare_call` gives it
ours. The published folders are without Llama, whose model and tokenizer are put there as `text_encoder_4` and
`tokenizer_4`.
"""

from __future__ import annotations

import functools
import inspect
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import foreign_json, pipelines, tiny_parts
from trainer.errors import ConfigError, ModelError
from trainer.lazy import diffusers, torch, transformers

if TYPE_CHECKING:
    import torch
    from diffusers import HiDreamImagePipeline
    from torch import Tensor, nn

    from trainer.objective import Guidance, Schedule

name = "hidream"
title = "HiDream-I1"
pipeline = "HiDreamImagePipeline"
prediction = ("flow",)
guidance = "classifier-free"
batch_limit = "weights"
unfit_samplers = ("flow_heun",)  # the pipeline tells the scheduler of a shift, which that sampler doesn't take
comfyui_graph = False
caption_tokens = 127
default_px = 1024
usual = (50, 5.0)  # the pipeline's own
multiple_px = 16
patch = 2
components = {"transformer": "transformer."}
file_names = "peft"
words: dict[str, str] = {}
architecture = "hidream-i1/lora"
base_version = "hidream"

_BLOCKS = r"(double|single)_stream_blocks\.\d+\.block"
_ATTENTION = r"attn1\.to_(q|k|v|out)(_t)?"
_FEED_FORWARD = r"(ff_i\.shared_experts|ff_t)\.w[123]"
_EXPERTS = r"ff_i\.experts\.\d+\.w[123]"
_MODULATION = r"adaLN_modulation\.1"
_LINEAR = rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD}|{_EXPERTS}|{_MODULATION})"
_EMBEDDERS = r"caption_projection\.\d+\.linear|x_embedder\.proj"
_CONDITIONS = r"t_embedder\.timestep_embedder\.linear_[12]|p_embedder\.pooled_embedder\.linear_[12]"
_OUTPUT = r"final_layer\.(linear|adaLN_modulation\.1)"
targets = {
    "attention": rf"{_BLOCKS}\.{_ATTENTION}",
    "attention-ff": rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD})",
    "linear": _LINEAR,
    "all": rf"{_LINEAR}|{_EMBEDDERS}|{_CONDITIONS}|{_OUTPUT}",
}
text_layers = r"\.attn1\.to_(q|k|v|out)_t$"
placeless_layers = r"\.caption_projection|\.ff_t\."
joined_layers = r"\.single_stream_blocks\."
image_first = True
encode_image = pipelines.encode_image


def load(folder: Path, device: str, dtype: torch.dtype) -> HiDreamImagePipeline:
    """The pipeline of a diffusers folder, frozen, in eval mode but for the experts.

    Raises: ModelError if the folder has no Llama.
    """
    from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU

    pipe = pipelines.load(pipeline, folder, device, dtype, **_llama(folder, dtype))
    for module in pipe.transformer.modules():
        if isinstance(module, MOEFeedForwardSwiGLU):
            # In inference mode the experts give no gradient. diffusers has no public switch for that.
            module.training = True
            module._force_inference_output = False
    return pipe


def _llama(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Llama and its tokenizer, if they lie in the folder but its model_index.json doesn't name them; else nothing.

    The published folders are so. Raises: ModelError if they lie nowhere.
    """
    index = foreign_json.table(folder / "model_index.json")
    if (index.get("text_encoder_4") or [None])[0]:
        return {}
    if missing := [part for part in ("text_encoder_4", "tokenizer_4") if not (folder / part).is_dir()]:
        raise ModelError(
            f"base {str(folder)!r} lacks {' and '.join(missing)}, which {title} is published without; "
            "put the model and the tokenizer of Llama 3.1 8B Instruct into folders of these names in it."
        )
    encoder = transformers.LlamaForCausalLM.from_pretrained(
        str(folder / "text_encoder_4"), dtype=dtype, local_files_only=True, use_safetensors=True
    )
    return {
        "text_encoder_4": encoder,
        "tokenizer_4": transformers.AutoTokenizer.from_pretrained(str(folder / "tokenizer_4"), local_files_only=True),
    }


def prediction_of(folder: Path) -> str:
    """What the model in this diffusers folder predicts."""
    return "flow"


def _tokens(pipe: HiDreamImagePipeline) -> int:
    return min(caption_tokens + 1, int(pipe.tokenizer_3.model_max_length))


def window(pipe: HiDreamImagePipeline) -> int:
    """How many tokens of a caption T5 reads, its mark left out; the others read as many of theirs."""
    return _tokens(pipe) - 1


def count_tokens(pipe: HiDreamImagePipeline, caption: str) -> int:
    """How many tokens a caption has for T5, without its mark."""
    return len(pipe.tokenizer_3(caption, add_special_tokens=False).input_ids)


def encode_text(pipe: HiDreamImagePipeline, captions: list[str], chunks: int) -> list[dict[str, Tensor]]:
    """One `{encoder_hidden_states: (L, D), llama: (layers, L, D'), pooled: (P,)}` a caption; long ones are cut off.

    The three are T5's, those of all of Llama's layers, and both CLIPs'.
    """
    hidden, _, llama, _, pooled, _ = pipe.encode_prompt(
        captions, device=pipelines.device_of(pipe), do_classifier_free_guidance=False, max_sequence_length=_tokens(pipe)
    )
    rows = zip(hidden, llama.unbind(1), pooled, strict=True)
    return [{"encoder_hidden_states": row, "llama": layers, "pooled": whole} for row, layers, whole in rows]


def prepare_batch(conditionings: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """`{encoder_hidden_states: (B, L, D), llama: (B, layers, L, D'), pooled: (B, P)}`."""
    return pipelines.together(conditionings, "encoder_hidden_states", "llama", "pooled")


def _refuse_too_large(denoiser: Any, height: int, width: int) -> None:
    """Raises: ConfigError for latents that aren't square and have more tokens than the denoiser pads to."""
    if height != width and (tokens := height * width // 4) > denoiser.max_seq:
        raise ConfigError(
            f"a picture has {tokens} tokens of 2 x 2 latents and isn't square; allowed for {title}: up to "
            f"{denoiser.max_seq}, or squares."
        )


def denoise(denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    """The prediction (B, C, h, w), noise minus latents, for noised latents at timesteps (B,) from 1 to 1000.

    Raises: ConfigError as `_refuse_too_large` does.
    """
    _refuse_too_large(denoiser, *noised.shape[-2:])
    velocity: Tensor = denoiser(
        noised,
        timesteps=timesteps,
        encoder_hidden_states_t5=conditioning["encoder_hidden_states"],
        encoder_hidden_states_llama3=conditioning["llama"].transpose(0, 1),  # (layers, B, L, D')
        pooled_embeds=conditioning["pooled"],
    ).sample
    return -velocity  # it points from noise to latents


def schedule(pipe: HiDreamImagePipeline) -> Schedule:
    """The training noise of this base, with the shift its scheduler draws with.

    A shift that depends on size is taken for the largest one, whatever the picture's is, as the pipeline does.
    """
    from diffusers.pipelines.hidream_image.pipeline_hidream_image import calculate_shift

    from trainer import objective

    config = {"shift": pipe.scheduler.config.get("flow_shift", 1.0)} | dict(pipe.scheduler.config)
    if config.get("use_dynamic_shifting"):
        config |= {"use_dynamic_shifting": False, "shift": math.exp(calculate_shift(pipe.transformer.max_seq))}
    return objective.flow_schedule(config)


def call_settings(
    pipe: HiDreamImagePipeline, positive: dict[str, Tensor], negative: dict[str, Tensor] | None, guidance: Guidance
) -> dict[str, Any]:
    """Arguments of the pipeline's call."""
    settings: dict[str, Any] = {"guidance_scale": guidance.scale}
    for prefix, conditioning in (("", positive), ("negative_", negative)):
        if conditioning:
            settings |= {
                f"{prefix}prompt_embeds_t5": conditioning["encoder_hidden_states"],
                f"{prefix}prompt_embeds_llama3": conditioning["llama"].transpose(0, 1),
                f"{prefix}pooled_prompt_embeds": conditioning["pooled"],
            }
    return settings


def prepare_call(pipe: HiDreamImagePipeline, width_px: int, height_px: int, generators: list[torch.Generator]) -> None:
    """Give the pipeline the size that it scales pictures to, and a stochastic scheduler the pictures' generators.

    Raises: ConfigError as `_refuse_too_large` does.
    """
    _refuse_too_large(pipe.transformer, height_px // pipe.vae_scale_factor, width_px // pipe.vae_scale_factor)
    # The pipeline rounds down, so it gets a size a hair above.
    pipe.default_sample_size = math.sqrt(width_px * height_px) / pipe.vae_scale_factor * (1 + 1e-9)
    if "generator" in inspect.signature(pipe.scheduler.step).parameters:
        pipe.scheduler.step = functools.partial(pipe.scheduler.step, generator=generators)


def is_v2(pipe: HiDreamImagePipeline) -> bool:
    """False: `ss_v2` is about Stable Diffusion 2.x."""
    return False


def file_keys(pipe: HiDreamImagePipeline) -> dict[str, str]:
    """`component.module.path` of every linear layer -> its name in a LoRA file, which is the same."""
    return pipelines.own_names(pipe, components)


def tiny(folder: Path) -> Path:
    """A random 3 MB model of this architecture, saved in `folder`; needs no network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = diffusers.HiDreamImageTransformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1,
            attention_head_dim=8, num_attention_heads=4, caption_channels=(32, 32), text_emb_dim=64,
            axes_dims_rope=(4, 2, 2), max_resolution=(20, 20), llama_layers=(2, 0),
        )  # fmt: skip
        first, second = tiny_parts.clip("CLIPTextModelWithProjection"), tiny_parts.clip("CLIPTextModelWithProjection")
        scheduler, vae = (
            diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            tiny_parts.autoencoder(4, 0.3611, 0.1159),
        )
        pipe = diffusers.HiDreamImagePipeline(
            scheduler, vae, *first, *second, *tiny_parts.t5(32, tokens=20), *tiny_parts.llama(), transformer
        )
    pipe.save_pretrained(str(folder))
    return folder
