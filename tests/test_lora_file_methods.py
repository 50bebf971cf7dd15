"""LoRA files of other methods (loha, lokr, dora, oft): each against its formula, and what does not fit is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trainer import lora_file
from trainer.errors import AdapterError


def written(parts: dict[str, torch.Tensor], folder: Path) -> lora_file.Update:
    """What is read of one linear layer's parts; of an OFT, as we write it."""
    metadata = {"ss_network_module": "peft.oft"} if any(suffix.startswith("oft_R") for suffix in parts) else None
    save_file({f"unet.x.{suffix}": tensor for suffix, tensor in parts.items()}, folder / "x.safetensors", metadata)
    shapes = {"unet.x": (6, 8, 3, 3) if any(tensor.ndim == 4 for tensor in parts.values()) else (6, 8)}
    return lora_file.read(folder / "x.safetensors", {"unet.x": "lora_unet_x"}, shapes)["unet.x"]


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("alpha", [None, 3.0])
def test_a_loha_is_the_product_of_two_updates(alpha: float | None, tmp_path: Path) -> None:
    parts = {
        "hada_w1_a": numbers(6, 2),
        "hada_w1_b": numbers(2, 8),
        "hada_w2_a": numbers(6, 2) + 1,
        "hada_w2_b": numbers(2, 8) - 1,
    }
    update = written(parts | ({} if alpha is None else {"alpha": torch.tensor(alpha)}), tmp_path)
    wanted = (
        (parts["hada_w1_a"] @ parts["hada_w1_b"])
        * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        * (1.0 if alpha is None else alpha / 2)
    )
    torch.testing.assert_close(update.dense(torch.zeros(6, 8), torch.float32), wanted)
    assert update.rank == 2 and update.num_parameters == 56


def test_a_loha_with_kernels_of_its_own_is_read_too(tmp_path: Path) -> None:
    names = {"a": (2, 6), "b": (2, 8)}
    parts = {f"hada_w{number}_{side}": numbers(*shape) + number for number in (1, 2) for side, shape in names.items()}
    parts |= {f"hada_t{number}": numbers(2, 2, 3, 3) + number for number in (1, 2)}
    dense = written(parts | {"alpha": torch.tensor(1.0)}, tmp_path).dense(torch.zeros(6, 8, 3, 3), torch.float32)
    first, second = (
        sum(
            parts[f"hada_t{number}"][i, j] * parts[f"hada_w{number}_a"][i, 4] * parts[f"hada_w{number}_b"][j, 5]
            for i in range(2)
            for j in range(2)
        )
        for number in (1, 2)
    )
    torch.testing.assert_close(dense[4, 5], 0.5 * first * second)


@pytest.mark.parametrize(
    ("parts", "kernel", "scale"),
    [
        ({"lokr_w1": (2, 4), "lokr_w2": (3, 2)}, (), 1.0),  # LyCORIS does not scale whole factors
        ({"lokr_w1": (2, 4), "lokr_w2_a": (3, 1), "lokr_w2_b": (1, 2)}, (), 5.0),
        ({"lokr_w1_a": (2, 2), "lokr_w1_b": (2, 4), "lokr_w2": (3, 2)}, (), 2.5),
        ({"lokr_w1": (2, 4), "lokr_w2": (3, 2, 3, 3)}, (3, 3), 1.0),
        ({"lokr_w1": (2, 4), "lokr_w2_a": (3, 1), "lokr_w2_b": (1, 18)}, (3, 3), 5.0),
    ],
)
def test_a_lokr_is_a_kronecker_product_scaled_by_lycoris_rule(
    parts: dict[str, tuple[int, ...]], kernel: tuple[int, ...], scale: float, tmp_path: Path
) -> None:
    tensors, base = {suffix: numbers(*shape) for suffix, shape in parts.items()}, torch.zeros(6, 8, *kernel)
    save_file(
        {f"unet.x.{suffix}": tensor for suffix, tensor in (tensors | {"alpha": torch.tensor(5.0)}).items()},
        tmp_path / "x.safetensors",
    )
    update = lora_file.read(tmp_path / "x.safetensors", {"unet.x": "lora_unet_x"}, {"unet.x": tuple(base.shape)})[
        "unet.x"
    ].dense(base, torch.float32)
    first = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    second = tensors["lokr_w2"] if "lokr_w2" in tensors else tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]
    second = second.reshape(3, 2, *kernel)
    for out in range(6):
        for into in range(8):
            torch.testing.assert_close(
                update[out, into], scale * first[out // 3, into // 2] * second[out % 3, into % 2]
            )


@pytest.mark.parametrize("axis", [0, 1])
def test_a_dora_sets_the_length_of_each_row_or_column(axis: int, tmp_path: Path) -> None:
    base, lengths = numbers(6, 8), numbers(6, 8).abs()[:, :1] if axis == 0 else numbers(6, 8).abs()[:1]
    parts = {
        "lora_down.weight": numbers(2, 8),
        "lora_up.weight": numbers(6, 2),
        "dora_scale": lengths,
        "alpha": torch.tensor(1.0),
    }
    update = written({suffix: tensor.contiguous() for suffix, tensor in parts.items()}, tmp_path)
    merged = base + update.dense(base, torch.float32)
    torch.testing.assert_close(merged.norm(dim=1 - axis), lengths.flatten())
    torch.testing.assert_close(
        nn.functional.normalize(merged, dim=1 - axis),
        nn.functional.normalize(base + 0.5 * numbers(6, 2) @ numbers(2, 8), dim=1 - axis),
    )
    info = lora_file.inspect(tmp_path / "x.safetensors")
    assert info.method == "dora" and info.norm is None and info.rank == 2


def test_an_oft_keeps_lengths_and_angles_between_what_it_turns(tmp_path: Path) -> None:
    base, update = numbers(6, 8), written({"oft_R.default.weight": numbers(2, 6)}, tmp_path)
    merged = base + update.dense(base, torch.float32)
    for columns in (slice(0, 4), slice(4, 8)):
        torch.testing.assert_close(
            merged[:, columns] @ merged[:, columns].T, base[:, columns] @ base[:, columns].T, rtol=1e-4, atol=1e-5
        )
    assert float((merged - base).norm()) > 1


@pytest.mark.parametrize(
    "parts",
    [
        {"hada_w1_a": (6, 2), "hada_w1_b": (3, 8), "hada_w2_a": (6, 2), "hada_w2_b": (2, 8)},
        {"hada_w1_a": (6, 2), "hada_w1_b": (2, 8), "hada_w2_a": (5, 2), "hada_w2_b": (2, 8)},
        {"hada_w1_a": (6,), "hada_w1_b": (2, 8), "hada_w2_a": (6, 2), "hada_w2_b": (2, 8)},
        {"lokr_w1": (2,), "lokr_w2": (3, 2)},
        {"lokr_w1": (2, 4), "lokr_w2": (3,)},
        {"lokr_w1": (2, 4), "lokr_w2_a": (3, 2), "lokr_w2_b": (1, 2)},
        {"lokr_w1": (2, 4), "lokr_w2_a": (1, 3), "lokr_w2_b": (1, 2), "lokr_t2": (2, 1, 3, 3)},
        {"lora_down.weight": (2, 8), "lora_up.weight": (6, 2), "dora_scale": (5, 1)},
        {"lora_down.weight": (2, 8), "lora_up.weight": (6, 2), "dora_scale": (6, 1, 1)},
        {"oft_R.weight": (2, 5)},
        {"oft_R.weight": (0, 6)},
    ],
)
def test_factors_that_do_not_fit_each_other_are_refused_with_their_shapes(
    parts: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=r"unet.x has .*\(.*don't fit each other"):
        written({suffix: torch.ones(shape) for suffix, shape in parts.items()}, tmp_path)


@pytest.mark.parametrize(
    "parts",
    [
        {"hada_w1_a": (6, 2), "hada_w1_b": (2, 9), "hada_w2_a": (6, 2), "hada_w2_b": (2, 9)},
        {"lokr_w1": (2, 4), "lokr_w2": (3, 3)},
        {"lora_down.weight": (2, 9), "lora_up.weight": (6, 2), "dora_scale": (6, 1)},
        {"oft_R.weight": (3, 6)},
    ],
)
def test_an_update_of_another_width_is_refused(parts: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="another base"):
        written({suffix: torch.ones(shape) for suffix, shape in parts.items()}, tmp_path)
