"""Single files as artists have them, written from diffusers folders by the names of the code bases that defined them.

LDM's (CompVis/latent-diffusion `openaimodel.py`, `model.py`), OpenCLIP's and ComfyUI's layouts, spelled out here from those, not from any
reader: the opposite direction of what is under test.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
_RESIDUAL = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
_OUTSIDE = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0",
    "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip


def weights(folder: Path, part: str) -> Tensors:
    return load_file(next((folder / part).glob("*.safetensors")))


def ldm_unet(tensors: Tensors) -> Tensors:
    """By walking the blocks as LDM's constructor numbers them: one list entry a residual block, one a change of size."""
    blocks = sorted({name.split(".resnets")[0] for name in tensors if ".resnets." in name})
    down, up = (sorted(one for one in blocks if one.startswith(side)) for side in ("down_", "up_"))
    places: dict[str, str] = {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2"}
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
            if any(".upsamplers." in name for name in here):  # in the list entry of the block's last layer, after its attention
                places[f"{block}.upsamplers.0.conv"] = f"{target}.{number - 1}.{2 if any('.attentions.' in name for name in here) else 1}.conv"
    found = {}
    for name, tensor in tensors.items():
        module, kind = name.rsplit(".", 1)
        if module in _OUTSIDE:
            found[f"{_OUTSIDE[module]}.{kind}"] = tensor
            continue
        start = next(place for place in places if name.startswith(f"{place}."))
        inner = module[len(start) :].lstrip(".")
        inner = _RESIDUAL.get(inner, inner) if ".resnets." in name else inner
        found[".".join(filter(None, (places[start], inner, kind)))] = tensor
    return found


def ldm_vae(tensors: Tensors) -> Tensors:
    """Decoder blocks are counted from the picture inwards, and attention is 1 x 1 convolutions."""
    last = max(int(match[1]) for name in tensors if (match := re.match(r"decoder\.up_blocks\.(\d+)", name)))
    found = {}
    for name, tensor in tensors.items():
        new = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets", lambda match: f"up.{last - int(match[1])}.block", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda match: f"up.{last - int(match[1])}.upsample", new)
        new = new.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2").replace("mid_block.attentions.0", "mid.attn_1")
        new = new.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        if ".attn_1." in new:
            for old, ldm in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
                new = new.replace(f".attn_1.{old}.", f".attn_1.{ldm}.")
            tensor = tensor[:, :, None, None] if tensor.dim() == 2 else tensor
        found[new] = tensor
    return found


def hugging_face(tensors: Tensors) -> Tensors:
    """A CLIP text encoder as LDM and ComfyUI keep it: under `text_model.`."""
    return {name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}": tensor for name, tensor in tensors.items()}


def open_clip(tensors: Tensors) -> Tensors:
    """A CLIP text encoder by OpenCLIP's names: query, key and value in one, the projection transposed."""
    flat = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    found = {
        "token_embedding.weight": flat["embeddings.token_embedding.weight"], "positional_embedding": flat["embeddings.position_embedding.weight"],
        "ln_final.weight": flat["final_layer_norm.weight"], "ln_final.bias": flat["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
    }  # fmt: skip
    if "text_projection.weight" in flat:
        found["text_projection"] = flat["text_projection.weight"].T
    for number in {name.split(".")[2] for name in flat if name.startswith("encoder.layers.")}:
        old, new = f"encoder.layers.{number}", f"transformer.resblocks.{number}"
        for kind in ("weight", "bias"):
            found[f"{new}.attn.in_proj_{kind}"] = torch.cat([flat[f"{old}.self_attn.{which}_proj.{kind}"] for which in "qkv"])
            for ours, theirs in (
                ("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
            ):  # fmt: skip
                found[f"{new}.{theirs}.{kind}"] = flat[f"{old}.{ours}.{kind}"]
    return found


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}


def sd_file(folder: Path, file: Path, **extra: Any) -> Path:
    """A Stable Diffusion 1.x folder as one LDM file; keywords are more tensors."""
    tensors = {
        **under("model.diffusion_model.", ldm_unet(weights(folder, "unet"))), **under("first_stage_model.", ldm_vae(weights(folder, "vae"))),
        **under("cond_stage_model.transformer.", hugging_face(weights(folder, "text_encoder"))), **extra,
    }  # fmt: skip
    save_file(tensors, file)
    return file


def sdxl_file(folder: Path, file: Path, **extra: Any) -> Path:
    """An SDXL folder as one SGM file."""
    tensors = {
        **under("model.diffusion_model.", ldm_unet(weights(folder, "unet"))), **under("first_stage_model.", ldm_vae(weights(folder, "vae"))),
        **under("conditioner.embedders.0.transformer.", hugging_face(weights(folder, "text_encoder"))),
        **under("conditioner.embedders.1.model.", open_clip(weights(folder, "text_encoder_2"))), **extra,
    }  # fmt: skip
    save_file(tensors, file)
    return file
