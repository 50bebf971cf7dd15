"""The doors of LoRA files and bases; see `tests.doors`."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests import fuzzing
from tests.doors_setup import Call, Case

# LoRA files and bases.


def headers(room: Path) -> Case:
    """A LoRA file, by itself or as PEFT's folder, from our header reader to the library's card."""
    from app import item_details, library_items
    from tests.test_lora_fuzz import CONFIG, changed, mutated, seeds, survives
    from trainer import lora_file, presets, single_file

    good = seeds()

    def case(chance: random.Random) -> list[Call]:
        path = room / "x.safetensors"
        content = mutated(chance.choice(good), chance) if chance.random() < 0.8 else fuzzing.data(good, chance)
        if chance.random() < 0.1:
            path = room / "folder"
            path.mkdir(exist_ok=True)
            (path / "adapter_model.safetensors").write_bytes(content)
            (path / "adapter_config.json").write_bytes(changed(json.loads(CONFIG), chance))
            return [lambda: survives(path, chance)]
        path.write_bytes(content)

        def shown() -> None:
            info = lora_file.inspect(path)
            json.dumps([library_items.lora_line(info), item_details.header(info)], ensure_ascii=False).encode()

        return [
            shown,
            lambda: survives(path, chance),
            lambda: presets.load(str(path), {}),
            lambda: single_file.detect(single_file.read_head(path)),
        ]

    return case


def bases(room: Path) -> Case:
    """A diffusers folder's configs, the list of registered bases, and the head of a base in one file."""
    from trainer import base_defaults, families, model_registry, single_file
    from trainer import bases as ours

    own = ours.IMPRIMATURA
    names = ("model_index.json", "vae/config.json", "unet/config.json", "scheduler/scheduler_config.json")
    configs = {name: json.loads((own / name).read_text()) for name in names}
    meadow = {"path": str(own), "family": "sd", "sha256": "ab" * 32, "size_bytes": 7, "changed_ns": 1}
    tables = {"models": {"meadow": {**meadow, "parts": {"vae": "v"}}}}
    heads = [_head(names) for names in CHECKPOINTS]
    for part in json.loads((own / "model_index.json").read_text()):
        (room / "base" / part).mkdir(parents=True, exist_ok=True)
    family = families.registry()["sd"]

    def case(chance: random.Random) -> list[Call]:
        for name, values in configs.items():
            (room / "base" / name).write_bytes(
                fuzzing.raw(fuzzing.as_json(fuzzing.broken(values, chance), chance), chance)
            )
        head = fuzzing.data(heads, chance)
        (room / "base" / "unet" / "x.safetensors").write_bytes(head)
        (room / "one.safetensors").write_bytes(head)
        model_registry.home().mkdir(parents=True, exist_ok=True)
        (model_registry.home() / "models.toml").write_bytes(
            fuzzing.raw(fuzzing.as_toml(fuzzing.broken(tables, chance), chance), chance)
        )
        folder, file = str(room / "base"), room / "one.safetensors"
        return [
            lambda: ours.resolve(folder, family),
            lambda: ours.family_of(folder),
            lambda: base_defaults.of(folder, family),
            lambda: ours.multiple_px(room / "base"),
            lambda: ours.longest_px(room / "base"),
            lambda: ours.num_parameters(room / "base"),
            lambda: ours.resolve("meadow", family),
            lambda: ours.family_of("meadow"),
            lambda: single_file.plan(file, single_file.Wishes()),
            lambda: base_defaults.of(str(file), family),
            lambda: ours.prediction_of(room / "base", family),
            lambda: single_file.plan(file, single_file.Wishes(like=room / "base")),
        ]

    return case


CHECKPOINTS = [
    [
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.decoder.conv_in.weight",
        "cond_stage_model.x",
    ],
    [
        "model.diffusion_model.label_emb.0.0.weight",
        "model.diffusion_model.input_blocks.0.0.weight",
        "conditioner.embedders.1.model.x",
        "v_pred",
        "ztsnr",
    ],
    [
        "double_blocks.0.img_attn.qkv.weight",
        "single_blocks.0.linear1.weight",
        "img_in.weight",
        "guidance_in.in_layer.weight",
    ],
    [
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
        "model.diffusion_model.x_embedder.proj.weight",
        "model.diffusion_model.pos_embed",
    ],
    ["transformer_blocks.0.attn.to_q.weight", "proj_out.weight", "cap_embedder.0.weight", "noise_refiner.0.x"],
]


def _head(names: list[str]) -> bytes:
    fields = {
        name: {"dtype": "F16", "shape": [4, 2], "data_offsets": [16 * number, 16 * number + 16]}
        for number, name in enumerate(names)
    }
    text = json.dumps(fields | {"__metadata__": {"modelspec.architecture": "stable-diffusion-v1"}}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(16 * len(names))
