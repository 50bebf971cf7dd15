"""What a picture carries, and that it gives the same picture again."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainer import lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import AdapterError, UserError
from trainer.render import image
from trainer.render.engine import Engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("imprimatura", device="cpu", dtype="float32")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_a_picture_restores_its_stack_and_renders_the_same_bytes(suffix: str, engine: Engine, trained: Path, tmp_path: Path) -> None:
    made = StackConfig(prompt="mokka, „grüß“ 猫", negative_prompt="dark", steps=3, seed=7, adapters=(AdapterChoice(file=str(trained), weight=0.75),))
    picture = engine.render(made)
    path = image.save(picture, tmp_path / f"made{suffix}")
    moved = tmp_path / "library" / "renamed.safetensors"
    moved.parent.mkdir()
    moved.write_bytes(trained.read_bytes())
    restored = image.read_stack(path, lora_file.library([moved.parent]))
    assert restored.adapters[0].file == str(moved)
    again = engine.render(restored)
    assert suffix == ".jpg" or again.image.tobytes() == Image.open(path).convert("RGB").tobytes()
    assert image.save(again, tmp_path / f"again{suffix}").read_bytes() == path.read_bytes()


def test_the_infotext_is_what_a1111_parses(engine: Engine, trained: Path, tmp_path: Path) -> None:
    path = image.save(
        engine.render(StackConfig(prompt="a fox", steps=2, negative_prompt="blur", adapters=(AdapterChoice(file=str(trained), weight=0.5),))), tmp_path
    )
    prompt, negative, last = Image.open(path).info["parameters"].split("\n")
    assert prompt == "a fox <lora:cat:0.5>" and negative == "Negative prompt: blur"
    digest = lora_file.inspect(trained).sha256
    for part in ("Steps: 2", "Sampler: DDIM", "CFG scale: 3", "Seed: 1", "Size: 128x128", f'Lora hashes: "cat: {digest[:12]}"', "Model: imprimatura"):
        assert part in last
    assert str(trained.parent) not in Path(path).read_bytes().decode("latin-1")


def test_names_in_a_folder_are_never_taken_twice(engine: Engine, tmp_path: Path) -> None:
    picture = engine.render(StackConfig(steps=1))
    assert len({image.save(picture, tmp_path) for _ in range(3)}) == 3


def test_a_missing_lora_is_named_with_its_hash(engine: Engine, trained: Path, tmp_path: Path) -> None:
    path = image.save(engine.render(StackConfig(steps=1, adapters=(AdapterChoice(file=str(trained)),))), tmp_path)
    with pytest.raises(AdapterError, match=f"cat .hash {lora_file.inspect(trained).sha256[:12]}"):
        image.read_stack(path, {})


@given(
    st.text(max_size=300)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=9),
        lambda inner: st.dictionaries(st.sampled_from(["adapters", "prompt", "seed", "steps", "base"]), inner | st.lists(inner, max_size=3)),
        max_leaves=8,
    ).map(json.dumps)
)
@settings(max_examples=200)
def test_any_recipe_in_a_picture_is_read_or_refused_in_words(tmp_path_factory: pytest.TempPathFactory, recipe: str) -> None:
    info = PngInfo()
    info.add_itxt(image.RECIPE_KEY, recipe)
    path = tmp_path_factory.mktemp("png") / "x.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    try:
        image.read_stack(path, {})
    except UserError as error:
        assert "picture" in str(error)
