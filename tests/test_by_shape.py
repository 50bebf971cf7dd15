"""Bases that are known by their shapes alone: as large as the published models, and a step of each can be estimated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from trainer import bases, families
from trainer.bench import by_shape, estimating

# Of the published denoisers, in millions: their model cards, and for the largest their files.
MILLIONS = {
    "sd15": 860, "auraflow": 6_800, "chroma": 8_900, "flux2-dev": 32_000, "hidream": 17_000, "lumina2": 2_600,
    "pixart": 610, "sana": 1_600,
}  # fmt: skip
QUICK = ("imprimatura", "pixart")


def test_every_one_is_of_a_family_and_has_its_size_said() -> None:
    found = by_shape.all_bases()
    assert {base.family for base in found.values()} <= set(families.registry())
    assert set(found) == {"imprimatura", *MILLIONS}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in by_shape.all_bases()]
)
def test_it_is_as_large_as_the_published_one_and_computes_on_the_meta_device(name: str, tmp_path: Path) -> None:
    base = by_shape.all_bases()[name]
    family = families.registry()[base.family]
    denoiser = by_shape.denoiser(base, tmp_path / "x").to("meta", torch.bfloat16)
    count = sum(parameter.numel() for parameter in denoiser.parameters())
    if name == "imprimatura":
        with safe_open(str(bases.IMPRIMATURA / "unet" / "diffusion_pytorch_model.safetensors"), framework="pt") as file:
            keys = list(file.keys())
            assert count == sum(file.get_tensor(key).numel() for key in keys)
    else:
        assert count / 1e6 == pytest.approx(MILLIONS[name], rel=0.02)
    shape, conditioning = by_shape.inputs(base, family, 256)
    noised, timesteps = (torch.empty(size, device="meta", dtype=torch.bfloat16) for size in (shape, (1,)))
    conditioning = {name: estimating._sent(tensor) for name, tensor in conditioning.items()}
    with estimating._OnMeta(), torch.no_grad():
        assert family.denoise(denoiser, noised, timesteps, conditioning).shape == shape
