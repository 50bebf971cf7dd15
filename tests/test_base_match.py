"""A LoRA that is for another base is used with a word that names both: in `inspect`, `render`, `batch`, the analysis, a
training against it, and the page.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import single_files
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from single_files import add

from tests import plain
from tests.conftest import train_small
from trainer import base_match, bases, families, lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.render.engine import Engine

THEIRS = "31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b"


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def changed(path: Path, to: Path, **entries: str | None) -> Path:
    """The same tensors under a header with other entries; None takes one out."""
    metadata = metadata_of(path) | {key.replace("__", "."): value for key, value in entries.items()}
    save_file(load_file(path), to, {key: value for key, value in metadata.items() if value is not None})
    return to


@pytest.fixture(scope="module")
def other_base(tmp_path_factory: pytest.TempPathFactory, imprimatura_folder: Path) -> Path:
    """A base of the same shapes with another denoiser, in a folder of its own."""
    folder = Path(shutil.copytree(imprimatura_folder, tmp_path_factory.mktemp("bases") / "pony"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor * 1.001 for name, tensor in tensors.items()}, weights, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory, other_base: Path, examples: Path) -> Path:
    """A LoRA trained on it."""
    return train_small(
        tmp_path_factory.mktemp("stranger"), examples / "grey-cat" / "train", "stranger", [f'base="{other_base}"']
    )


def test_a_run_writes_which_base_it_trained_on(trained: Path, stranger: Path, other_base: Path) -> None:
    own, other = metadata_of(trained), metadata_of(stranger)
    assert (
        own[base_match.KEY]
        == bases.digest(bases.IMPRIMATURA, "unet")
        != other[base_match.KEY]
        == bases.digest(other_base, "unet")
    )
    assert (own["ss_sd_model_name"], other["ss_sd_model_name"]) == ("imprimatura", "pony")


def test_every_command_names_both_bases_and_does_its_work(
    run_velatura: Callable, stranger: Path, trained: Path, tmp_path: Path
) -> None:
    def names_both(text: str) -> bool:
        return "stranger.safetensors was trained on pony" in text and "is used on imprimatura, second edition" in text

    drawn = run_velatura(
        "render", "--lora", stranger, "--lora", trained, "--prompt", "a cat", "--steps", "2", "--out", "x.png"
    )
    assert (
        drawn.returncode == 0
        and names_both(drawn.stderr)
        and drawn.stderr.count("warning") == 1
        and (tmp_path / "x.png").is_file()
    )
    (tmp_path / "jobs.csv").write_text(f"prompt,lora,steps\na fox,{stranger},2\na fox,{trained},2\n")
    batch = run_velatura("batch", "jobs.csv", "--out", "batch")
    assert batch.returncode == 0 and names_both(batch.stdout) and batch.stdout.count("warning") == 1
    assert names_both(run_velatura("batch", "jobs.csv", "--out", "batch", "--dry-run").stdout)
    analysed = run_velatura("stack", "analyze", f"{stranger}:1", f"{trained}:1")
    assert analysed.returncode == 0 and names_both(analysed.stdout)
    assert names_both(json.loads(run_velatura("stack", "analyze", f"{stranger}:1", "--json").stdout)["warnings"][0])
    assert names_both(run_velatura("stack", "balance", f"{stranger}:1", f"{trained}:1").stderr)
    assert names_both(
        run_velatura("stack", "bake", f"{stranger}:1", f"{trained}:1", "--out", "both.safetensors").stderr
    )
    assert names_both(run_velatura("inspect", stranger, "--base", "imprimatura").stdout)
    assert names_both(
        json.loads(run_velatura("inspect", stranger, "--base", "imprimatura", "--json").stdout)["warning"]
    )
    merged = run_velatura("lora", "merge", stranger, trained, "--out", "sum.safetensors")
    assert merged.returncode == 0 and "different bases: stranger.safetensors on pony" in merged.stderr
    assert (
        base_match.origin_in_header(metadata_of(tmp_path / "sum.safetensors"))
        is base_match.origin_in_header(metadata_of(tmp_path / "both.safetensors"))
        is None
    )


def test_nothing_is_said_of_a_lora_of_this_base_or_of_a_copy(
    run_velatura: Callable, trained: Path, tmp_path: Path, imprimatura_folder: Path
) -> None:
    copy = shutil.copytree(imprimatura_folder, tmp_path / "copy")
    for base in ("imprimatura", copy):
        done = run_velatura("render", "--base", base, "--lora", trained, "--steps", "2", "--out", "x.png")
        assert done.returncode == 0 and "warning" not in done.stderr
    assert "warning" not in run_velatura("inspect", trained).stdout


def test_a_lora_of_the_first_edition_is_known_by_having_no_hash(
    run_velatura: Callable, trained: Path, tmp_path: Path
) -> None:
    old = changed(trained, tmp_path / "old.safetensors", **{base_match.KEY: None})
    for text in (
        run_velatura("inspect", old).stdout,
        run_velatura("render", "--lora", old, "--steps", "2", "--out", "x.png").stderr,
    ):
        assert (
            "old.safetensors was trained on imprimatura, first edition" in text
            and "imprimatura, second edition" in text
        )


def test_training_against_a_stranger_says_so(stranger: Path, tmp_path: Path, examples: Path) -> None:
    from trainer import session

    small = ["max_steps=1", "batch_size=1", "preview_every_steps=0", f'against.adapters=["{stranger}:1"]']
    config = session.preset_config(plain.CHARACTER, str(examples / "grey-cat" / "train"), None, small)
    _, stream = session.start(config, tmp_path, "x", None)
    assert any("stranger.safetensors was trained on pony" in getattr(event, "message", "") for event in stream)


def test_kohyas_hashes_are_compared_with_those_of_a_base_in_one_file(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    file = single_files.sd_file(tiny, tmp_path / "artist.safetensors")
    add(str(file), "--like", str(tiny))
    folder = bases.resolve("artist", families.registry()["sd"])
    here = base_match.of_base("artist", folder, "sd")
    body = file.read_bytes()
    assert here.file_sha256 == hashlib.sha256(body).hexdigest()
    assert here.old_hash == hashlib.sha256(body[1 << 20 : (1 << 20) + (1 << 16)]).hexdigest()[:8]
    lora = tmp_path / "cat.safetensors"
    weight = {"lora_unet_x.lora_down.weight": torch.ones(1, 4)}

    def warning_of(**header: str) -> str:
        save_file(weight, lora, header)
        return base_match.warning(lora, here)

    assert not warning_of(ss_sd_model_name="renamed.safetensors", ss_new_sd_model_hash=here.file_sha256)
    assert not warning_of(ss_sd_model_name="renamed.safetensors", ss_sd_model_hash=here.old_hash)
    theirs = warning_of(ss_sd_model_name="sd_xl_base_1.0.safetensors", ss_new_sd_model_hash=THEIRS)
    assert "sd_xl_base_1.0.safetensors (hash 31e35c80fc)" in theirs and "artist.safetensors (hash" in theirs
    assert "another base" in warning_of(ss_sd_model_name="x", ss_sd_model_hash="deadbeef")
    assert (
        not warning_of()
        and not warning_of(ss_sd_model_name="artist")
        and not warning_of(ss_sd_model_name="/models/Artist.safetensors")
    )
    assert not warning_of(ss_sd_model_name=r"C:\models\artist.ckpt")
    assert "can't be told" in warning_of(ss_sd_model_name="pony")
    assert "can't be told" in warning_of(ss_sd_model_name="pony", ss_new_sd_model_hash="not a hash")


@pytest.mark.parametrize(
    "recipe", ["null", "[]", '{"config": {}}', '{"config": {"base": 3}}', "{", '{"config": {"base": ""}}']
)
def test_a_damaged_or_hostile_header_is_no_error(trained: Path, tmp_path: Path, recipe: str) -> None:
    odd = changed(
        trained,
        tmp_path / "odd.safetensors",
        **{lora_file.RECIPE_KEY: recipe, "ss_sd_model_name": "<b>\x00" * 50, base_match.KEY: "zz" * 40},
    )
    engine = Engine("imprimatura", device="cpu", dtype="float32")
    stack = StackConfig(adapters=(AdapterChoice(file=str(odd)),))
    assert isinstance(engine.warnings(engine.resolve(stack)), list)


def test_a_checkpoint_drawn_while_its_run_goes_on_is_of_its_base(trained: Path) -> None:
    from trainer import checkpoint_files
    from trainer.runs import Run

    run = Run(trained.parent)
    aside = trained.with_suffix(".aside")
    trained.rename(aside)
    try:
        files = checkpoint_files.files(run, "sd", Engine("imprimatura", device="cpu", dtype="float32").file_keys)
        assert files and all(not base_match.at_home(file) for file in files)
    finally:
        aside.rename(trained)
