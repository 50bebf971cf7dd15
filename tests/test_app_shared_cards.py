"""Cards behind the page: what a browser may name, what a preset is kept as, and which card a job goes with."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from PIL import Image

from app import (
    arrival_view,
    card_view,
    item_changes,
    item_details,
    job_work,
    leftovers,
    pending_imports,
    recognising,
    shared_cards,
    ui,
)
from app.context import Context
from app.library_items import Shelf
from tests.doors_cards import card_values, picture
from trainer import card_file, presets
from trainer.card_file import reading
from trainer.card_file.contents import Card
from trainer.cards import keeping
from trainer.cards.making import Wishes
from trainer.errors import ConfigError, DataError, UserError

HOSTILE = "<img src=x onerror=window.__owned=1>"


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return ui.open_workspace(tmp_path / "workspace")


def a_card(folder: Path, **changes: object) -> Path:
    path = folder / "theirs.bin"  # known by its content
    config = presets.load("imprimatura-style", {"max_steps": 33})
    path.write_bytes(reading.packed(Card(**card_values(**changes)), config, (picture(),)))
    return path


def keep_card(context: Context, folder: Path) -> None:
    """A card dropped and agreed to."""
    (seen,) = recognising.take(context, [a_card(folder)])
    recognising.keep(context, [seen.offer])


def test_a_dropped_card_is_shown_first_then_kept_and_opens_in_train(context: Context, tmp_path: Path) -> None:
    (seen,) = recognising.take(context, [a_card(tmp_path, title=f"A cat {HOSTILE}")])
    told = arrival_view.html(context, [seen], presets.load("imprimatura-style", {"max_steps": 34}))
    assert "<img src=x" not in told and "data:image/webp;base64," in told and "Ran on" in told
    assert "<td>34</td><td>33</td>" in told and "Nothing is kept yet" in told and "is not here" in told
    assert seen.opens is None and keeping.every() == {}

    (arrival,) = recognising.keep(context, [seen.offer])
    assert arrival.is_taken and arrival.opens is not None and arrival.opens[0] == "preset"
    assert "LoRA (sha256 bbbbbbbbbbbbbbbb…) is not here" in arrival.where
    shelf = Shelf(context)
    item = shelf.item("presets", arrival.opens[1])
    assert item.picture is not None and Image.open(item.picture).size == (32, 24)
    page = card_view.html(context, item)
    assert "<img src=x" not in page and "data:image/webp;base64," in page and "Ran on" in page
    assert item_details.of(shelf, item).raw["settings"]["max_steps"] == 33
    (again,) = recognising.take(context, [a_card(tmp_path, title=f"A cat {HOSTILE}")])
    assert again.opens == arrival.opens and len(keeping.every()) == 1


def test_what_waits_is_forgotten_by_a_no_and_no_other_word_names_a_file(context: Context, tmp_path: Path) -> None:
    (seen,) = recognising.take(context, [a_card(tmp_path)])
    waiting = pending_imports.of(context, seen.offer)
    pending_imports.forget(context, seen.offer)
    assert not waiting.exists() and keeping.every() == {}
    for word in (seen.offer, "", "..", "../../jobs.sqlite", "0" * 32, "/etc"):
        pending_imports.forget(context, word)
        with pytest.raises(DataError, match="not here any more"):
            recognising.keep(context, [word])
    assert (context.workspace / "cache").is_dir()


def test_what_nobody_answered_for_is_removed_after_a_day(context: Context, tmp_path: Path) -> None:
    words = [recognising.take(context, [a_card(tmp_path)])[0].offer for _ in range(2)]
    before = time.time() - 25 * 3600
    os.utime(pending_imports.of(context, words[0]).parent, (before, before))
    leftovers.old(context)
    assert pending_imports.of(context, words[1]).is_file()
    with pytest.raises(DataError):
        pending_imports.of(context, words[0])


def test_a_damaged_card_is_refused_in_words(context: Context, tmp_path: Path) -> None:
    path = a_card(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"max_steps = 33", b"max_steps = 34"))
    (arrival,) = recognising.take(context, [path])
    assert not arrival.is_taken and "is damaged" in arrival.what


@pytest.mark.parametrize("kind", ["runs", "presets", "stacks", "loras", "pictures", ""])
@pytest.mark.parametrize(
    "key", ["..", "../../elsewhere", "/etc", "", "card:../x", "preset:../x", "preset:/etc/passwd", "\0"]
)
def test_what_is_not_here_is_refused(context: Context, tmp_path: Path, kind: str, key: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    presets.save(presets.load("imprimatura-style", {}), elsewhere / "config.toml")
    with pytest.raises(UserError):
        shared_cards.shared(context, kind, key, Wishes())
    assert shared_cards.named(context, f"run:{key}") is None and shared_cards.named(context, key) is None


def test_a_card_becomes_a_preset_that_knows_it_and_a_job_goes_with_it(context: Context, tmp_path: Path) -> None:
    keep_card(context, tmp_path)
    (digest,) = keeping.every()
    name = shared_cards.keep_preset(f"card:{digest}")
    assert shared_cards.source_of(name) == digest and shared_cards.source_of("imprimatura-quick") == ""
    with pytest.raises(ConfigError, match="a preset already"):
        shared_cards.keep_preset(f"preset:{name}")
    shared_cards.go_with(context, "settings", digest)
    configs = context.workspace / "configs"
    assert card_file.read(job_work.card_of(configs, "settings")).digest == digest
    assert not job_work.card_of(configs, "other settings").exists()
    shared_cards.go_with(context, "settings", "../" + digest)
    assert not job_work.card_of(configs, "settings").exists(), "another start, without a card"

    # A preset that ships says what its pictures teach; whatever else the browser says is nothing.
    work, job = job_work.Training(context.runs, configs), context.runner.submit("mine", "settings")
    assert "--kind" not in work.command(job)
    shared_cards.go_with(context, "settings", shared_cards.source_of("imprimatura-character"))
    assert work.command(job)[4:7] == [str(configs / f"job-{job.id}.toml"), "--kind", "character"]
    for source in ("preset:../../x", "preset:imprimatura-quick", "preset:", "character"):
        shared_cards.go_with(context, "settings", source)
        assert "--kind" not in work.command(job)


def test_a_preset_is_shared_and_neither_renamed_nor_thrown_away(context: Context) -> None:
    path, notes = shared_cards.shared(context, "presets", "preset:imprimatura-style", Wishes(author="me"))
    assert card_file.read(path).settings == presets.load("imprimatura-style", {}) and notes == []
    assert path.is_relative_to(context.cache)
    shelf = Shelf(context)
    item = shelf.item("presets", "preset:imprimatura-style")
    for change in (lambda: item_changes.rename(shelf, item, "x"), lambda: item_changes.throw(shelf, item)):
        with pytest.raises(DataError, match="stays as it is"):
            change()


def test_own_presets_and_cards_are_renamed_thrown_away_and_put_back(context: Context, tmp_path: Path) -> None:
    keep_card(context, tmp_path)
    (digest,) = keeping.every()
    name, shelf = shared_cards.keep_preset(f"card:{digest}"), Shelf(context)
    text = presets.path_of(name).read_text()
    for key in (f"preset:{name}", f"card:{digest}"):
        assert item_changes.rename(shelf, shelf.item("presets", key), 'My "cat"') == key
        item = shelf.item("presets", key)
        assert item.name == 'My "cat"'
        entry = item_changes.throw(shelf, item)
        with pytest.raises(DataError):
            shelf.item("presets", key)
        assert not item.paths[0].exists() and entry.places[0].startswith("~/")
        assert item_changes.restore(shelf, entry.id) == ("presets", key)
        assert shelf.item("presets", key).name == 'My "cat"'
    lines = presets.path_of(name).read_text().splitlines()
    assert [line for line in lines if "title" not in line] == [x for x in text.splitlines() if "title" not in x]
