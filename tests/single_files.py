"""Single files as artists have them, written from diffusers folders by the names of the code bases that defined them.

LDM's (CompVis/latent-diffusion `openaimodel.py`, `model.py`), OpenCLIP's and ComfyUI's layouts, spelled out here from
those, not from any reader: the opposite direction of what is under test.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from trainer.cli import app

Tensors = dict[str, Tensor]
_RESIDUAL = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
_OUTSIDE = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip


def weights(folder: Path, part: str) -> Tensors:
    return load_file(next((folder / part).glob("*.safetensors")))


def ldm_unet(tensors: Tensors) -> Tensors:
    """By walking the blocks as LDM's constructor numbers them: one list entry a residual block, one a change
    of size.
    """
    blocks = sorted({name.split(".resnets")[0] for name in tensors if ".resnets." in name})
    down, up = (sorted(path for path in blocks if path.startswith(side)) for side in ("down_", "up_"))
    places: dict[str, str] = {
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    for side, number, target in ((down, 1, "input_blocks"), (up, 0, "output_blocks")):
        for block in side:
            here = [name for name in tensors if name.startswith(block)]
            for layer in sorted({name.split(".")[3] for name in here if ".resnets." in name}):
                places[f"{block}.resnets.{layer}"] = f"{target}.{number}.0"
                places[f"{block}.attentions.{layer}"] = f"{target}.{number}.1"
                number += 1
            if any(".downsamplers." in name for name in here):
                places[f"{block}.downsamplers.0.conv"] = f"{target}.{number}.0.op"
                number += 1
            if any(
                ".upsamplers." in name for name in here
            ):  # in the list entry of the block's last layer, after its attention
                places[f"{block}.upsamplers.0.conv"] = (
                    f"{target}.{number - 1}.{2 if any('.attentions.' in name for name in here) else 1}.conv"
                )
    renamed = {}
    for name, tensor in tensors.items():
        module, kind = name.rsplit(".", 1)
        if module in _OUTSIDE:
            renamed[f"{_OUTSIDE[module]}.{kind}"] = tensor
            continue
        start = next(place for place in places if name.startswith(f"{place}."))
        inner = module[len(start) :].lstrip(".")
        inner = _RESIDUAL.get(inner, inner) if ".resnets." in name else inner
        renamed[".".join(filter(None, (places[start], inner, kind)))] = tensor
    return renamed


def ldm_vae(tensors: Tensors) -> Tensors:
    """Decoder blocks are counted from the picture inwards, and attention is 1 x 1 convolutions."""
    last = max(int(match[1]) for name in tensors if (match := re.match(r"decoder\.up_blocks\.(\d+)", name)))
    renamed = {}
    for name, tensor in tensors.items():
        new = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets", lambda match: f"up.{last - int(match[1])}.block", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda match: f"up.{last - int(match[1])}.upsample", new)
        new = (
            new.replace("mid_block.resnets.0", "mid.block_1")
            .replace("mid_block.resnets.1", "mid.block_2")
            .replace("mid_block.attentions.0", "mid.attn_1")
        )
        new = new.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if ".attn_1." in new:
            for old, ldm in (
                ("group_norm", "norm"),
                ("to_q", "q"),
                ("to_k", "k"),
                ("to_v", "v"),
                ("to_out.0", "proj_out"),
            ):
                new = new.replace(f".attn_1.{old}.", f".attn_1.{ldm}.")
            tensor = tensor[:, :, None, None] if tensor.dim() == 2 else tensor
        renamed[new] = tensor
    return renamed


def hugging_face(tensors: Tensors) -> Tensors:
    """A CLIP text encoder as LDM and ComfyUI keep it: under `text_model.`."""
    return {
        name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}": tensor
        for name, tensor in tensors.items()
    }


def open_clip(tensors: Tensors) -> Tensors:
    """A CLIP text encoder by OpenCLIP's names: query, key and value in one, the projection transposed."""
    flat = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    renamed = {
        "token_embedding.weight": flat["embeddings.token_embedding.weight"],
        "positional_embedding": flat["embeddings.position_embedding.weight"],
        "ln_final.weight": flat["final_layer_norm.weight"], "ln_final.bias": flat["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
    }  # fmt: skip
    if "text_projection.weight" in flat:
        renamed["text_projection"] = flat["text_projection.weight"].T
    for number in {name.split(".")[2] for name in flat if name.startswith("encoder.layers.")}:
        old, new = f"encoder.layers.{number}", f"transformer.resblocks.{number}"
        for kind in ("weight", "bias"):
            renamed[f"{new}.attn.in_proj_{kind}"] = torch.cat(
                [flat[f"{old}.self_attn.{which}_proj.{kind}"] for which in "qkv"]
            )
            for ours, theirs in (
                ("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
            ):  # fmt: skip
                renamed[f"{new}.{theirs}.{kind}"] = flat[f"{old}.{ours}.{kind}"]
    return renamed


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}


def sd_file(folder: Path, file: Path, **extra: Any) -> Path:
    """A Stable Diffusion 1.x folder as one LDM file; keywords are more tensors."""
    tensors = {
        **under("model.diffusion_model.", ldm_unet(weights(folder, "unet"))),
        **under("first_stage_model.", ldm_vae(weights(folder, "vae"))),
        **under("cond_stage_model.transformer.", hugging_face(weights(folder, "text_encoder"))), **extra,
    }  # fmt: skip
    save_file(tensors, file)
    return file


def full_size_sd(device: str) -> Tensors:
    """Random weights in SD 1.5's published sizes (its papers' and model card's), float16, with LDM's names."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(cross_attention_dim=768)  # else diffusers' defaults are SD 1.x's
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2
        )  # fmt: skip
        text = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
    return {
        **under("model.diffusion_model.", ldm_unet(unet.half().state_dict())),
        **under("first_stage_model.", ldm_vae(vae.half().state_dict())),
        **under("cond_stage_model.transformer.", hugging_face(text.half().state_dict())),
    }


def empty_file(tensors: Tensors, file: Path) -> Path:
    """A file of these names, types and sizes that holds nothing but zeros, and takes no room on the disk."""
    kinds = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)
    return file


def sdxl_file(folder: Path, file: Path, **extra: Any) -> Path:
    """An SDXL folder as one SGM file."""
    tensors = {
        **under("model.diffusion_model.", ldm_unet(weights(folder, "unet"))),
        **under("first_stage_model.", ldm_vae(weights(folder, "vae"))),
        **under("conditioner.embedders.0.transformer.", hugging_face(weights(folder, "text_encoder"))),
        **under("conditioner.embedders.1.model.", open_clip(weights(folder, "text_encoder_2"))), **extra,
    }  # fmt: skip
    save_file(tensors, file)
    return file


def _swapped(tensor: Tensor) -> Tensor:
    """Shift and scale in the other order, as the original code bases have them in a model's last norm."""
    return torch.cat(tensor.chunk(2)[::-1])


def _joined(tensors: Tensors, names: list[str]) -> Tensors:
    """`{weight: ..., bias: ...}` of several layers in one, where they have them."""
    return {
        kind: torch.cat([tensors[f"{name}.{kind}"] for name in names])
        for kind in ("weight", "bias")
        if f"{names[0]}.{kind}" in tensors
    }


def _renamed(tensors: Tensors, names: dict[str, str]) -> Tensors:
    return {
        f"{new}.{kind}": tensors[f"{old}.{kind}"]
        for old, new in names.items()
        for kind in ("weight", "bias")
        if f"{old}.{kind}" in tensors
    }


def _blocks(tensors: Tensors, prefix: str) -> list[int]:
    return sorted({int(name.split(".")[1]) for name in tensors if name.startswith(f"{prefix}.")})


def mmdit(tensors: Tensors) -> Tensors:
    """A Stable Diffusion 3 transformer by the names of Stability's own code (`mmditx.py`)."""
    names_kept = _renamed(tensors, {
        "pos_embed.proj": "x_embedder.proj", "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2", "context_embedder": "context_embedder",
        "proj_out": "final_layer.linear",
    }) | {"pos_embed": tensors["pos_embed.pos_embed"]}  # fmt: skip
    names_kept |= {
        f"final_layer.adaLN_modulation.1.{kind}": _swapped(tensors[f"norm_out.linear.{kind}"])
        for kind in ("weight", "bias")
    }
    for number in (numbers := _blocks(tensors, "transformer_blocks")):
        old, picture, text = (
            f"transformer_blocks.{number}",
            f"joint_blocks.{number}.x_block",
            f"joint_blocks.{number}.context_block",
        )
        names_kept |= _renamed(tensors, {
            f"{old}.attn.to_out.0": f"{picture}.attn.proj", f"{old}.attn.to_add_out": f"{text}.attn.proj",
            f"{old}.attn.norm_q": f"{picture}.attn.ln_q",
            f"{old}.attn.norm_k": f"{picture}.attn.ln_k", f"{old}.attn.norm_added_q": f"{text}.attn.ln_q",
            f"{old}.attn.norm_added_k": f"{text}.attn.ln_k",
            f"{old}.attn2.to_out.0": f"{picture}.attn2.proj", f"{old}.attn2.norm_q": f"{picture}.attn2.ln_q",
            f"{old}.attn2.norm_k": f"{picture}.attn2.ln_k",
            f"{old}.ff.net.0.proj": f"{picture}.mlp.fc1", f"{old}.ff.net.2": f"{picture}.mlp.fc2",
            f"{old}.ff_context.net.0.proj": f"{text}.mlp.fc1",
            f"{old}.ff_context.net.2": f"{text}.mlp.fc2", f"{old}.norm1.linear": f"{picture}.adaLN_modulation.1",
            f"{old}.norm1_context.linear": f"{text}.adaLN_modulation.1",
        })  # fmt: skip
        if number == numbers[-1]:
            names_kept |= {
                f"{text}.adaLN_modulation.1.{kind}": _swapped(tensors[f"{old}.norm1_context.linear.{kind}"])
                for kind in ("weight", "bias")
            }
        attentions = {
            f"{picture}.attn": ("attn.to_q", "attn.to_k", "attn.to_v"),
            f"{text}.attn": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        }
        if f"{old}.attn2.to_q.weight" in tensors:
            attentions[f"{picture}.attn2"] = ("attn2.to_q", "attn2.to_k", "attn2.to_v")
        for new, parts in attentions.items():
            names_kept |= {
                f"{new}.qkv.{kind}": tensor
                for kind, tensor in _joined(tensors, [f"{old}.{part}" for part in parts]).items()
            }
    return names_kept


def sd3_file(folder: Path, file: Path) -> Path:
    """A Stable Diffusion 3 folder as one file with its text encoders, as Stability published them."""
    tensors = {
        **under("model.diffusion_model.", mmdit(weights(folder, "transformer"))),
        **under("first_stage_model.", ldm_vae(weights(folder, "vae"))),
        **under("text_encoders.clip_l.transformer.", hugging_face(weights(folder, "text_encoder"))),
        **under("text_encoders.clip_g.transformer.", hugging_face(weights(folder, "text_encoder_2"))),
        **under("text_encoders.t5xxl.transformer.", weights(folder, "text_encoder_3")),
    }  # fmt: skip
    save_file(tensors, file)
    return file


def bfl(tensors: Tensors) -> Tensors:
    """A FLUX.1 transformer by the names of Black Forest Labs' own code (`flux/model.py`)."""
    converted = _renamed(tensors, {
        "x_embedder": "img_in", "context_embedder": "txt_in",
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer", "proj_out": "final_layer.linear",
    })  # fmt: skip
    converted |= {
        f"final_layer.adaLN_modulation.1.{kind}": _swapped(tensors[f"norm_out.linear.{kind}"])
        for kind in ("weight", "bias")
    }
    for number in _blocks(tensors, "transformer_blocks"):
        old, new = f"transformer_blocks.{number}", f"double_blocks.{number}"
        converted |= _renamed(tensors, {
            f"{old}.norm1.linear": f"{new}.img_mod.lin", f"{old}.norm1_context.linear": f"{new}.txt_mod.lin",
            f"{old}.attn.to_out.0": f"{new}.img_attn.proj",
            f"{old}.attn.to_add_out": f"{new}.txt_attn.proj", f"{old}.ff.net.0.proj": f"{new}.img_mlp.0",
            f"{old}.ff.net.2": f"{new}.img_mlp.2",
            f"{old}.ff_context.net.0.proj": f"{new}.txt_mlp.0", f"{old}.ff_context.net.2": f"{new}.txt_mlp.2",
        })  # fmt: skip
        for side, parts, added in (
            ("img", ("to_q", "to_k", "to_v"), ""),
            ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"), "added_"),
        ):
            joined = _joined(tensors, [f"{old}.attn.{part}" for part in parts])
            converted |= {f"{new}.{side}_attn.qkv.{kind}": tensor for kind, tensor in joined.items()}
            for short, long in (("q", "query"), ("k", "key")):
                converted[f"{new}.{side}_attn.norm.{long}_norm.scale"] = tensors[
                    f"{old}.attn.norm_{added}{short}.weight"
                ]
    for number in _blocks(tensors, "single_transformer_blocks"):
        old, new = f"single_transformer_blocks.{number}", f"single_blocks.{number}"
        converted |= _renamed(
            tensors, {f"{old}.norm.linear": f"{new}.modulation.lin", f"{old}.proj_out": f"{new}.linear2"}
        )
        joined = _joined(tensors, [f"{old}.attn.to_q", f"{old}.attn.to_k", f"{old}.attn.to_v", f"{old}.proj_mlp"])
        converted |= {f"{new}.linear1.{kind}": tensor for kind, tensor in joined.items()}
        converted |= {
            f"{new}.norm.{long}_norm.scale": tensors[f"{old}.attn.norm_{short}.weight"]
            for short, long in (("q", "query"), ("k", "key"))
        }
    return converted


# Commands.


def velatura(*arguments: str) -> str:
    """What the command prints; what it raises is raised."""
    return str(CliRunner().invoke(app, list(arguments), catch_exceptions=False).output)


def add(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["models", "add", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return str(result.output)
