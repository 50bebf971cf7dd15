"""LyCORIS' `rs_lora`: the strength that was trained, for both ways that LyCORIS has written it, with the formulas of
its source by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer import lora_file
from trainer.errors import AdapterError
from trainer.lora_tools.convert import convert
from trainer.lora_tools.opening import open_file, updates

MID = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
SIZE, RANK, ALPHA = 256, 9, 4.0


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


KINDS: dict[str, tuple[dict[str, Tensor], Callable[[dict[str, Tensor]], Tensor]]] = {
    "lora": (
        {"lora_down.weight": numbers(RANK, SIZE), "lora_up.weight": numbers(SIZE, RANK)},
        lambda parts: parts["lora_up.weight"] @ parts["lora_down.weight"],
    ),
    "loha": (
        {
            "hada_w1_a": numbers(SIZE, RANK),
            "hada_w1_b": numbers(RANK, SIZE),
            "hada_w2_a": numbers(SIZE, RANK),
            "hada_w2_b": numbers(RANK, SIZE),
        },
        lambda parts: (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"]),
    ),
    "lokr": (
        {"lokr_w1": numbers(4, 4), "lokr_w2_a": numbers(64, RANK), "lokr_w2_b": numbers(RANK, 64)},
        lambda parts: torch.kron(parts["lokr_w1"], parts["lokr_w2_a"] @ parts["lokr_w2_b"]),
    ),
}


def written(folder: Path, parts: dict[str, Tensor], alpha: float, **metadata: Any) -> Path:
    """A file as LyCORIS under sd-scripts writes it; an `args` of None leaves the setting out."""
    args = metadata.pop("args", {"rs_lora": "True"})
    header = {"ss_network_module": "lycoris.kohya", "ss_network_dim": str(RANK), "ss_network_alpha": str(ALPHA)}
    header |= {"ss_network_args": json.dumps({"algo": "locon", **args})} | metadata
    tensors = {f"{MID}.{suffix}": tensor for suffix, tensor in ({**parts, "alpha": torch.tensor(alpha)}).items()}
    save_file(tensors, folder / "x.safetensors", {key: value for key, value in header.items() if value is not None})
    return folder / "x.safetensors"


def dense(path: Path) -> Tensor:
    (update,) = updates(open_file(path)).values()
    return update.dense(torch.zeros(SIZE, SIZE), torch.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_folded", [True, False], ids=["as since 3.0", "as before"])
def test_the_scale_is_alpha_by_the_root_of_the_rank(kind: str, is_folded: bool, tmp_path: Path) -> None:
    parts, formula = KINDS[kind]
    path = written(tmp_path, parts, ALPHA * math.sqrt(RANK) if is_folded else ALPHA)
    wanted = ALPHA / math.sqrt(RANK) * formula(parts)
    torch.testing.assert_close(dense(path), wanted, rtol=1e-4, atol=1e-4)
    there = convert(path, tmp_path / "y.safetensors", "kohya", "float32").path
    torch.testing.assert_close(dense(there), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("args", [{}, {"rs_lora": "False"}, {"rs_lora": False}, {"rs_lora": "true", "algo": "dylora"}])
def test_without_rs_lora_the_scale_is_alpha_by_the_rank(args: dict[str, Any], tmp_path: Path) -> None:
    parts, formula = KINDS["lora"]
    torch.testing.assert_close(
        dense(written(tmp_path, parts, ALPHA, args=args)), ALPHA / RANK * formula(parts), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("alpha", [8 * 8**0.5, 8.0], ids=["as since 3.0", "as before"])
def test_a_lokr_of_whole_factors_is_scaled_by_the_root_of_the_rank(alpha: float, tmp_path: Path) -> None:
    """LyCORIS takes the rank for its alpha then, so rank / sqrt(rank) is left; a file has no other trace of
    the rank.
    """
    parts = {"lokr_w1": numbers(4, 4), "lokr_w2": numbers(64, 64)}
    path = written(tmp_path, parts, alpha, ss_network_dim="8", args={"algo": "lokr", "rs_lora": "True"})
    wanted = math.sqrt(8) * torch.kron(parts["lokr_w1"], parts["lokr_w2"])
    torch.testing.assert_close(dense(path), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        dense(convert(path, tmp_path / "y.safetensors", "kohya", "float32").path), wanted, rtol=1e-4, atol=1e-4
    )


def test_a_convolution_with_an_alpha_of_its_own_is_told_apart_too(tmp_path: Path) -> None:
    """Linear rank 9 alpha 4 and convolutions rank 4 alpha 12, plain: 12 is also what 4 with the root of 9 is."""
    conv = "lora_unet_mid_block_resnets_0_conv1"
    path = written(tmp_path, KINDS["lora"][0], ALPHA, args={"rs_lora": "True", "conv_dim": "4", "conv_alpha": "12"})
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    more = {
        "lora_down.weight": numbers(4, 256, 3, 3),
        "lora_up.weight": numbers(256, 4, 1, 1),
        "alpha": torch.tensor(12.0),
    }
    save_file(load_file(path) | {f"{conv}.{suffix}": tensor for suffix, tensor in more.items()}, path, metadata)
    scales = {
        name: update.scale
        for name, update in ((name, module.update) for name, module in open_file(path).modules.items())
    }  # type: ignore[union-attr]
    assert scales == {MID: pytest.approx(4 / 3), conv: pytest.approx(6.0)}


def test_a_file_that_kohya_has_resized_is_read_by_its_own_alpha(tmp_path: Path) -> None:
    parts, formula = KINDS["lora"]
    path = written(tmp_path, parts, ALPHA, ss_training_comment="dim resized from 32 to 9; ")
    torch.testing.assert_close(dense(path), ALPHA / RANK * formula(parts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [None, "Dynamic", "nan", "1e999", "7"])
def test_a_file_that_does_not_tell_which_of_the_two_is_refused_by_the_command(
    alpha: str | None, tmp_path: Path, run_velatura: Callable[..., Any]
) -> None:
    written(tmp_path, KINDS["lora"][0], ALPHA, ss_network_alpha=alpha)
    done = run_velatura("inspect", "x.safetensors")
    assert done.returncode == 2 and "says rs_lora" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(AdapterError, match="ss_network_alpha"):
        lora_file.inspect(tmp_path / "x.safetensors")
