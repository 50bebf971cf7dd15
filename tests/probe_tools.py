"""Fills `trainer/lora_file/tables` by running other tools' own code, in an environment where that tool can be imported.
Not part of the suite.

    python tests/probe_tools.py cases FOLDER                 # LoRA files of rank 1: each family, scheme, method and
    group of layers python tests/probe_tools.py invokeai FOLDER > found      # what InvokeAI's factory and loader make
    of each, a JSON line a file python tests/probe_tools.py comfyui > names              # the key maps of ComfyUI's
    models, made without weights; {family: [module]}

A group is attention, that with feed-forward layers, every layer, or attention with a text encoder. What a group with
one module more no longer loads, that module stops; such pairs were tried one by one. ComfyUI's classes need configs,
which are given here as published.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from trainer.deltas import Delta
from trainer.errors import AdapterError
from trainer.lora_file import names, renaming, tables, tool_names
from trainer.lora_file.names.rows import amounts, filled

METHODS = ("lora", "dora", "loha", "lokr", "oft", "oft_blocks")


def updates(family: names.Family, group: str) -> dict[str, Delta]:
    """Rank 1 for every layer of one block that is of the group, at the first published size."""
    size, deltas = family.sizes[0], {}
    texts = [(text.component, text.rows) for text in family.texts[:1]] if group == "text" else []
    for component, rows in [(family.component, family.rows), *texts]:
        for row in rows:
            for path, outs in zip(row.paths, row.outs, strict=True):
                attention = any(word in path for word in (".attn", "attention.", "to_q")) and ".norm" not in path
                forward = (
                    any(word in path for word in (".ff", "feed_forward", ".mlp", "proj_mlp", "proj_out"))
                    and "blocks" in path
                    and ".norm" not in path
                )
                wanted = {"attention": attention, "forward": attention or forward, "all": True, "text": attention}[
                    group
                ]
                out, into = amounts(outs, size.values) or [768], amounts(row.into, size.values) or [768]
                if (
                    (wanted or component != family.component)
                    and "embeddings" not in path
                    and "text_projection" not in path
                ):
                    deltas[f"{component}.{filled(path, (0,) * path.count('#'))}"] = Delta(
                        torch.rand(1, into[0]), torch.rand(out[0], 1), 1.0
                    )
    return deltas


def of_method(parts: dict[str, torch.Tensor], method: str) -> dict[str, torch.Tensor]:
    """Another method's tensors for the same layer."""
    down = next(tensor for suffix, tensor in parts.items() if "down" in suffix or "lora_A" in suffix)
    up = next(tensor for suffix, tensor in parts.items() if "up" in suffix or "lora_B" in suffix)
    out, into, alpha = up.shape[0], down.shape[1], torch.tensor(1.0)
    lengths = {"dora_scale": torch.ones(out, 1)} if "alpha" in parts else {"lora_magnitude_vector": torch.ones(out)}
    return {
        "lora": parts,
        "dora": parts | lengths,
        "loha": {
            "hada_w1_a": up,
            "hada_w1_b": down,
            "hada_w2_a": up.clone(),
            "hada_w2_b": down.clone(),
            "alpha": alpha,
        },
        "lokr": {
            "lokr_w1": torch.ones(2, 2),
            "lokr_w2_a": torch.ones(out // 2, 1),
            "lokr_w2_b": torch.ones(1, into // 2),
            "alpha": alpha,
        },
        "oft": {"oft_R.weight": torch.zeros(into // 8, 28)},
        "oft_blocks": {"oft_blocks": torch.zeros(out // 8, 8, 8), "alpha": torch.tensor(0.0)},
    }[method]


def write_cases(folder: Path) -> None:
    """FAMILY-SCHEME-GROUP-METHOD.safetensors, wherever there are such names."""
    folder.mkdir(parents=True, exist_ok=True)
    for family in names.registry().values():
        for scheme in tool_names.SCHEMES:
            for group in ("attention", "forward", "all", *(["text"] if family.texts else [])):
                try:
                    spelled = renaming.plain(family, updates(family, group), scheme, family.sizes[0].name)
                except AdapterError:
                    continue
                for method in METHODS if group != "text" else ("lora",):
                    tensors = {
                        f"{module}.{suffix}": tensor.clone()
                        for module, parts in spelled.modules.items() for suffix,
                        tensor in of_method(parts, method).items()
                    }  # fmt: skip
                    metadata = spelled.metadata | {"ss_base_model_version": family.base_version}
                    save_file(tensors, folder / f"{family.name}-{scheme}-{group}-{method}.safetensors", metadata)


def ask_invokeai(folder: Path) -> None:
    """One JSON line a file: the kind it is taken for, the layers that come out, or the error."""
    from invokeai.backend.model_manager.configs.factory import ModelConfigFactory
    from invokeai.backend.model_manager.load.model_loaders.lora import LoRALoader
    from invokeai.backend.model_manager.model_on_disk import ModelOnDisk
    from invokeai.backend.patches.lora_conversions.flux_bfl_peft_lora_conversion_utils import (
        convert_bfl_lora_patch_to_diffusers,
    )

    for path in sorted(folder.glob("*.safetensors")):
        entry: dict[str, Any] = {"file": path.name}
        try:
            config = ModelConfigFactory.from_model_on_disk(ModelOnDisk(path)).config
            entry["kind"] = type(config).__name__
            if "LoRA" in entry["kind"]:
                loader = LoRALoader.__new__(LoRALoader)
                loader._model_base, loader._torch_dtype = config.base, torch.float32
                patch = loader._load_model(SimpleNamespace(path=str(path), format=config.format, base=config.base))
                patch = convert_bfl_lora_patch_to_diffusers(patch) if "Flux2" in entry["kind"] else patch
                entry["layers"] = sorted(patch.layers)
        except Exception as error:  # whatever it raises is the answer
            entry["error"] = f"{type(error).__name__}: {error}"[:300]
        print(json.dumps(entry))


_FLUX = {
    "axes_dim": [16, 56, 56], "num_heads": 24, "mlp_ratio": 4.0, "theta": 10000, "out_channels": 16, "qkv_bias": True,
    "txt_ids_dims": [], "in_channels": 16,
    "hidden_size": 3072, "context_in_dim": 4096, "patch_size": 2, "vec_in_dim": 768, "depth": 2,
    "depth_single_blocks": 2,
}  # fmt: skip
_COMFY = {  # class of model_base, class of supported_models, config; blocks cut to a few
    "flux": (
        "Flux",
        "Flux",
        {"image_model": "flux", **_FLUX, "guidance_embed": True, "yak_mlp": False, "txt_norm": False},
    ),
    "chroma": (
        "Chroma",
        "Chroma",
        {
            "image_model": "chroma",
            **_FLUX,
            "out_channels": 64,
            "in_channels": 64,
            "vec_in_dim": None,
            "in_dim": 64,
            "out_dim": 3072,
            "hidden_dim": 5120,
            "n_layers": 5,
        },
    ),
    "qwen": ("QwenImage", "QwenImage", {"image_model": "qwen_image", "in_channels": 64, "num_layers": 2}),
    "zimage": (
        "Lumina2",
        "ZImage",
        {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 16,
            "cap_feat_dim": 2560,
            "n_layers": 2,
            "qk_norm": True,
            "dim": 3840,
            "n_heads": 30,
            "n_kv_heads": 30,
            "axes_dims": [32, 48, 48],
            "axes_lens": [1536, 512, 512],
            "rope_theta": 256.0,
            "ffn_dim_multiplier": 8 / 3,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
    ),
    "lumina2": (
        "Lumina2",
        "Lumina2",
        {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 16,
            "cap_feat_dim": 2304,
            "n_layers": 2,
            "qk_norm": True,
            "dim": 2304,
            "n_heads": 24,
            "n_kv_heads": 8,
            "axes_dims": [32, 32, 32],
            "axes_lens": [300, 512, 512],
            "rope_theta": 10000.0,
            "ffn_dim_multiplier": 4.0,
        },
    ),
    "auraflow": (
        "AuraFlow",
        "AuraFlow",
        {
            "max_seq": 4096,
            "cond_seq_dim": 2048,
            "n_double_layers": 2,
            "n_layers": 4,
            "in_channels": 4,
            "out_channels": 4,
        },
    ),
}


def ask_comfyui() -> None:
    """The modules that `model_lora_keys_unet` knows, by family, as the tables spell them; other families go as these
    do.
    """
    from comfy import lora, model_base, supported_models

    patterns = {}
    for family, (kind, known, settings) in _COMFY.items():
        config = getattr(supported_models, known)(settings)
        config.manual_cast_dtype = None
        model = getattr(model_base, kind)(config, device="meta")
        patterns[family] = sorted({tables.pattern(name) for name in lora.model_lora_keys_unet(model, {})})
    print(json.dumps(patterns))


if __name__ == "__main__":
    if sys.argv[1] == "comfyui":
        ask_comfyui()
    else:
        {"cases": write_cases, "invokeai": ask_invokeai}[sys.argv[1]](Path(sys.argv[2]))
