"""`velatura preset import` shows what it would change before it writes: in a terminal it asks, elsewhere it goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.other_trainers import RECIPES
from trainer import cli, presets
from trainer.cards import keeping, making, sources
from trainer.cards.making import Wishes

RECIPE = RECIPES / "sdxl_sd_scripts.toml"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def a_card(folder: Path, preset: str = "imprimatura-style") -> Path:
    path = folder / "theirs.velatura"
    path.write_bytes(making.make(sources.of(preset), Wishes(title="Theirs")).raw)
    return path


def imported(file: Path, *words: str) -> str:
    done = CliRunner().invoke(cli.app, ["preset", "import", str(file), *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def in_a_terminal(file: Path, answer: str, *words: str) -> str:
    """What somebody sees who sits at a terminal and answers so."""
    pty = pytest.importorskip("pty", reason="a terminal of Unix")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "trainer", "preset", "import", str(file), *words]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "dumb"}
    ) as one:
        os.close(theirs)
        os.write(ours, answer.encode())
        told = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            told += piece
    os.close(ours)
    assert one.returncode == 0, told.decode()
    return told.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("kind", ["card", pytest.param("recipe", marks=pytest.mark.slow)])
def test_in_a_terminal_the_changes_are_shown_and_nothing_is_written_before_a_yes(kind: str, tmp_path: Path) -> None:
    file, name = (a_card(tmp_path), "theirs") if kind == "card" else (RECIPE, "sdxl-sd-scripts")
    refused = in_a_terminal(file, "n\n", "--name", name)
    shown = "learning_rate = 0.0015" if kind == "card" else "network_dim = 32 -> adapter.rank"
    assert shown in refused and refused.index(shown) < refused.index(f"Keep it as the preset {name}?")
    assert "nothing was written." in refused and presets.own() == {} and not keeping.every()
    assert f"kept as the preset {name}." in in_a_terminal(file, "y\n", "--name", name)
    assert list(presets.own()) == [name]


@pytest.mark.slow
def test_with_yes_a_terminal_is_asked_nothing(tmp_path: Path) -> None:
    told = in_a_terminal(a_card(tmp_path), "", "--yes")
    assert "Keep it" not in told and "kept as the preset theirs." in told and list(presets.own()) == ["theirs"]


def test_without_a_terminal_it_is_shown_and_written(tmp_path: Path) -> None:
    told = imported(a_card(tmp_path))
    assert "learning_rate = 0.0015" in told and told.rstrip().endswith("kept as the preset theirs.")
    assert list(presets.own()) == ["theirs"]


def test_a_name_that_is_taken_is_said_with_what_differs_and_its_preset_stays(tmp_path: Path) -> None:
    imported(a_card(tmp_path))
    before = presets.path_of("theirs").read_bytes()
    other = a_card(tmp_path, "imprimatura-quick")
    ours, theirs = presets.load("imprimatura-style", {}), presets.load("imprimatura-quick", {})
    assert ours.max_steps != theirs.max_steps
    dry = imported(other, "--dry-run")
    assert "there is a preset theirs already, which stays as it is; this one becomes theirs-2." in dry
    assert f"max_steps = {theirs.max_steps}, in theirs {ours.max_steps}   (Steps)".replace("   ", " ") in dry
    assert list(presets.own()) == ["theirs"]

    facts = json.loads(imported(other, "--json"))
    assert facts["name"] == "theirs-2" and facts["kept"] and facts["existing"]["name"] == "theirs"
    (steps,) = [one for one in facts["existing"]["settings"] if one["key"] == "max_steps"]
    assert (steps["before"], steps["after"]) == (ours.max_steps, theirs.max_steps)
    assert presets.path_of("theirs").read_bytes() == before and presets.load("theirs-2", {}) == theirs

    # One that ships is no less a name, and the same settings are said to be the same.
    again = imported(other, "--name", "imprimatura-quick", "--dry-run")
    assert "this one becomes imprimatura-quick-2" in again
    assert "its settings and those of imprimatura-quick are the same." in again


def test_a_recipe_says_what_differs_from_the_preset_of_its_name(tmp_path: Path) -> None:
    imported(RECIPE, "--name", "look", "--pictures", "20")
    told = json.loads(imported(RECIPE, "--name", "look", "--pictures", "40", "--dry-run", "--json"))
    assert told["preset"] == "look-2" and told["kept"] is False and list(presets.own()) == ["look"]
    steps = {one["key"]: one for one in told["existing"]["settings"]}["max_steps"]
    assert steps["after"] == 2 * steps["before"]


def test_a_preset_of_that_name_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    presets.own_folder().mkdir(parents=True)
    (presets.own_folder() / "theirs.toml").write_text("max_steps = 'many'")
    assert "theirs itself can't be read." in imported(a_card(tmp_path))
    assert (presets.own_folder() / "theirs-2.toml").is_file()
