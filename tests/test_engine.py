"""The stack engine against the dense sum, and its promise to leave the base as it was."""

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from trainer import lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import AdapterError, ConfigError, ModelError
from trainer.render import contact_sheet, grid
from trainer.render.engine import Engine
from trainer.render.folding import Folding

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def stack(*adapters: tuple[Path, float], **settings) -> StackConfig:
    return StackConfig(
        prompt="a fox, noto style",
        steps=3,
        adapters=tuple(AdapterChoice(file=str(path), weight=weight) for path, weight in adapters),
        **settings,
    )


def checksum(engine: Engine) -> str:
    state = hashlib.sha256()
    for component in ("unet", "text_encoder", "vae"):
        for name, tensor in sorted(getattr(engine.pipe, component).state_dict().items()):
            state.update(name.encode() + tensor.numpy().tobytes())
    return state.hexdigest()


def test_folded_weights_are_the_base_plus_the_dense_sum(engine: Engine, trained: Path, trained_style: Path) -> None:
    before = {path: weight.clone() for path, weight in engine.weights.items()}
    deltas = [
        (weight, lora_file.read(path, engine.file_keys, engine.shapes))
        for path, weight in ((trained, 0.7), (trained_style, -1.3))
    ]
    with engine.folded(stack((trained, 0.7), (trained_style, -1.3))):
        for path, base in before.items():
            wanted = base.double() + sum(
                weight * updates[path].dense(base, torch.float64) for weight, updates in deltas if path in updates
            )
            assert float((engine.weights[path].double() - wanted).norm()) <= 1e-5 * float(
                (wanted - base).norm().clamp_min(base.norm() * 1e-2)
            )


def test_the_base_is_bitwise_the_same_after_any_changes_of_the_stack(
    engine: Engine, trained: Path, trained_style: Path
) -> None:
    engine.restore()
    before = checksum(engine)
    rng = torch.Generator().manual_seed(0)
    for _ in range(200):
        weights = (torch.rand(2, generator=rng) * 4 - 2).tolist()
        picked = torch.randint(0, 4, (1,), generator=rng).item()
        engine.fold(
            engine.resolve(
                stack(
                    *[
                        pair
                        for bit, pair in ((1, (trained, weights[0])), (2, (trained_style, weights[1])))
                        if picked & bit
                    ]
                )
            )
        )
    engine.restore()
    assert checksum(engine) == before


def test_the_base_is_restored_when_rendering_fails(engine: Engine, trained: Path) -> None:
    engine.restore()
    before = checksum(engine)
    with pytest.raises(RuntimeError, match="boom"), engine.folded(stack((trained, 1.0))):
        assert checksum(engine) != before
        raise RuntimeError("boom")
    assert checksum(engine) == before


def test_weight_zero_is_byte_for_byte_the_base_and_weight_one_is_not(engine: Engine, trained: Path) -> None:
    base = engine.render(stack()).image.tobytes()
    assert engine.render(stack((trained, 0.0))).image.tobytes() == base
    assert engine.render(stack((trained, 1.0))).image.tobytes() != base
    assert engine.render(stack()).image.tobytes() == base


def test_the_order_of_adapters_never_matters(engine: Engine, trained: Path, trained_style: Path) -> None:
    first = engine.render(stack((trained, 0.6), (trained_style, 1.1))).image.tobytes()
    assert engine.render(stack((trained_style, 1.1), (trained, 0.6))).image.tobytes() == first


def test_folded_gives_the_picture_of_diffusers_with_the_adapter_live(
    engine: Engine, trained: Path, imprimatura_folder: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    from trainer.render.pipeline_call import draw

    pipe = StableDiffusionPipeline.from_pretrained(
        str(imprimatura_folder), torch_dtype=torch.float32, local_files_only=True
    )
    pipe.load_lora_weights(str(trained.parent), weight_name=trained.name, use_safetensors=True, adapter_name="a")
    pipe.set_adapters(["a"], [0.8])
    pipe.set_progress_bar_config(disable=True)
    wanted = torch.tensor(list(draw(pipe, stack()).tobytes()), dtype=torch.float32)
    drawn = torch.tensor(list(engine.render(stack((trained, 0.8))).image.tobytes()), dtype=torch.float32)
    assert float((wanted - drawn).abs().max()) <= 1  # of 255: float rounding at a quantisation edge


def test_a_file_that_does_not_fit_is_refused_and_the_stack_that_was_on_stays(
    engine: Engine, trained: Path, tmp_path: Path
) -> None:
    shown = engine.render(stack((trained, 1.0))).image.tobytes()
    bad = tmp_path / "bad.safetensors"
    lora_file.save(
        bad,
        {"lora_unet_nowhere": {"lora_down.weight": torch.ones(1, 2), "lora_up.weight": torch.ones(2, 1)}},
        {},
        torch.float32,
    )
    folded = checksum(engine)
    with pytest.raises(AdapterError, match=r"0 of 1 modules matched.*lora_unet_nowhere"):
        engine.render(stack((trained, 1.0), (bad, 1.0)))
    assert checksum(engine) == folded
    assert engine.render(stack((trained, 1.0))).image.tobytes() == shown


def test_a_file_that_was_written_anew_is_read_anew(engine: Engine, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(trained.read_bytes())
    before = engine.resolve(stack((path, 1.0))).adapters[0].sha256
    lora_file.save(
        path,
        {
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": {
                "lora_down.weight": torch.ones(1, 256),
                "lora_up.weight": torch.ones(256, 1),
            }
        },
        {},
        torch.float32,
    )
    assert engine.resolve(stack((path, 1.0))).adapters[0].sha256 != before


def test_a_wrong_hash_is_refused(engine: Engine, trained: Path) -> None:
    request = StackConfig(adapters=(AdapterChoice(file=str(trained), sha256="0" * 64),))
    with pytest.raises(AdapterError, match="another file by that name"):
        engine.render(request)


def test_a_weight_grid_shows_the_same_pictures_as_single_renders(
    engine: Engine, trained: Path, trained_style: Path
) -> None:
    two = stack((trained, 1.0), (trained_style, 1.0))
    sheet = grid.weight_grid(engine, two, [[0.0, 1.0], [-0.5, 0.0, 1.5]])
    single = engine.render(stack((trained, 1.0), (trained_style, 1.5))).image
    corner = (sheet.width - 256 - 8, sheet.height - 256 - 8)
    cell = sheet.crop((*corner, corner[0] + 256, corner[1] + 256))  # small pictures are shown at twice their size
    twice = single.resize((256, 256), Image.Resampling.BICUBIC)
    assert (
        max(high for _, high in ImageChops.difference(cell, twice).getextrema()) <= 1
    )  # of 255: one batch, not six pictures


def test_a_grid_with_more_axes_than_adapters_is_refused(engine: Engine, trained: Path) -> None:
    with pytest.raises(ConfigError, match="2 axes and 1 adapters"):
        grid.weight_grid(engine, stack((trained, 1.0)), [[0.0], [1.0]])


@given(st.text(max_size=60), st.lists(st.text(max_size=20), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_contact_sheet_can_be_labelled_with_any_text(title: str, labels: list[str]) -> None:
    from PIL import Image

    sheet = contact_sheet.contact_sheet([[Image.new("RGB", (32, 32))] * len(labels)], ["row"], labels, title)
    assert sheet.width >= 32 * len(labels)


def test_a_fold_that_broke_off_is_made_good_by_restore(
    engine: Engine, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.restore()
    before, real, count = checksum(engine), Folding._put, 0

    def put(*args):
        nonlocal count
        count += 1
        if count == 3:
            raise MemoryError
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Folding, "_put", put)
        with pytest.raises(MemoryError):
            engine.render(stack((trained, 1.0)))
    wanted = Engine("imprimatura", device="cpu", dtype="float32").render(stack((trained, 1.0))).image.tobytes()
    assert engine.render(stack((trained, 1.0))).image.tobytes() == wanted
    engine.restore()
    assert checksum(engine) == before


def test_a_size_that_the_base_would_round_is_refused(engine: Engine) -> None:
    with pytest.raises(ModelError, match="width_px is 136; allowed for this base: a multiple of 16"):
        engine.render(stack(width_px=136))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> dict[str, Path]:
    """A file of every method on one layer each of two kinds, none of them plain; `word` also brings a word of two
    vectors.
    """
    folder, rng = tmp_path_factory.mktemp("others"), torch.Generator().manual_seed(2)
    out, into = engine.shapes[LAYER]

    def numbers(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, generator=rng)

    low = {"lora_down.weight": numbers(2, into), "lora_up.weight": numbers(out, 2), "alpha": torch.tensor(2.0)}
    parts = {
        "dora": low | {"dora_scale": engine.weights[LAYER].float().norm(dim=1, keepdim=True) * 1.3},
        "loha": {
            "hada_w1_a": numbers(out, 2),
            "hada_w1_b": numbers(2, into),
            "hada_w2_a": numbers(out, 2),
            "hada_w2_b": numbers(2, into),
        },
        "lokr": {"lokr_w1": numbers(4, 4), "lokr_w2": numbers(out // 4, into // 4)},
        "oft": {"oft_R.weight": numbers(into // 8, 28)},
        "word": low,
    }
    width = engine.vocabulary.tables["text_encoder"].embedding_dim
    for name, part in parts.items():
        words = {"mokkaword": {"string_to_param.*": numbers(2, width)}} if name == "word" else {}
        metadata = {"ss_network_module": "peft.oft"} if name == "oft" else {}
        lora_file.save(folder / f"{name}.safetensors", {engine.file_keys[LAYER]: part}, metadata, torch.float32, words)
    return {name: folder / f"{name}.safetensors" for name in parts}


def test_updates_that_are_not_low_rank_add_up_on_the_base_alone(
    engine: Engine, others: dict[str, Path], trained: Path
) -> None:
    engine.restore()
    start, before = checksum(engine), {path: weight.clone() for path, weight in engine.weights.items()}
    chosen = [
        (trained, 0.5),
        *((others[name], weight) for name, weight in (("dora", 0.7), ("loha", -1.0), ("lokr", 0.4), ("oft", 1.0))),
    ]
    read = [(weight, lora_file.read(path, engine.file_keys, engine.shapes)) for path, weight in chosen]
    with engine.folded(stack(*chosen)):
        for path, base in before.items():
            wanted = base.double() + sum(
                weight * updates[path].dense(base, torch.float64) for weight, updates in read if path in updates
            )
            torch.testing.assert_close(engine.weights[path].double(), wanted, rtol=1e-5, atol=1e-6)
    assert checksum(engine) == start


def test_a_files_word_is_known_while_the_file_is_in_the_stack(engine: Engine, others: dict[str, Path]) -> None:
    engine.restore()
    before, tokenizer, plain = (
        checksum(engine),
        engine.pipe.tokenizer,
        lora_file.embeddings(others["word"])["mokkaword"]["string_to_param.*"],
    )
    embeddings = engine.pipe.encode_prompt("a mokkaword", "cpu", 1, False)[0]
    with engine.folded(stack((others["word"], 0.3))):
        prompt = engine.pipe.maybe_convert_prompt("a mokkaword", engine.pipe.tokenizer)
        assert prompt == "a mokkaword mokkaword_1"
        ids = engine.pipe.tokenizer(prompt, add_special_tokens=False).input_ids
        rows = engine.pipe.text_encoder.get_input_embeddings().weight[ids[-2:]]
        torch.testing.assert_close(rows, plain)
        assert not torch.equal(engine.pipe.encode_prompt("a mokkaword", "cpu", 1, False)[0], embeddings)
    assert checksum(engine) == before and engine.pipe.tokenizer is tokenizer
    assert torch.equal(engine.pipe.encode_prompt("a mokkaword", "cpu", 1, False)[0], embeddings)


@pytest.mark.parametrize(
    ("word", "wide", "says"),
    [
        ("mokkaword", 0, "not the same one"),
        ("mokkaword_1", 0, "share 'mokkaword_1'"),
        ("a", 0, "a word of its own"),
        ("zorp", 1, "wide"),
    ],
)
def test_a_word_that_cannot_be_added_is_refused_and_the_stack_stays(
    word: str, wide: int, says: str, engine: Engine, others: dict[str, Path], tmp_path: Path
) -> None:
    engine.fold(engine.resolve(stack((others["word"], 1.0))))
    folded, width = checksum(engine), engine.vocabulary.tables["text_encoder"].embedding_dim + wide
    out, into = engine.shapes[LAYER]
    low = {"lora_down.weight": torch.ones(1, into), "lora_up.weight": torch.ones(out, 1)}
    lora_file.save(
        tmp_path / "bad.safetensors",
        {engine.file_keys[LAYER]: low},
        {},
        torch.float32,
        {word: {"string_to_param.*": torch.ones(2, width)}},
    )
    with pytest.raises(AdapterError, match=says):
        engine.render(stack((others["word"], 1.0), (tmp_path / "bad.safetensors", 1.0)))
    assert checksum(engine) == folded
    engine.restore()
