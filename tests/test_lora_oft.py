"""OFT files turn the way that they were trained to: PEFT's two forms against PEFT's own merge, OneTrainer's against its
formula by hand, ours as they were.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import OFTConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer import lora_file
from trainer.errors import AdapterError
from trainer.lora_tools.convert import convert
from trainer.lora_tools.opening import open_file, updates
from trainer.lora_tools.plain import to_plain
from trainer.lora_tools.weights import open_weights
from trainer.rank_reduction import Cut

LAYERS = ("lin", "wide", "conv", "one")
KEYS = {f"unet.{name}": f"lora_unet_{name}" for name in LAYERS}
MID = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


class Small(nn.Module):
    """Two linear layers and two convolutions of different widths."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin, self.wide = nn.Linear(16, 12), nn.Linear(32, 8)
        self.conv, self.one = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(8, 6, 1)


def merged_by_peft(folder: Path, **settings: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """A random OFT of PEFT's, saved in a folder; each layer's base weight and what PEFT's own merge changes it by."""
    model = Small()
    before = {name: model.get_submodule(name).weight.detach().clone() for name in LAYERS}
    whole = get_peft_model(model, OFTConfig(target_modules=list(LAYERS), **{"r": 0, "oft_block_size": 4, **settings}))
    for name, parameter in whole.named_parameters():
        if "oft_R" in name:
            nn.init.normal_(parameter, std=0.15)
    whole.save_pretrained(str(folder))
    whole.merge_and_unload()
    return {name: (base, model.get_submodule(name).weight.detach() - base) for name, base in before.items()}


def compare(path: Path, wanted: dict[str, tuple[Tensor, Tensor]]) -> None:
    updates = lora_file.read(path, KEYS, {f"unet.{name}": tuple(base.shape) for name, (base, _) in wanted.items()})
    for name, (base, change) in wanted.items():
        error = (updates[f"unet.{name}"].dense(base, torch.float32) - change).norm() / change.norm().clamp_min(1e-12)
        assert float(error) < 3e-5, name


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("size", [{"oft_block_size": 4}, {"oft_block_size": 8}, {"oft_block_size": 0, "r": 4}], ids=str)
@pytest.mark.parametrize("terms", [None, 2, 3, 4, 5, 8])
def test_an_oft_of_pefts_is_what_peft_merges(
    terms: int | None, size: dict[str, int], limited: bool, shared: bool, tmp_path: Path
) -> None:
    series = (
        {"use_cayley_neumann": False}
        if terms is None
        else {"use_cayley_neumann": True, "num_cayley_neumann_terms": terms}
    )
    wanted = merged_by_peft(tmp_path, **series, **size, coft=limited, eps=0.1, block_share=shared)
    compare(tmp_path, wanted)
    compare(tmp_path / "adapter_model.safetensors", wanted)


def test_pefts_default_is_the_series(tmp_path: Path) -> None:
    compare(tmp_path, merged_by_peft(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["use_cayley_neumann"] is True


def test_the_series_before_peft_0_18_takes_its_last_term_twice(tmp_path: Path) -> None:
    """Configs of PEFT 0.16 and 0.17 say no version; the sum is written out from their source."""
    merged_by_peft(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    del config["peft_version"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    numbers = load_file(tmp_path / "adapter_model.safetensors")["base_model.model.lin.oft_R.weight"]
    base = Small().lin.weight.detach()
    updates = lora_file.read(
        tmp_path, KEYS, {f"unet.{name}": tuple(getattr(Small(), name).weight.shape) for name in LAYERS}
    )["unet.lin"]
    powers = [torch.linalg.matrix_power(skew(numbers), number) for number in range(1, 5)]
    torch.testing.assert_close(
        updates.dense(base, torch.float32), applied(base, 2 * sum(powers) + torch.eye(4)) - base, rtol=1e-4, atol=1e-5
    )


def skew(numbers: Tensor) -> Tensor:
    """Q of each block, filled in one number after the other."""
    size = round((1 + math.sqrt(1 + 8 * numbers.shape[1])) / 2)
    matrix = torch.zeros(len(numbers), size, size)
    for place, (row, column) in enumerate(itertools.combinations(range(size), 2)):
        matrix[:, row, column], matrix[:, column, row] = numbers[:, place], -numbers[:, place]
    return matrix


def applied(base: Tensor, blocks: Tensor, onward: bool = False) -> Tensor:
    """base @ R^T, or base @ R, with R of blocks on its diagonal."""
    flat = base.flatten(1)
    whole = torch.block_diag(*(blocks if len(blocks) > 1 else blocks.expand(flat.shape[1] // blocks.shape[1], -1, -1)))
    return (flat @ (whole if onward else whole.T)).reshape(base.shape)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("has_settings", [False, True])
def test_an_oft_of_onetrainers_is_its_formula(shared: bool, scaled: bool, has_settings: bool, tmp_path: Path) -> None:
    """I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4 of its `oft_utils.py`: on the inputs of linear layers, on the weight of
    convolutions the other way round.
    """
    chance, model, tensors, wanted = torch.Generator().manual_seed(1), Small(), {}, {}
    for name in LAYERS:
        base = model.get_submodule(name).weight.detach()
        numbers = 0.15 * torch.randn(1 if shared else base[0].numel() // 4, 6, generator=chance)
        tensors[f"lora_unet_{name}.oft_R.weight"] = numbers
        if scaled:
            tensors[f"lora_unet_{name}.oft_R.scaled_oft"] = torch.tensor(True)
        turn = skew(numbers / (2 * math.sqrt(3)) if scaled else numbers)
        two = turn @ turn
        turned = applied(base, torch.eye(4) + 2 * turn + 2 * two + 2 * two @ turn + two @ two, onward=base.ndim == 4)
        wanted[name] = (base, turned - base)
    metadata = {"ot_branch": "master", "ot_revision": "23df3832"}
    metadata |= (
        {"ot_config": json.dumps({"peft_type": "OFT_2", "oft_block_share": shared, "oft_scaled": scaled})}
        if has_settings
        else {}
    )
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    compare(tmp_path / "x.safetensors", wanted)


@pytest.mark.parametrize(
    "metadata", [{"ss_network_module": "peft.oft"}, {"velatura.recipe": "{}"}, {"velatura.made": "{}"}]
)
def test_our_own_files_are_the_inverse_as_they_were(metadata: dict[str, str], tmp_path: Path) -> None:
    base, numbers = Small().lin.weight.detach(), 0.15 * torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    save_file({"lora_unet_lin.oft_R.weight": numbers}, tmp_path / "x.safetensors", metadata)
    turn, identity = skew(numbers), torch.eye(4)
    compare(
        tmp_path / "x.safetensors",
        {"lin": (base, applied(base, (identity - turn) @ torch.linalg.inv(identity + turn)) - base)},
    )


def in_unet(folder: Path, **settings: Any) -> Path:
    """A folder of PEFT's for one layer of Imprimatura."""
    size = open_weights(Path("imprimatura")).shapes[f"unet.{MID}"][1]
    save_file(
        {f"base_model.model.{MID}.oft_R.weight": 0.1 * torch.randn(size // 8, 28)}, folder / "adapter_model.safetensors"
    )
    config = {
        "peft_type": "OFT",
        "peft_version": "0.21.2",
        "use_cayley_neumann": True,
        "num_cayley_neumann_terms": 5,
        **settings,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "metadata", [{}, {"use_cayley_neumann": False}, {"num_cayley_neumann_terms": 3}, {"coft": True, "eps": 0.2}]
)
def test_an_oft_under_other_names_and_made_plain_still_turns_the_same_way(
    metadata: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(3)
    folder, weights = in_unet(tmp_path, **metadata), open_weights(Path("imprimatura"))
    base = weights.get(f"unet.{MID}").float()
    (wanted,) = updates(open_file(folder)).values()
    there = convert(folder, tmp_path / "kohya.safetensors", "kohya", "float32").path
    plain = to_plain(folder, tmp_path / "plain.safetensors", Cut(error=1e-6), Path("imprimatura"), dtype="float32").path
    for path in (there, plain):
        (update,) = updates(open_file(path)).values()
        torch.testing.assert_close(
            update.dense(base, torch.float32), wanted.dense(base, torch.float32), rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "nothing in its header says which way it turns"),
        ({}, "nothing in its header says which way it turns"),
        ({"use_cayley_neumann": "yes"}, "nothing in its header says which way it turns"),
        ({"use_cayley_neumann": True, "num_cayley_neumann_terms": 1e9}, "num_cayley_neumann_terms"),
        ({"use_cayley_neumann": True, "num_cayley_neumann_terms": "x"}, "num_cayley_neumann_terms is 'x'"),
        ({"use_cayley_neumann": True, "coft": True, "eps": -1}, "eps is '-1'"),
        ({"use_cayley_neumann": True, "block_share": True}, "blocks, and its header says that all inputs share one"),
    ],
)
def test_an_oft_that_does_not_say_how_it_turns_is_refused_by_the_command(
    config: dict[str, Any] | None, says: str, tmp_path: Path, run_velatura: Callable[..., Any]
) -> None:
    folder = in_unet(tmp_path)
    if config is None:
        (folder / "adapter_config.json").unlink()
    else:
        (folder / "adapter_config.json").write_text(
            json.dumps({"peft_type": "OFT", "peft_version": "0.21.2", **config})
        )
    done = run_velatura("inspect", folder)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


def test_one_block_for_all_inputs_that_the_header_does_not_tell_of_is_refused_by_name(tmp_path: Path) -> None:
    base = Small().lin.weight
    save_file(
        {"lora_unet_lin.oft_R.weight": torch.ones(1, 6)}, tmp_path / "x.safetensors", {"ss_network_module": "peft.oft"}
    )
    with pytest.raises(AdapterError, match=r"share one block of 4 \(block_share\)"):
        lora_file.read(tmp_path / "x.safetensors", KEYS, {"unet.lin": tuple(base.shape)})


def test_an_oft_whose_config_is_taken_away_is_not_read_as_before(tmp_path: Path) -> None:
    """A copy of the file alone tells nothing, and a guess was wrong for nearly everyone's."""
    folder = in_unet(tmp_path)
    shutil.copy(folder / "adapter_model.safetensors", tmp_path / "fox.safetensors")
    with pytest.raises(AdapterError, match="which way it turns"):
        lora_file.inspect(tmp_path / "fox.safetensors")
