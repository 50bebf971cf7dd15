"""Presets of the user's own: where they lie, what names they may have, and that a damaged one harms no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from trainer import cli, preset_heads, presets
from trainer.errors import ConfigError

OWN = tomli_w.dumps({"title": "Mine", **presets.values("imprimatura-style"), "max_steps": 7})


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path))
    return tmp_path


def test_an_own_preset_is_found_by_name_and_listed_after_those_that_ship() -> None:
    shipped = presets.names()
    presets.add("mine", "# Made for 5 pictures at 64 px.\n" + OWN)
    assert presets.names() == [*shipped, "mine"] and presets.title("mine") == "Mine"
    assert presets.load("mine", {}).max_steps == 7 and preset_heads.of("mine").made_for == "5 pictures at 64 px"


def test_a_name_that_is_taken_gets_a_number() -> None:
    assert presets.add("imprimatura-style", OWN).stem == "imprimatura-style-2"
    assert [presets.add("mine", OWN).stem for _ in range(2)] == ["mine", "mine-2"]
    assert presets.load("imprimatura-style", {}).max_steps != 7


@pytest.mark.parametrize("name", ["", "..", "../x", "A", "a/b", "a\\b", "a" * 65, "a\0", "-a", "é", "a\n"])
def test_a_name_that_is_no_name_is_refused(name: str, home: Path) -> None:
    with pytest.raises(ConfigError, match="allowed: a small letter or a digit"):
        presets.add(name, OWN)
    assert not (home / "presets").exists()


@pytest.mark.parametrize("text", ["max_steps = 0", "max_steps = ", "nothing = 1", "[data]\nfolder = 3", "a = 1\0"])
def test_a_text_that_is_no_preset_is_refused_and_not_kept(text: str) -> None:
    with pytest.raises(ConfigError):
        presets.add("mine", text)
    assert not presets.own()


@pytest.mark.parametrize("raw", [b"max_steps = 0", b"\xff\xfe", b"", b"title = 3\n"])
def test_a_damaged_own_preset_is_named_with_its_reason_and_hides_no_other(raw: bytes, home: Path) -> None:
    presets.add("mine", OWN)
    (home / "presets" / "broken.toml").write_bytes(raw)
    listed = CliRunner().invoke(cli.app, ["preset", "list"]).stdout
    assert presets.names()[-1] == "mine" and "broken" not in presets.names()
    assert "mine  " in listed and "can't be used: " in listed.split("broken")[1]
