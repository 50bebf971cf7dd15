"""FLUX.1 at its real width, one block of each kind: the names of its LoRA files, in diffusers' own reader, which knows
no other width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests import plain
from trainer import attaching, export, families, lora_file, session
from trainer.data import Dataset, scan
from trainer.errors import RunError
from trainer.lora_file import names, renaming
from trainer.lora_tools.opening import open_file, updates
from trainer.training_model import TrainingModel

FLUX = families.registry()["flux"]
SINGLE = "transformer.single_transformer_blocks.0"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FLUX.tiny(tmp_path_factory.mktemp("flux"))


def wide() -> Any:
    """A transformer of real width whose weights are one row each, shown as all of them, so that it takes no memory."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(
            num_layers=1, num_single_layers=1, joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True
        )
    rows = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(tensor.shape[-1:], generator=rows).expand(tensor.shape)
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False).eval()


@pytest.fixture
def studio(base: Path, draw_dots: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[TrainingModel, Dataset]]:
    """`studio({"adapter.targets": "attention"})`: something random trained on it, as much as if the run were over."""

    def make(changes: dict[str, Any]) -> tuple[TrainingModel, Dataset]:
        values = {
            "family": "flux", "base": str(base), "resolution_px": 64, "preview_every_steps": 0,
            "preview.guidance_rescale": 0.0, "adapter.rank": 2,
            "adapter.alpha": 3.0, "save_dtype": "float32",
        }  # fmt: skip
        folder = draw_dots(tmp_path / "dots", "a {colour} dot", num=2)
        settings = session.preset_config(
            plain.STYLE, str(folder), None, [f"{key}={json.dumps(value)}" for key, value in (values | changes).items()]
        )
        made = TrainingModel.open(settings)
        made.pipe.transformer = wide()
        made.file_keys = FLUX.file_keys(made.pipe)
        noise = torch.Generator().manual_seed(1)
        for parameter in attaching.attach(made, None).values():
            parameter.data.normal_(0, 0.1, generator=noise)
        return made, scan(settings)

    return make


def in_diffusers(studio: TrainingModel, path: Path) -> dict[str, Any]:
    """The layers that diffusers' pipeline changes, as PEFT has them."""
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(studio.config.base, transformer=wide(), local_files_only=True)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, use_safetensors=True, adapter_name="a")
    modules = {}
    for component in FLUX.components:
        for name, module in getattr(pipe, component).named_modules():
            if hasattr(module, "get_delta_weight") and module.lora_B["a"].weight.any():
                modules[f"{component}.{name}"] = module
    return modules


def body(path: Path) -> dict[str, bytes]:
    with safe_open(path, "pt") as opened:
        return {name: opened.get_tensor(name).numpy().tobytes() for name in opened.keys()}  # noqa: SIM118


QUERIES = r"(single_)?transformer_blocks\.\d+\.attn\.(to_q|add_q_proj)"
CASES = {
    "everything": {"adapter.targets": "linear", "adapter.text_encoder": True},
    "attention": {"adapter.targets": "attention", "adapter.block_ranks": ["single_transformer_blocks.0=1"]},
    "queries": {"adapter.targets": "attention", "adapter.text_encoder": True},
}


@pytest.mark.parametrize("case", [pytest.param("everything", marks=pytest.mark.slow), "attention", "queries"])
def test_a_plain_lora_is_written_in_kohyas_fused_names(
    case: str, studio: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "queries":
        monkeypatch.setitem(families.registry(), "flux", replace(FLUX, targets={**FLUX.targets, "attention": QUERIES}))
    trained, dataset = studio(CASES[case])
    path = tmp_path / "lora.safetensors"
    export.write(trained, path, dataset)
    layers = {
        f"{component}.{module}": (attached, module)
        for component, attached in trained.attachments.items()
        for module in attached.layers
    }
    header, opened = lora_file.read_header(path), open_file(path)
    assert (opened.known.scheme, opened.known.family.name, opened.known.unknown) == ("kohya", "flux", ())
    assert all(
        name.startswith(("lora_unet_double_blocks_0_", "lora_unet_single_blocks_0_", "lora_te1_text_model_encoder_"))
        for name in header.shapes
    )
    assert header.shapes["lora_unet_single_blocks_0_linear1.lora_up.weight"][0] == 3 * 3072 + 12288
    alphas = [
        entry.alpha
        for entry in opened.modules.values()
        if entry.parts["alpha"].ndim == 0 and entry.parts["alpha"].dtype == torch.float32
    ]
    assert len(set(alphas)) == 1 and len(alphas) == len(opened.modules)
    assert (header.metadata["ss_network_dim"], header.metadata["ss_network_alpha"]) == (
        "2",
        "3.0",
    ) and "lora_adapter_metadata" not in header.metadata
    shapes = {layer: tuple(weight.shape) for layer, weight in trained.base_weights().items()}
    ours, theirs = lora_file.read(path, trained.file_keys, shapes), in_diffusers(trained, path)
    assert set(ours) == set(theirs) == set(layers)
    for layer, (attached, module) in layers.items():
        change = attached.change(module).float()
        for update in (ours[layer].dense(change, torch.float32), theirs[layer].get_delta_weight("a").detach()):
            assert float((update - change).norm()) <= 1e-5 * float(change.norm())
    again = tmp_path / "again.safetensors"
    lora_file.save(
        again,
        renaming.plain(names.registry()["flux"], updates(opened), "kohya", "dev / schnell").modules,
        {},
        torch.float32,
    )
    assert body(again) == body(path)


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        (
            {"adapter.targets": "all"},
            "transformer.x_embedder.lora_A",
        ),  # diffusers' reader of kohya's names loses what is outside the blocks
        ({"adapter.method": "dora", "adapter.targets": "attention"}, f"{SINGLE}.attn.to_q.lora_magnitude_vector"),
        ({"adapter.method": "lokr", "adapter.targets": "attention"}, f"{SINGLE}.attn.to_q.lokr_w1"),
    ],
)
def test_what_has_no_fused_name_that_every_tool_reads_keeps_diffusers_names(
    changes: dict[str, Any], start: str, studio: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = {"attention": QUERIES, "all": rf"{QUERIES}|x_embedder|context_embedder"}
    monkeypatch.setitem(families.registry(), "flux", replace(FLUX, targets=targets))
    trained, dataset = studio(changes)
    path = tmp_path / "lora.safetensors"
    export.write(trained, path, dataset)
    shapes = lora_file.read_header(path).shapes
    assert all(name.startswith("transformer.") for name in shapes) and any(name.startswith(start) for name in shapes)
    if "adapter.method" not in changes:
        assert set(in_diffusers(trained, path)) == {
            f"transformer.{layer}" for layer in trained.attachments["transformer"].layers
        }


def test_diffusers_loses_what_kohyas_names_say_outside_the_blocks_and_that_is_said(tmp_path: Path) -> None:
    from diffusers import FluxPipeline

    layers = {"x_embedder": (3072, 64), f"{SINGLE.removeprefix('transformer.')}.proj_out": (3072, 15360)}
    made = {
        f"transformer.{layer}": lora_file.Delta(torch.ones(1, into), torch.ones(out, 1), 1.0)
        for layer, (out, into) in layers.items()
    }
    path = tmp_path / "lora.safetensors"
    lora_file.save(
        path, renaming.plain(names.registry()["flux"], made, "kohya", "dev / schnell").modules, {}, torch.float32
    )
    read = FluxPipeline.lora_state_dict(str(tmp_path), weight_name=path.name)
    loaded = {key for key in read if key.startswith("transformer.") and "lora_A" in key}
    (answer,) = [place for place in lora_file.inspect(path).places if place.tool == "diffusers"]
    assert len(loaded) == answer.loads == 1 and answer.verdict == "partly" and "lora_unet_img_in" in answer.why


def test_a_file_that_changes_a_layer_that_was_not_trained_is_not_the_runs(
    studio: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, dataset = studio({"adapter.targets": "attention"})
    plain = renaming.plain

    def with_more(family: Any, given: dict[str, Any], *rest: str) -> Any:
        return plain(
            family,
            given | {f"{SINGLE}.proj_mlp": lora_file.Delta(torch.ones(1, 3072), torch.ones(12288, 1), 1.0)},
            *rest,
        )

    monkeypatch.setattr(renaming, "plain", with_more)
    with pytest.raises(
        RunError, match=rf"lora.safetensors changes 1 modules that were not trained, such as {SINGLE}.proj_mlp"
    ):
        export.write(trained, tmp_path / "lora.safetensors", dataset)
    assert not (tmp_path / "lora.safetensors").exists()
