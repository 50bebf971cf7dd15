"""The door of other trainers' recipes: each kind of file that is imported, damaged, and whatever came of it written."""

from __future__ import annotations

import json
import random
from pathlib import Path

import yaml

from tests import fuzzing
from tests.doors_setup import Call, Case
from tests.other_trainers import RECIPES
from tests.other_trainers import arguments as listed
from trainer.other_trainers import importing, presets_from

HEADER = {
    "ss_network_dim": "32", "ss_network_alpha": "16.0", "ss_network_module": "networks.lora",
    "ss_learning_rate": "0.0001",
    "ss_network_args": '{"conv_dim": "8", "conv_alpha": "4"}', "ss_resolution": "(1024, 1024)", "ss_seed": "42",
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))",
    "ss_max_train_steps": "900", "ss_lr_scheduler": "cosine", "ss_base_model_version": "sdxl_base_v1-0",
    "ss_min_snr_gamma": "5.0", "ss_unet_lr": "None",
    "ss_datasets": '[{"is_dreambooth": true, "batch_size_per_device": 2, "resolution": [1024, 1024], "subsets": '
    '[{"img_count": 20, "num_repeats": 5, "shuffle_caption": true, "keep_tokens": 1}]}]',
    "ss_tag_frequency": '{"cat": {"cat": 20}}', "ss_mixed_precision": "bf16",
}  # fmt: skip


def recipes_of_others(room: Path) -> Case:
    """Files that `velatura preset import` takes: JSON, TOML, YAML, command lines, and the header of a LoRA."""
    room.mkdir(parents=True, exist_ok=True)
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(RECIPES.rglob("*")) if path.is_file()}
    keys = [key for entry in listed().values() for key in entry["keys"]]

    def damaged(chance: random.Random) -> bytes:
        path = chance.choice(sorted(texts))
        text = texts[path]
        kind = chance.randrange(4)
        if kind == 0:
            return _header(chance, keys)
        if kind == 1 and path.suffix == ".json":
            return fuzzing.raw(fuzzing.as_json(fuzzing.broken(json.loads(text), chance, keys), chance), chance)
        if kind == 1 and path.suffix == ".yaml":
            values = fuzzing.broken(yaml.safe_load(text), chance, keys)
            return fuzzing.raw(fuzzing.as_json(values, chance), chance)  # JSON is YAML too
        return fuzzing.raw(fuzzing.text([text], chance), chance)

    def case(chance: random.Random) -> list[Call]:
        file = room / "recipe"
        file.write_bytes(damaged(chance))
        pictures = chance.choice([0, 1, 20, 10**6])

        def read() -> str:
            imported = importing.read(file, pictures)
            json.dumps([[key.value, key.why, key.became] for key in imported.keys])
            return presets_from.text_of(imported, file) + presets_from.name_of(imported, file)

        return [read]

    return case


def _header(chance: random.Random, keys: list[str]) -> bytes:
    """A LoRA's file of one tensor whose header is damaged."""
    metadata = fuzzing.broken(HEADER, chance, [f"ss_{key}" for key in keys[:200]])
    texts = {
        str(key): value if isinstance(value, str) else json.dumps(value, default=str) for key, value in metadata.items()
    }
    head = {"__metadata__": texts, "lora_unet_x.alpha": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    raw = json.dumps(head).encode("utf-8", "surrogatepass")
    return len(raw).to_bytes(8, "little") + raw + b"\0\0\0\0"
