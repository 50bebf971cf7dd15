"""What a picture carries, and that it gives the same picture again."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainer import lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import AdapterError, UserError
from trainer.render import axes as grids
from trainer.render import command, grid, picture_metadata
from trainer.render.engine import Engine


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_a_picture_restores_its_stack_and_renders_the_same_bytes(
    suffix: str, engine: Engine, trained: Path, tmp_path: Path
) -> None:
    made = StackConfig(
        prompt="mokka, „grüß“ 猫",
        negative_prompt="dark",
        steps=3,
        seed=7,
        adapters=(AdapterChoice(file=str(trained), weight=0.75),),
    )
    picture = engine.render(made)
    path = picture_metadata.save(picture, tmp_path / f"made{suffix}")
    moved = tmp_path / "library" / "renamed.safetensors"
    moved.parent.mkdir()
    moved.write_bytes(trained.read_bytes())
    restored = picture_metadata.read_stack(path, lora_file.library([moved.parent]))
    assert restored.adapters[0].file == str(moved)
    again = engine.render(restored)
    assert suffix == ".jpg" or again.image.tobytes() == Image.open(path).convert("RGB").tobytes()
    assert picture_metadata.save(again, tmp_path / f"again{suffix}").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", ["sheet", "picture"])
def test_of_many_that_save_under_one_name_at_once_none_is_lost(kind: str, tmp_path: Path) -> None:
    def keep(number: int) -> Path:
        drawn = Image.new("RGB", (8, 8), (number, 0, 0))
        if kind == "sheet":
            return picture_metadata.save_free_sheet(drawn, tmp_path, "grid")
        return picture_metadata.save_free(picture_metadata.Picture(drawn, StackConfig(), ""), tmp_path, "grid")

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(keep, range(64)))
    assert len(set(paths)) == 64 and len(list(tmp_path.iterdir())) == 64
    assert [Image.open(path).getpixel((0, 0)) for path in paths] == [(number, 0, 0) for number in range(64)]


@pytest.mark.parametrize("kind", ["strip", "grid"])
def test_a_grid_never_writes_over_a_file_that_took_its_name_meanwhile(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*_: object) -> Any:
        for name in names:
            (tmp_path / name).write_bytes(b"another's")
        return Image.new("RGB", (8, 8)) if kind == "strip" else (Image.new("RGB", (8, 8)), [])

    stack, axis = StackConfig(prompt="x", steps=1, width_px=128, height_px=128), grids.axis("steps=1,2")
    names: list[str] = []
    monkeypatch.setattr(grid, "attribution", draw)
    monkeypatch.setattr(grids, "draw", draw)
    first = command.run(stack, [] if kind == "strip" else [axis], tmp_path, False, strip=kind == "strip")
    names.append(first.name)
    first.unlink()
    second = command.run(stack, [] if kind == "strip" else [axis], tmp_path, False, strip=kind == "strip")
    assert second.stem == f"{first.stem}-2" and first.read_bytes() == b"another's"


def test_the_infotext_is_what_a1111_parses(engine: Engine, trained: Path, tmp_path: Path) -> None:
    path = picture_metadata.save(
        engine.render(
            StackConfig(
                prompt="a fox",
                steps=2,
                negative_prompt="blur",
                adapters=(AdapterChoice(file=str(trained), weight=0.5),),
            )
        ),
        tmp_path,
    )
    prompt, negative, last = Image.open(path).info["parameters"].split("\n")
    assert prompt == "a fox <lora:cat:0.5>" and negative == "Negative prompt: blur"
    digest = lora_file.inspect(trained).sha256
    for part in (
        "Steps: 2",
        "Sampler: DDIM",
        "CFG scale: 3",
        "Seed: 1",
        "Size: 128x128",
        f'Lora hashes: "cat: {digest[:12]}"',
        "Model: imprimatura",
    ):
        assert part in last
    assert str(trained.parent) not in Path(path).read_bytes().decode("latin-1")


def test_names_in_a_folder_are_never_taken_twice(engine: Engine, tmp_path: Path) -> None:
    picture = engine.render(StackConfig(steps=1))
    assert len({picture_metadata.save(picture, tmp_path) for _ in range(3)}) == 3


def test_a_missing_lora_is_named_with_its_hash(engine: Engine, trained: Path, tmp_path: Path) -> None:
    path = picture_metadata.save(
        engine.render(StackConfig(steps=1, adapters=(AdapterChoice(file=str(trained)),))), tmp_path
    )
    with pytest.raises(AdapterError, match=f"cat .hash {lora_file.inspect(trained).sha256[:12]}"):
        picture_metadata.read_stack(path, {})


@given(
    st.text(max_size=300)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=9),
        lambda inner: st.dictionaries(
            st.sampled_from(["adapters", "prompt", "seed", "steps", "base"]), inner | st.lists(inner, max_size=3)
        ),
        max_leaves=8,
    ).map(json.dumps)
)
@settings(max_examples=200)
def test_any_recipe_in_a_picture_is_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, recipe: str
) -> None:
    info = PngInfo()
    info.add_itxt(picture_metadata.RECIPE_KEY, recipe)
    path = tmp_path_factory.mktemp("png") / "x.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    try:
        picture_metadata.read_stack(path, {})
    except UserError as error:
        assert "picture" in str(error)
