"""The conflict map of trained LoRAs; `velatura stack` as a person types it."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests import plain
from trainer import lora_file, validation
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import UserError
from trainer.render import analysis, overlap, stack_command
from trainer.render.engine import Engine

# The command.


def test_analyze_reports_in_words_and_json_and_draws_the_map(
    run_velatura, trained: Path, trained_style: Path, tmp_path: Path
) -> None:
    made = run_velatura(
        "stack", "analyze", f"{trained}:0.8", trained_style, "--json", "--heatmap", tmp_path / "maps" / "map.png"
    )
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout)
    assert set(result) == {field.name for field in dataclasses.fields(analysis.Analysis)}
    for read, path, weight in zip(result["adapters"], (trained, trained_style), (0.8, 1.0), strict=True):
        info = lora_file.inspect(path)
        assert set(read) == {field.name for field in dataclasses.fields(analysis.AdapterReport)}
        assert (read["sha256"], read["method"], read["alpha"]) == (info.sha256, "lora", "in the file")
        assert read["matched"] == read["modules"] == info.num_modules == len(read["layers"]) and read["ranks"] == [
            info.rank,
            info.rank,
        ]
        assert (
            read["total"]["energy"] == pytest.approx((info.norm * weight) ** 2, rel=1e-5)
            and 0 < read["total"]["relative"] < 1
        )
    assert list(result["blocks"])[0] == "IN0" and {"IN0", "MID", "OUT1"} <= set(result["blocks"])
    assert set(result["pairs"][0]["layers"]) <= set(result["layers"]) and result["not_analysed"] == []
    with Image.open(tmp_path / "maps" / "map.png") as opened:
        assert opened.width >= 640 and opened.height > 400
    output = run_velatura("stack", "analyze", trained).stdout
    assert "no burn" in output and "56 of 56 modules matched" in output and trained.stem in output
    alone = [
        f'[[adapters]]\nfile = {json.dumps(str(path))}\nschedule = "{when}"\n'
        for path, when in ((trained, "steps 0:1 0.5:0"), (trained, "steps 0:0 0.5:1"))
    ]
    (tmp_path / "turns.toml").write_text("".join(alone))
    turns = json.loads(run_velatura("stack", "analyze", "--stack", tmp_path / "turns.toml", "--json").stdout)
    assert turns["pairs"][0]["total"]["interference"] == 0 and turns["total"]["ratio"] == pytest.approx(
        (25 / 13) ** 0.5
    )
    assert "one of the two" in run_velatura("stack", "analyze", trained, "--stack", "x.toml").stderr


def test_balance_prints_what_render_takes(run_velatura, trained: Path) -> None:
    lines = run_velatura("stack", "balance", f"{trained}:1", f"{trained}:0.5").stdout.splitlines()
    assert "1.50 times" in lines[0] and lines[1:] == [f"{trained}:0.667", f"{trained}:0.333"]
    balance = json.loads(run_velatura("stack", "balance", f"{trained}:1", f"{trained}:0.5", "--json").stdout)
    assert balance["factor"] == pytest.approx(2 / 3) and [
        adapter["proposed"] for adapter in balance["adapters"]
    ] == pytest.approx([2 / 3, 1 / 3])


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """A folder of files that can't be used, named for what is wrong with them."""
    folder, tensors = tmp_path_factory.mktemp("broken"), load_file(trained)
    first = next(name for name in tensors if name.endswith("lora_up.weight"))
    save_file(tensors | {first: torch.full_like(tensors[first], math.nan)}, folder / "nan.safetensors")
    save_file(
        {name.replace("mid_block", "middle_thing"): tensor for name, tensor in tensors.items()},
        folder / "half.safetensors",
    )
    flux = {
        "transformer.single_transformer_blocks.0.attn.to_q": {
            "lora_A.weight": torch.ones(2, 3072),
            "lora_B.weight": torch.ones(3072, 2),
        }
    }
    lora_file.save(folder / "flux.safetensors", flux, {}, torch.float32)
    (folder / "header.safetensors").write_bytes((2 << 30).to_bytes(8, "little") + b"{}")
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["flux.safetensors"], ["flux.safetensors", "0 of 1 modules matched", "single_transformer_blocks.0.attn.to_q"]),
        (["half.safetensors:0.5"], ["half.safetensors", "48 of 56 modules matched", "middle_thing"]),
        (["nan.safetensors"], ["nan.safetensors has NaN or infinity in 1 of 168 tensors", "lora_up.weight"]),
        (["header.safetensors"], ["header.safetensors", "2147483648 bytes"]),
        (["nowhere.safetensors:1"], ["nowhere.safetensors", "No such file"]),
        (["half.safetensors:1,2"], ["several weights", "one each"]),
        (["half.safetensors:3"], ["weight is 3", "-2 to 2"]),
        (["half.safetensors", "--base", "nowhere"], ["nowhere", "not a folder here"]),
    ],
    ids=lambda value: " ".join(value[:1]),
)
def test_what_cannot_be_analysed_is_refused_with_names_and_numbers(
    broken: Path, arguments: list[str], words: list[str]
) -> None:
    result = CliRunner().invoke(stack_command.app, ["analyze", str(broken / arguments[0]), *arguments[1:]])
    assert isinstance(result.exception, UserError), result.output
    assert not [part for part in words if part not in str(result.exception)], result.exception


def test_a_heatmap_that_is_no_png_is_refused_before_anything_is_read(run_velatura) -> None:
    result = run_velatura("stack", "analyze", "nowhere.safetensors", "--heatmap", "map.jpg")
    assert result.returncode == 2 and "--heatmap is 'map.jpg'" in result.stderr and "Traceback" not in result.stderr


# Trained to conflict: the same pictures and trigger, in red ink and in blue.


@pytest.fixture(scope="module")
def inks(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> dict[str, Path]:
    """LoRAs of the two contradictory styles, `red` and `blue`, one that has nothing to do with them, and folders of
    held-out pictures.
    """
    from trainer import session

    parent, files = tmp_path_factory.mktemp("inks"), {}
    for part in ("train", "heldout"):
        for colour in ("red", "blue"):
            folder = files[f"{colour}-{part}"] = parent / f"{colour}-{part}"
            folder.mkdir()
            for path in sorted((examples / "outline-style" / part).glob("*.png")):
                ImageOps.colorize(Image.open(path).convert("L"), colour, "white").save(folder / path.name)
                (folder / f"{path.stem}.txt").write_text(path.with_suffix(".txt").read_text())
    settings = ["max_steps=60", "preview_every_steps=0", "adapter.rank=8", "adapter.alpha=8"]
    for seed, (name, folder) in enumerate(
        {"red": files["red-train"], "blue": files["blue-train"], "cat": examples / "grey-cat" / "train"}.items()
    ):
        config = session.preset_config(plain.CHARACTER, str(folder), None, [*settings, f"seed={seed}"])
        run, stream = session.start(config, parent, name, None)
        assert list(stream)[-1].kind == "finished"
        files[name] = run.lora_file
    return files


def heldout_losses(engine: Engine, stack: StackConfig, folders: list[Path]) -> torch.Tensor:
    """Loss (N, 10) by picture and timestep with the stack on the base."""
    family, pipe = engine.family, engine.pipe
    paths = sorted(path for folder in folders for path in folder.glob("*.png"))
    with torch.no_grad():
        latents = [family.encode_image(pipe, pipe.image_processor.preprocess(Image.open(path)))[0] for path in paths]
    frames = [torch.zeros(6, dtype=torch.long)] * len(paths)
    questions = validation.Questions(latents, [path.with_suffix(".txt").read_text() for path in paths], frames)

    def predict(
        noised: torch.Tensor, timesteps: torch.Tensor, captions: list[str], frames: torch.Tensor
    ) -> torch.Tensor:
        return family.denoise(pipe.unet, noised, timesteps, family.prepare_batch(family.encode_text(pipe, captions, 1)))

    with engine.folded(stack):
        return validation.losses(questions, family.schedule(pipe), predict, 16)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_loras_trained_to_conflict_rank_first_and_balanced_they_predict_better(inks: dict[str, Path]) -> None:
    engine = Engine("imprimatura", device="cpu", dtype="float32")
    chosen = {name: AdapterChoice(file=str(inks[name])) for name in ("cat", "red", "blue")}
    loaded = {name: overlap.load(choice, engine.file_keys, engine.shapes) for name, choice in chosen.items()}
    result = analysis.analyse(list(loaded.values()), engine.weights)
    conflict, *unrelated = result.pairs
    for each in result.pairs:
        print(f"{' and '.join(each.names)}: overlap {each.total.overlap:.2f}, {each.total.chance:.2f} by chance")
    assert conflict.names == ("red", "blue")
    assert conflict.total.overlap > 1.5 * max(pair.total.overlap for pair in unrelated)

    pair = analysis.analyse([loaded["red"], loaded["blue"]], engine.weights)
    folders, proposed = [inks["red-heldout"], inks["blue-heldout"]], analysis.balance(pair).weights
    stacks = [
        StackConfig(
            adapters=tuple(
                chosen[name].model_copy(update={"weight": weight})
                for name, weight in zip(("red", "blue"), weights, strict=True)
            )
        )
        for weights in ((1.0, 1.0), proposed)
    ]
    before, after = (heldout_losses(engine, stack, folders) for stack in stacks)
    low, _ = validation.interval(before.mean(1), after.mean(1))
    print(
        f"balance {proposed}: held-out loss {float(before.mean()):.4f} -> {float(after.mean()):.4f}, at least "
        f"{low:.1%} lower (95 %)"
    )
    assert validation.gain(before, after) > 0.02 and low > 0
