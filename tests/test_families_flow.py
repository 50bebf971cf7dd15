"""What flow families have that UNets haven't: joint tokens, guidance that is an input, names at scale 1, a text encoder
that may be missing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import family_truths
import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests import plain
from trainer import bases, families, lora_file, objective, session
from trainer.config import StackConfig
from trainer.deltas import Delta
from trainer.errors import ConfigError, ModelError
from trainer.render import a1111_text, comfy, live
from trainer.render.engine import Engine
from trainer.render.masks import Masks, Places


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    base = families.registry()["flux"].tiny(tmp_path_factory.mktemp("flux"))
    return Engine(str(base), "flux", device="cpu", dtype="float32")


def stack(engine: Engine, **values: Any) -> StackConfig:
    return StackConfig(
        family=engine.family.name,
        base=engine.base,
        **{"prompt": "a cat", "steps": 2, "width_px": 64, "height_px": 64} | values,
    )


def pixels(engine: Engine, **values: Any) -> numpy.ndarray:
    return numpy.asarray(engine.render(stack(engine, **values)).image, dtype=int)


def beside(module: nn.Linear, path: str, update: Delta, moment: live.Moment) -> AbstractContextManager[None]:
    """One adapter live on one layer for the body."""
    adapters = live.LiveAdapters(lambda _: module, {path: module.weight}, {path: [(0, 1.0, update)]}, moment.masks)
    return adapters.attached(moment)


@pytest.mark.parametrize("image_first", [False, True])
def test_in_a_layer_of_joined_tokens_a_region_covers_the_images_by_place_and_the_texts_by_its_share(
    image_first: bool,
) -> None:
    torch.manual_seed(0)
    module, x, mask = nn.Linear(12, 20), torch.randn(2, 7 + 16, 12), torch.zeros(8, 8)
    mask[:, :4] = 1
    update, weights = Delta(torch.randn(3, 12), torch.randn(20, 3), 1.0), torch.ones(1, 2)
    path = "transformer.layers.0.attn.to_q" if image_first else "transformer.single_transformer_blocks.0.attn.to_q"
    masks = Masks([mask], Places.of(families.registry()["zimage" if image_first else "flux"]))
    with torch.no_grad():
        plain = module(x)
        with beside(module, path, update, live.Moment(weights, weights, masks)):
            output = module(x)
        parts = [torch.full((7,), 0.5), torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(4)]
        share = torch.cat(parts[::-1] if image_first else parts)
        wanted = plain + x @ update.dense(module.weight, torch.float32).T * share[None, :, None]
    torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("flux", "context_embedder"), ("sd3", "transformer_blocks.0.ff_context.net.2"),
        ("lumina2", "context_refiner.0.attn.to_q"),
        ("lumina2", "time_caption_embed.caption_embedder.1"), ("pixart", "caption_projection.linear_1"),
        ("sana", "caption_projection.linear_1"),
        ("auraflow", "joint_transformer_blocks.0.ff_context.linear_1"), ("qwen", "txt_in"),
        ("qwen", "transformer_blocks.0.txt_mlp.net.2"),
        ("zimage", "cap_embedder.1"), ("hidream", "double_stream_blocks.0.block.ff_t.w1"),
        ("chroma", "distilled_guidance_layer.in_proj"),
        ("flux2", "double_stream_modulation_txt.linear"), ("flux2dev", "transformer_blocks.0.ff_context.linear_in"),
    ],
)  # fmt: skip
def test_a_layer_of_the_text_alone_has_no_place_even_with_as_many_tokens_as_the_image(family: str, path: str) -> None:
    torch.manual_seed(0)
    module, x, mask = nn.Linear(12, 20), torch.randn(2, 16, 12), torch.zeros(8, 8)
    mask[:, :4] = 1
    update, weights = Delta(torch.randn(3, 12), torch.randn(20, 3), 1.0), torch.ones(1, 2)
    path, masks = f"transformer.{path}", Masks([mask], Places.of(families.registry()[family]))
    with torch.no_grad():
        wanted = module(x) + 0.5 * x @ update.dense(module.weight, torch.float32).T
        with beside(module, path, update, live.Moment(weights, weights, masks)):
            output = module(x)
    torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-5)


def test_what_pads_an_images_tokens_has_no_place_and_the_image_keeps_its_own() -> None:
    torch.manual_seed(0)
    module, x, mask = nn.Linear(12, 20), torch.randn(2, 16 + 9, 12), torch.zeros(8, 8)
    mask[:, :4] = 1
    update, weights, path = (
        Delta(torch.randn(3, 12), torch.randn(20, 3), 1.0),
        torch.ones(1, 2),
        "transformer.double_stream_blocks.0.block.attn1.to_q",
    )
    with torch.no_grad():
        share = torch.cat([torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(4), torch.full((9,), 0.5)])
        wanted = module(x) + x @ update.dense(module.weight, torch.float32).T * share[None, :, None]
        masks = Masks([mask], Places.of(families.registry()["hidream"]))
        with beside(module, path, update, live.Moment(weights, weights, masks)):
            output = module(x)
    torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-5)


def test_guidance_is_an_input_and_a_negative_prompt_takes_a_second_pass(flux: Engine) -> None:
    plain = pixels(flux)
    assert abs(plain - pixels(flux, guidance_scale=9.0)).max() > 0
    calls = []
    handle = flux.pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    guided = pixels(flux, negative_prompt="a dog", true_guidance_scale=4.0)
    assert len(calls) == 4 and abs(guided - plain).max() > 0
    pixels(flux)
    handle.remove()
    assert len(calls) == 6
    with pytest.raises(
        ConfigError,
        match="negative_prompt is set, but nothing would read it: FLUX.1 takes one with true_guidance_scale above 1",
    ):
        pixels(flux, negative_prompt="a dog")
    with pytest.raises(ConfigError, match="guidance_rescale is 0.5, but nothing would read it: prediction is flow"):
        pixels(flux, guidance_rescale=0.5)


def test_true_guidance_is_refused_where_guidance_is_no_input(tiny: Path) -> None:
    engine = Engine(str(tiny), "sd", device="cpu", dtype="float32")
    with pytest.raises(
        ConfigError, match="true_guidance_scale is 2.0, but nothing would read it: guidance is classifier-free"
    ):
        engine.render(stack(engine, true_guidance_scale=2.0))


def test_schnell_has_no_guidance_input_and_half_the_window(tmp_path: Path, flux: Engine) -> None:
    from diffusers import FluxPipeline, FluxTransformer2DModel

    pipe = flux.pipe
    transformer = FluxTransformer2DModel.from_config(pipe.transformer.config, guidance_embeds=False)
    FluxPipeline(
        pipe.scheduler, pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.text_encoder_2, pipe.tokenizer_2, transformer
    ).save_pretrained(tmp_path)
    engine = Engine(str(tmp_path), "flux", device="cpu", dtype="float32")
    assert (flux.family.window(flux.pipe), engine.family.window(engine.pipe)) == (511, 255)
    assert engine.family.encode_text(engine.pipe, ["a cat"], 1)[0]["encoder_hidden_states"].shape == (256, 32)
    drawn = stack(engine)
    wanted = engine.pipe(
        drawn.prompt, num_inference_steps=2, width=64, height=64, max_sequence_length=256, output_type="np",
        generator=torch.Generator().manual_seed(drawn.seed),
    ).images[0]  # fmt: skip
    assert abs(pixels(engine) - (wanted * 255).round()).max() <= 1


def _settings(family: str, folder: Path, base: str, **changes: Any) -> Any:
    values = {
        "family": family, "base": base, "resolution_px": 64, "max_steps": 3, "batch_size": 2, "preview_every_steps": 0,
        "learning_rate": 0.02,
        "preview.guidance_rescale": 0.0, "adapter.alpha": 8.0, "adapter.rank": 4,
    }  # fmt: skip
    given = values | {key.replace("__", "."): value for key, value in changes.items()}
    return session.preset_config(
        plain.STYLE, str(folder), None, [f"{key}={json.dumps(value)}" for key, value in given.items()]
    )


@pytest.mark.parametrize("method", ["lora", "dora", "lokr"])
def test_a_file_in_diffusers_names_has_one_rank_and_an_alpha_like_it(
    method: str, flux: Engine, draw_dots: Callable[..., Path], tmp_path: Path
) -> None:
    folder = draw_dots(tmp_path / "dots", "a {colour} dot")
    changes: dict[str, Any] = {"adapter__block_ranks": ["transformer_blocks.0=2"]} if method == "lora" else {}
    run, stream = session.start(
        _settings("flux", folder, flux.base, adapter__method=method, **changes), tmp_path / "runs", method, None
    )
    assert list(stream)[-1].kind == "finished"
    header = lora_file.read_header(run.lora_file)
    if method == "lora":
        assert all(name.startswith("transformer.") for name in header.shapes)
        assert {shape[0] for name, shape in header.shapes.items() if "lora_A" in name} == {4} and not any(
            "alpha" in name for name in header.shapes
        )
        own = json.loads(header.metadata["lora_adapter_metadata"])
        assert own["transformer.r"] == own["transformer.lora_alpha"] == 4
        assert (header.metadata["ss_network_dim"], header.metadata["ss_network_alpha"]) == ("4", "4.0")
    updates = lora_file.read(run.lora_file, flux.file_keys, flux.shapes)
    assert len(updates) > 10
    plain = pixels(flux)
    assert abs(pixels(flux, adapters=({"file": str(run.lora_file), "weight": 2.0},)) - plain).max() > 0


def test_captions_of_several_windows_are_refused_by_name_and_long_ones_are_named(
    flux: Engine, draw_dots: Callable[..., Path], tmp_path: Path
) -> None:
    folder = draw_dots(tmp_path / "dots", "a {colour} dot" + " and another" * 60)
    with pytest.raises(ConfigError, match="captions.long is 'chunk', which flux can't; allowed: cut"):
        session.start(_settings("flux", folder, flux.base, captions__long="chunk"), tmp_path / "runs", "x", None)
    _, stream = session.start(_settings("flux", folder, flux.base, max_steps=1), tmp_path / "runs", "x", None)
    assert any(event.kind == "warned" and "of which the text encoder reads 511" in event.message for event in stream)


def test_stable_diffusion_3_without_t5_encodes_as_its_pipeline_does(tmp_path: Path) -> None:
    family = families.registry()["sd3"]
    base = family.tiny(tmp_path / "sd3")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(
        json.dumps(index | {"text_encoder_3": [None, None], "tokenizer_3": [None, None]})
    )
    pipe = bases.open_pipeline(family, base, "cpu", torch.float32)
    row = family.encode_text(pipe, ["a cat"], 1)[0]["encoder_hidden_states"]
    assert (
        pipe.text_encoder_3 is None
        and not row[-256:].any()
        and family.window(pipe) == pipe.tokenizer.model_max_length - 2
    )
    engine = Engine(str(base), "sd3", device="cpu", dtype="float32")
    wanted = family_truths.picture(engine.pipe, stack(engine, guidance_scale=3.0))
    assert abs(pixels(engine, guidance_scale=3.0) - (wanted * 255).round()).max() <= 1


def test_the_shift_of_a_schedule_goes_by_size_only_where_the_schedulers_does() -> None:
    fixed = objective.flow_schedule({"shift": 3.0})
    assert fixed.shift_at_tokens[0][1] == fixed.shift_at_tokens[1][1] == pytest.approx(1.0986, abs=1e-4)
    by_size = objective.flow_schedule(
        {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192}
    )
    assert by_size.shift_at_tokens == ((256, 0.5), (8192, 0.9))


def test_infotext_and_graph_say_guidance_as_forge_and_comfyui_do(flux: Engine) -> None:
    made = stack(flux, guidance_scale=3.5, negative_prompt="a dog", true_guidance_scale=2.0)
    text = a1111_text.infotext(made, "flux", "0" * 64, "FlowMatchEulerDiscrete")
    assert (
        "CFG scale: 2" in text
        and "Distilled CFG Scale: 3.5" in text
        and "CFG Rescale" not in text
        and "Sampler: Euler, Schedule type: Simple" in text
    )
    back, notes = a1111_text.apply_infotext(stack(flux), a1111_text.parse_infotext(text), {})
    assert (back.guidance_scale, back.true_guidance_scale, back.negative_prompt, back.sampler, notes) == (
        3.5,
        2.0,
        "a dog",
        "flow_euler",
        [],
    )
    prompt, _ = comfy.graphs(made, "flux", "flow_euler")
    nodes = {node["class_type"]: node["inputs"] for node in prompt.values()}
    assert (
        nodes["FluxGuidance"]["guidance"] == 3.5
        and nodes["KSampler"]["cfg"] == 2.0
        and "EmptySD3LatentImage" in nodes
        and "RescaleCFG" not in nodes
    )


@pytest.fixture(scope="module")
def hidream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.registry()["hidream"].tiny(tmp_path_factory.mktemp("hidream"))


def test_gradients_pass_through_hidreams_experts(hidream: Path) -> None:
    family = families.registry()["hidream"]
    pipe = bases.open_pipeline(family, hidream, "cpu", torch.float32)
    denoiser, rng = pipe.transformer.double(), torch.Generator().manual_seed(0)
    conditioning = {
        key: value.double() for key, value in family.prepare_batch(family.encode_text(pipe, ["a cat"], 1)).items()
    }
    noised, timesteps = torch.randn(1, 4, 12, 16, generator=rng).double(), torch.tensor([500.0])
    weight = denoiser.double_stream_blocks[0].block.ff_i.experts[1].w1.weight.requires_grad_()
    way = torch.randn(weight.shape, generator=rng).double()

    def loss() -> torch.Tensor:
        return family.denoise(denoiser, noised, timesteps, conditioning).square().mean()

    (gradient,) = torch.autograd.grad(loss(), weight)
    with torch.no_grad():
        ends = [(weight.add_(way, alpha=step), loss())[1] for step in (1e-5, -2e-5)]
    assert (
        float((gradient * way).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-3)
        and float(gradient.norm()) > 0
    )


def test_hidream_draws_the_size_that_is_asked_and_stochastic_samplers_draw_from_the_seed(
    hidream: Path, tmp_path: Path
) -> None:
    from diffusers import FlowMatchLCMScheduler

    base = shutil.copytree(hidream, tmp_path / "dev")
    FlowMatchLCMScheduler(shift=6.0).save_pretrained(base / "scheduler")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "FlowMatchLCMScheduler"]}))
    engine = Engine(str(base), "hidream", device="cpu", dtype="float32")
    assert engine.family.schedule(engine.pipe).shift_at_tokens[0][1] == pytest.approx(1.7918, abs=1e-4)
    stacks = [stack(engine, seed=seed, steps=3, width_px=80, height_px=56) for seed in (1, 2, 1)]
    first, second, again = (numpy.asarray(picture.image, dtype=int) for picture in engine.render_all(stacks))
    assert first.shape == (56, 80, 3) and abs(first - second).max() > 0 and abs(first - again).max() <= 1
    assert abs(pixels(engine, seed=2, steps=3, width_px=80, height_px=56) - second).max() <= 1
    with pytest.raises(
        ConfigError,
        match=(
            "a picture has 112 tokens of 2 x 2 latents and isn't square; allowed for HiDream-I1: up to 100, or squares"
        ),
    ):
        pixels(engine, width_px=64, height_px=112)


def test_hidream_reads_llama_beside_a_base_that_does_not_name_it_and_says_where_it_belongs(
    hidream: Path, tmp_path: Path
) -> None:
    base, family = shutil.copytree(hidream, tmp_path / "published"), families.registry()["hidream"]
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(
        json.dumps({name: part for name, part in index.items() if not name.endswith("_4")})
    )
    rows = [
        family.encode_text(bases.open_pipeline(family, base_folder, "cpu", torch.float32), ["a cat"], 1)[0]
        for base_folder in (hidream, base)
    ]
    assert all(torch.equal(value, rows[1][key]) for key, value in rows[0].items())
    shutil.rmtree(base / "text_encoder_4")
    with pytest.raises(
        ModelError,
        match=(
            "lacks text_encoder_4, which HiDream-I1 is published without; put the model and the tokenizer of Llama "
            "3.1 8B"
        ),
    ):
        bases.open_pipeline(family, base, "cpu", torch.float32)


def test_pictures_of_a_batch_share_what_runs_live_in_hidreams_experts(hidream: Path, tmp_path: Path) -> None:
    engine = Engine(str(hidream), "hidream", device="cpu", dtype="float32")
    path = "transformer.double_stream_blocks.0.block.ff_i.experts.1.w1"
    rng = torch.Generator().manual_seed(0)
    tensors = {
        f"{path}.lora_{part}.weight": torch.randn(shape, generator=rng)
        for part, shape in (("A", (2, 32)), ("B", (256, 2)))
    }
    save_file(tensors, tmp_path / "expert.safetensors")
    chosen, seeds, rows = (
        ({"file": str(tmp_path / "expert.safetensors"), "schedule": "linear 1 0.5"},),
        (1, 2, 3, 4, 5),
        [],
    )
    expert = engine.pipe.transformer.double_stream_blocks[0].block.ff_i.experts[1].w1
    handle = expert.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    together = [
        numpy.asarray(picture.image, dtype=int)
        for picture in engine.render_all([stack(engine, seed=seed, adapters=chosen) for seed in seeds])
    ]
    handle.remove()
    assert len(rows) == 2 and any(number % len(seeds) for number in rows)
    assert all(
        abs(drawn - pixels(engine, seed=seed, adapters=chosen)).max() <= 1
        for drawn, seed in zip(together, seeds, strict=True)
    )
    assert abs(together[0] - pixels(engine, seed=1)).max() > 0


def test_flux_2_dev_takes_no_negative_prompt_and_the_tokenizer_of_its_processor(tmp_path: Path) -> None:
    family = families.registry()["flux2dev"]
    base = family.tiny(tmp_path / "base")
    engine = Engine(str(base), "flux2dev", device="cpu", dtype="float32")
    wanted = family.encode_text(engine.pipe, ["a cat"], 1)[0]["encoder_hidden_states"]
    assert (
        family.window(engine.pipe) == 96 - 1 - 18
    )  # the instruction is one token, the chat's marks and roles are eighteen
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"tokenizer": ["transformers", "PixtralProcessor"]}))
    pipe = bases.open_pipeline(family, base, "cpu", torch.float32)
    assert torch.equal(family.encode_text(pipe, ["a cat"], 1)[0]["encoder_hidden_states"], wanted)
    assert abs(pixels(engine) - pixels(engine, guidance_scale=9.0)).max() > 0
    for changes in ({"negative_prompt": "a dog"}, {"true_guidance_scale": 2.0}):
        with pytest.raises(
            ConfigError,
            match=f"{next(iter(changes))} is .*, but nothing would read it: FLUX.2 dev takes no negative prompt",
        ):
            pixels(engine, **changes)
