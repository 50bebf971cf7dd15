"""Thousands of damaged LoRA files: each is read or refused in words, within a second and in bounded memory, whatever
was changed.
"""

from __future__ import annotations

import json
import random
import resource
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from tests import lora_tables
from trainer import lora_file
from trainer.errors import AdapterError
from trainer.lora_file import renaming, tool_names
from trainer.lora_tools.opening import open_file, updates

LONGEST_S, MOST_BYTES = 1.0, 512 << 20
NAMES = [
    "lora_unet_mid_block_attentions_0_proj_in",
    "unet.mid_block.attentions.0.proj_in",
    "lora_unet_double_blocks_0_img_attn_qkv",
    "x",
    "a.b.1",
    "text_encoder.x",
]
NAMES += [
    "diffusion_model.double_blocks.0.img_attn.qkv",
    "double_blocks.0.processor.qkv_lora1",
    "lora_unet_joint_blocks_23_context_block_adaLN_modulation_1",
]
SUFFIXES = [
    "alpha",
    "lora_down.weight",
    "lora_up.weight",
    "lora_A.weight",
    "lora_B.bias",
    "lora_mid.weight",
    "dora_scale",
    "diff",
    "diff_b",
    "set_weight",
    "scale",
]
SUFFIXES += ["oft_R.scaled_oft", "on_input", "ia3_l", "\ud800"]
SUFFIXES += [
    "hada_w1_a",
    "hada_t1",
    "lokr_w1",
    "lokr_w2_a",
    "lokr_t2",
    "oft_R.weight",
    "oft_blocks",
    "lora_magnitude_vector",
    "string_to_param.*",
]
SHAPES: list[Any] = [
    [],
    [0],
    [1],
    [2, 0],
    [0, 1 << 40],
    [1 << 62, 1 << 62],
    [3],
    [4, 4],
    [2, 2, 3, 3],
    [-1, -2],
    [2.5],
    "4",
    None,
    [True],
    [[2]],
    [1, 1, 1, 1, 1],
]
CONFIG = json.dumps({
    "peft_type": "LORA", "auto_mapping": None, "peft_version": "0.21.2", "r": 2, "lora_alpha": 4, "use_rslora": True,
    "use_dora": False,
    "init_lora_weights": True, "rank_pattern": {}, "alpha_pattern": {"x": 1, "attn.*to_q": 3},
    "use_cayley_neumann": True, "num_cayley_neumann_terms": 5,
    "block_share": False, "coft": True, "eps": 0.1, "alpha": 3,
})  # fmt: skip
VALUES: list[Any] = [
    float("nan"),
    "",
    "x" * 300,
    {},
    [],
    0,
    -1,
    1 << 70,
    None,
    {"dtype": "F32"},
    '{"unet.lora_alpha": "x"}',
    '{"unet.alpha_pattern": {"(a+)+$": 1}}',
    '{"alpha_pattern": {"(.*)*(.*)*(.*)*y$": 1, "((((.{1,99}){1,99}){1,99}){1,99})+y": 2}}',
    '{"rs_lora": "True", "conv_alpha": "x"}',
    "peft.oft",
    CONFIG,
    "\ud800",
]
KEYS = [
    "lora_adapter_metadata",
    "velatura.recipe",
    "ss_tag_frequency",
    "ss_base_model_version",
    "modelspec.architecture",
    "sshs_model_hash",
]
KEYS += ["ss_network_args", "ss_network_module", "ot_config", "half \ud800"]


def seeds() -> list[bytes]:
    """A good file of each kind."""
    low = {"lora_down.weight": torch.ones(2, 6), "lora_up.weight": torch.ones(6, 2), "alpha": torch.tensor(1.0)}
    kinds: list[dict[str, torch.Tensor]] = [
        low,
        {**low, "dora_scale": torch.ones(6, 1)},
        {**low, "dora_scale": torch.ones(1, 6)},
        {"diff": torch.ones(6, 6), "diff_b": torch.zeros(6)},
        {
            "hada_w1_a": torch.ones(6, 2),
            "hada_w1_b": torch.ones(2, 6),
            "hada_w2_a": torch.ones(6, 2),
            "hada_w2_b": torch.ones(2, 6),
        },
        {
            "lokr_w1": torch.ones(2, 2),
            "lokr_w2_a": torch.ones(3, 1),
            "lokr_w2_b": torch.ones(1, 3),
            "dora_scale": torch.ones(6),
        },
        {
            "lokr_w1_a": torch.ones(2, 1),
            "lokr_w1_b": torch.ones(1, 2),
            "lokr_w2": torch.ones(3, 3),
            "alpha": torch.tensor(2.0),
        },
        {"oft_R.weight": torch.ones(3, 1)},
        {
            "lora_A.weight": torch.ones(2, 6, 3, 3),
            "lora_B.weight": torch.ones(6, 2, 1, 1),
            "lora_B.bias": torch.ones(6),
        },
    ]
    metadata = {
        "lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 4, "unet.alpha_pattern": {"x": 1}}),
        "ss_tag_frequency": '{"1_a": {"b": 1}}',
    }
    metadatas = [metadata | ({"ss_network_module": "peft.oft"} if "oft_R.weight" in kind else {}) for kind in kinds]
    kinds += [
        {suffix: tensor.to(torch.float8_e4m3fn) if tensor.ndim else tensor.int() for suffix, tensor in low.items()},
        {
            "lora_down.weight": torch.ones(2, 6, 1, 1),
            "lora_up.weight": torch.ones(6, 2, 1, 1),
            "alpha": torch.tensor(2),
        },
        {"oft_R.weight": torch.ones(1, 3), "oft_R.scaled_oft": torch.tensor(True)},
        {"lora_A.weight": torch.ones(2, 6), "lora_B.weight": torch.ones(6, 2)},
        {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(3, 3), "alpha": torch.tensor(8.0)},
    ]
    metadatas += [
        metadata, metadata, {"ot_revision": "x", "ot_config": '{"oft_block_share": true}'},
        {"lora_adapter_metadata": CONFIG},
        {"ss_network_args": '{"rs_lora": "True"}', "ss_network_dim": "4", "ss_network_alpha": "2"},
    ]  # fmt: skip
    files = [
        save({f"{NAMES[number % len(NAMES)]}.{suffix}": tensor for suffix, tensor in kind.items()}, metadatas[number])
        for number, kind in enumerate(kinds)
    ]
    return [*files, save(lora_tables.fill(dict(list(lora_tables.modules("anima_lora_peft").items())[:1]), rank=1))]


def mutated(seed: bytes, chance: random.Random) -> bytes:
    """The file with one to four things changed: bytes anywhere, its length, or names, shapes, types, offsets and texts
    of its header.
    """
    start = 8 + int.from_bytes(seed[:8], "little")
    if chance.random() < 0.3:
        raw = bytearray(seed)
        for _ in range(chance.randint(1, 4)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        return bytes(raw[: chance.randrange(len(raw))] if chance.random() < 0.2 else raw)
    header, body = json.loads(seed[8:start]), bytearray(seed[start:])
    for _ in range(chance.randint(1, 4)):
        _change(header, body, chance)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(body)


def _change(header: dict[str, Any], body: bytearray, chance: random.Random) -> None:
    tensors = [name for name in header if name != "__metadata__" and isinstance(header[name], dict)]
    kind = chance.choice(["shape", "dtype", "offsets", "rename", "drop", "copy", "text", "number", "field"])
    if kind == "text":
        texts = header.get("__metadata__")
        if isinstance(texts, dict):
            texts[chance.choice(KEYS)] = chance.choice(
                [value for value in VALUES if isinstance(value, str) or chance.random() < 0.2]
            )
        return
    if not tensors:
        return
    name = chance.choice(tensors)
    if kind == "shape":
        shape = header[name].get("shape")
        header[name]["shape"] = (
            shape[::-1] if isinstance(shape, list) and chance.random() < 0.5 else chance.choice(SHAPES)
        )
    elif kind == "dtype":
        header[name]["dtype"] = chance.choice(
            [
                "F16",
                "BF16",
                "F64",
                "I64",
                "I32",
                "I8",
                "BOOL",
                "U8",
                "U64",
                "F8_E4M3",
                "F8_E5M2",
                "F8_E8M0",
                "x",
                "\ud800",
                3,
                None,
            ]
        )
    elif kind == "offsets":
        header[name]["data_offsets"] = chance.choice([[0, 0], [0, len(body)], [4, 2], [-1, 8], [0, 1 << 60], "x", [1]])
    elif kind == "rename":
        header[f"{chance.choice(NAMES)}.{chance.choice(SUFFIXES)}"] = header.pop(name)
    elif kind == "drop":
        del header[name]
    elif kind == "copy":
        header[f"{chance.choice(NAMES)}.{chance.choice(SUFFIXES)}"] = dict(header[name])
    elif kind == "field":
        header[name] = chance.choice(VALUES)
    elif body:
        at = chance.randrange(len(body))
        body[at : at + 4] = chance.choice(
            [b"\x00\x00\x80\x7f", b"\x00\x00\xc0\x7f", b"\xff\xff\x7f\x7f", b"\x00\x00\x00\x00", b"\x01\x00\x00\x80"]
        )[: len(body) - at]


def survives(path: Path, chance: random.Random) -> bool:
    """Whether it was readable; everything that reads files is tried on it."""
    keys = {
        "unet.mid_block.attentions.0.proj_in": NAMES[0],
        "unet.x": "x",
        **{f"transformer.transformer_blocks.0.attn.to_{part}": f"y_{part}" for part in "qkv"},
    }
    shapes = {name: (2, 6) if "transformer" in name else (6, 6) for name in keys}
    readable = True
    for attempt in (
        lambda: lora_file.describe(lora_file.inspect(path)).encode(), lambda: lora_file.read(path, keys, shapes),
        lambda: updates(open_file(path)),
        lambda: _spelled(path, chance.choice(tool_names.SCHEMES)),
    ):  # fmt: skip
        try:
            attempt()
        except AdapterError as error:
            readable = False
            assert str(error) and len(str(error).encode()) < 2000
    return readable


def _spelled(path: Path, scheme: str) -> None:
    opened = open_file(path)
    renaming.spell(opened.known, opened.modules, scheme)


def _fuzz(folder: Path, num: int, first: int) -> None:
    path, good, made = folder / "x.safetensors", 0, seeds()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for number in range(first, first + num):
        chance = random.Random(number)
        path.write_bytes(mutated(chance.choice(made), chance))
        start = time.process_time()
        try:
            good += survives(path, chance)
        except Exception:
            print(f"file number {number}")
            raise
        assert time.process_time() - start < LONGEST_S, f"file number {number}"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MOST_BYTES
    assert 0 < good < num, "some are readable still, and most are not"


def test_every_seed_is_a_file_that_is_read(tmp_path: Path) -> None:
    for seed in seeds():
        (tmp_path / "x.safetensors").write_bytes(seed)
        assert lora_file.inspect(tmp_path / "x.safetensors").num_modules == 1


def test_two_thousand_damaged_files_are_read_or_refused_in_words(tmp_path: Path) -> None:
    """As many as a quick run takes; `tests.test_fuzz` has twenty thousand of them."""
    _fuzz(tmp_path, 2000, 0)


def changed(values: dict[str, Any], chance: random.Random) -> bytes:
    """PEFT's config with one to four values changed, or its text damaged."""
    values = dict(values)
    for _ in range(chance.randint(1, 4)):
        values[chance.choice([*values, "x", "modules_to_save"])] = chance.choice(
            [*VALUES, True, False, 2.5, -1e300, "pissa", "IA3", {"x": "y"}, {"(": 1}, {"x+": 1}]
        )
    raw = bytearray(json.dumps(values).encode())
    if chance.random() < 0.2:
        raw[chance.randrange(len(raw))] = chance.randrange(256)
    return bytes(raw[: chance.randrange(len(raw))] if chance.random() < 0.1 else raw)


def test_folders_of_peft_with_a_damaged_config_are_read_or_refused_in_words(tmp_path: Path) -> None:
    good, kinds = 0, seeds()
    for number in range(1500):
        chance = random.Random(number)
        (tmp_path / "adapter_model.safetensors").write_bytes(chance.choice(kinds))
        (tmp_path / "adapter_config.json").write_bytes(changed(json.loads(CONFIG), chance))
        start = time.process_time()
        good += survives(tmp_path, chance)
        assert time.process_time() - start < LONGEST_S, f"config number {number}"
    assert 0 < good < 1500
