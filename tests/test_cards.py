"""Cards: what goes in comes out, the same content is the same file, and nothing of anybody's place is in it."""

from __future__ import annotations

import json
import os
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from tests import plain
from tests.doors_cards import EVIDENCE, card_values, picture
from trainer import card_file, cli, events, lora_file, predicted_cost, presets, run_facts, runs, session
from trainer.card_file import bundle, reading
from trainer.card_file.contents import Card, DatasetFacts, Evidence
from trainer.cards import comparing, keeping, making, places, sources, suiting
from trainer.cards.making import Wishes
from trainer.config import StackConfig, TrainConfig
from trainer.errors import ConfigError
from trainer.events import Finished, Planned, Recommended, Sampled, Started, Step, Validated
from trainer.predicted_cost import Prediction
from trainer.run_facts import RunFacts


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def velatura(*words: object) -> str:
    """What a command prints; it must end well."""
    done = CliRunner().invoke(cli.app, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def fake_run(parent: Path, name: str = "mine", **changes: Any) -> runs.Run:
    """The folder of a run that said it finished, with two previews; nothing was trained."""
    config = presets.load(plain.CHARACTER, {"data.folder": str(parent / "pictures of anna"), "max_steps": 12} | changes)
    folder = parent / name
    (folder / "samples").mkdir(parents=True)
    presets.save(config, folder / "config.toml")
    log = events.Log(folder / "events.jsonl")
    for step, colour in ((0, "gray"), (12, "teal")):
        Image.new("RGB", (64, 64), colour).save(folder / "samples" / f"{step}.png")
    for event in (
        Started(name, 12, 0, 9, 3, 100, "cpu", "float32", str(parent / "base")), Planned([[64, 96, 9]], 3, 0),
        *(Step(step, 0.5, 1e-3, 1.0, 0.25) for step in range(1, 13)),
        Sampled(0, "a cat", "samples/0.png"), Sampled(12, "a cat", "samples/12.png", 0.99, "anna at home.png"),
        Validated(12, 0.2, 0.3, 0.33, 0.2, 0.4, 1.0, 3), Recommended(12, "best.safetensors", "it has the lowest loss"),
        Finished(12, f"{name}.safetensors", 9.0, 1.0, 5 << 20),
    ):  # fmt: skip
        log.write(event)
    return runs.Run(folder)


# Round trips.


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_becomes_a_card_and_a_preset_again(name: str) -> None:
    raw = making.make(sources.of(name), Wishes(author="me")).raw
    opened = card_file.opened(raw, "x")
    assert opened.settings == presets.load(name, {}) and opened.card.title == presets.title(name)
    saved = presets.add("again", keeping.preset_text(opened))
    assert presets.load("again", {}) == presets.load(name, {}) and presets.title("again") == presets.title(name)
    assert presets.path_of("again") == saved


def test_the_same_content_is_the_same_file_and_goes_by_its_digest(home: Path) -> None:
    once, twice = (making.make(sources.of("imprimatura-style"), Wishes()).raw for _ in range(2))
    assert once == twice
    assert keeping.keep(once).stem == card_file.opened(once, "x").digest and keeping.keep(twice) == keeping.keep(once)
    assert making.make(sources.of("imprimatura-style"), Wishes(note="other")).raw != once


def test_a_preset_goes_through_a_lora_header(trained: Path) -> None:
    """The LoRA's own recipe, the card of the LoRA and the card's settings are one."""
    recipe = lora_file.recipe_of(lora_file.read_header(trained).metadata)
    assert recipe is not None
    opened = card_file.opened(making.make(sources.of(str(trained)), Wishes()).raw, "x")
    ours = opened.settings.model_dump(mode="json")
    assert recipe["config"].pop("data") | {"folder": ""} == ours.pop("data") and recipe["config"] == ours
    made = opened.card.loras[0]
    assert made.role == "made" and made.sha256 == lora_file.inspect(trained).sha256
    assert opened.card.base.sha256, "the base goes by its hash too"


def test_like_gives_the_exact_settings_back_on_other_pictures(trained: Path, tmp_path: Path) -> None:
    from trainer.cards import training_like

    made = runs.Run(trained.parent).config()
    card = tmp_path / "a.velatura"
    card.write_bytes(making.make(sources.of(str(trained.parent)), Wishes()).raw)
    for file in (trained, trained.parent, card):
        config, kept = training_like.like(str(file), str(tmp_path), None, [])
        assert config == made.model_copy(update={"data": made.data.model_copy(update={"folder": str(tmp_path)})})
        assert kept == (card if file == card else None)
    with pytest.raises(ConfigError, match="give --data DIR"):
        training_like.like(str(card), None, None, [])


def test_what_lay_in_places_is_asked_for_or_left_out_with_what_reads_it(tmp_path: Path) -> None:
    changes = {
        "data.folder": "/home/anna/cats", "data.heldout": "/home/anna/held", "data.regularisation": "/home/anna/others",
        "data.regularisation_weight": 0.5, "validation.neutral_prompts": ["a tree"], "data.repeats": ["anna=3"],
    }  # fmt: skip
    config = presets.load(plain.STYLE, changes)
    travelling = places.without(config)
    assert TrainConfig(**travelling.model_dump()) == travelling, "it stands as settings"
    assert "anna" not in travelling.model_dump_json()
    assert places.needed(travelling) == ["data.heldout", "data.regularisation"]
    bare, unread = places.forgotten(travelling, places.needed(travelling))
    assert unread == ["data.regularisation_weight", "validation.neutral_prompts"]
    assert TrainConfig(**bare.model_dump()) == bare
    (tmp_path / "a.velatura").write_bytes(reading.packed(Card(kind="train", title="x"), travelling))
    with pytest.raises(ConfigError, match="data.regularisation"):
        presets.load(str(tmp_path / "a.velatura"), {})


def test_a_stack_becomes_a_card(tmp_path: Path, trained: Path) -> None:
    stack = {"prompt": "a cat", "adapters": [{"file": str(trained), "weight": 0.5}]}
    (tmp_path / "look.toml").write_text(presets.tomli_w.dumps(stack))
    raw = making.make(sources.of(str(tmp_path / "look.toml")), Wishes()).raw
    opened = card_file.opened(raw, "x")
    assert isinstance(opened.settings, StackConfig) and opened.settings.prompt == "a cat"
    assert opened.settings.adapters[0].file == "" and opened.card.loras[0].sha256 == opened.settings.adapters[0].sha256
    assert str(tmp_path).encode() not in raw and suiting.missing(opened.card, True, ())[0].startswith(
        "LoRA cat (sha256 "
    )


# An older card.


@pytest.mark.parametrize(("schema", "kind"), [(1, "pictures with masks"), (2, "pictures with masks"), (2, "pictures")])
def test_a_card_of_an_older_schema_is_read_as_one_of_today(schema: int, kind: str) -> None:
    """Schema 1 had `peak_memory_gib`, a rounded number; both had `kind` as a text that said whether there are masks."""
    config = presets.load("imprimatura-style", {})
    members = bundle.unpacked(reading.packed(Card(**card_values()), config, (picture(),)), "x")
    table = presets.from_toml(members["card.toml"].decode(), "x") | {"schema_version": schema}
    table["evidence"]["dataset"]["kind"] = kind
    del table["evidence"]["dataset"]["masks"]
    if schema == 1:
        table["evidence"]["peak_memory_gib"] = 0.5
        del table["evidence"]["peak_memory_bytes"]
    older = bundle.packed({**members, "card.toml": presets.tomli_w.dumps(table).encode()})
    opened = card_file.opened(older, "x")
    assert opened.card.schema_version == 3 and opened.card.evidence is not None
    assert opened.card.evidence.peak_memory_bytes == (1 << 29 if schema == 1 else 10**9)
    facts = opened.card.evidence.dataset
    assert (facts.kind, facts.masks) == ("unknown", "some" if "masks" in kind else "none") and facts.num_pictures == 9
    assert opened.digest == bundle.digest(bundle.unpacked(older, "x")), "it goes by what stands in it"


# Evidence, and what stays at home.


def test_a_runs_evidence_is_in_its_card(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    run_facts.keep(run.folder, RunFacts(device="A Processor", dataset=DatasetFacts(num_pictures=9, captions="tags")))
    made = making.make(sources.of(str(run.folder)), Wishes(with_samples=True, licence="CC0-1.0"))
    evidence = card_file.opened(made.raw, "x").card.evidence
    assert evidence is not None and evidence.recommended is not None
    assert (evidence.device, evidence.step_s, evidence.peak_memory_bytes) == ("A Processor", 0.25, 5 << 20)
    assert evidence.dataset.captions == "tags" and evidence.heldout[0].gain == 0.33 and evidence.recommended.step == 12
    samples = card_file.opened(made.raw, "x").card.samples
    assert [(sample.step, sample.prompt) for sample in samples] == [(0, "a cat")], "the likely copy stays at home"
    assert "1 previews look like training pictures" in made.notes[0]
    assert card_file.opened(making.make(sources.of(str(run.folder)), Wishes()).raw, "x").pictures == ()


def test_a_card_says_what_its_pictures_teach_as_the_preset_was_for_or_as_one_says(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    facts = DatasetFacts(num_pictures=9, captions="tags", masks="some", num_regular=4, num_heldout=3)
    run_facts.keep(run.folder, RunFacts(device="A Processor", dataset=facts))
    out = tmp_path / "x.velatura"
    velatura("preset", "export", run.folder, "--out", out)
    told = velatura("preset", "show", out)
    assert "# Trained on: 9 pictures, some with masks, captioned with tags, 4 regularisation pictures, 3 more" in told
    run_facts.teach(run.folder, "character")
    velatura("preset", "export", run.folder, "--out", out)
    assert "9 pictures of a character, some with masks" in velatura("preset", "show", out)
    velatura("preset", "export", out, "--out", out, "--kind", "style")
    assert "9 pictures of a style, some with masks" in velatura("preset", "show", out)
    with pytest.raises(ConfigError, match="--kind is 'pose'; allowed: unknown, style, character, concept"):
        CliRunner().invoke(cli.app, ["preset", "export", str(run.folder), "--kind", "pose"], catch_exceptions=False)


def test_what_a_run_of_an_older_velatura_kept_is_read(tmp_path: Path) -> None:
    for kind, masks in (("pictures", "none"), ("pictures with masks", "some")):
        facts = {"kind": kind, "num_pictures": 9, "captions": "tags"}
        (tmp_path / run_facts.FILE).write_text(json.dumps({"device": "x", "dataset": facts}))
        kept = run_facts.kept(tmp_path)
        assert kept is not None and (kept.dataset.kind, kept.dataset.masks) == ("unknown", masks)
        assert kept.dataset.num_pictures == 9


NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0\\", exclude_categories=("Cs",)), min_size=8, max_size=40
)


@given(NAMES, NAMES, NAMES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_path_or_name_of_the_dataset_is_in_any_byte(tmp_path: Path, user: str, folder: str, file: str) -> None:
    """Whatever people call their pictures, folders and themselves."""
    number = len(os.listdir(tmp_path))
    base = f"/home/{user}/{folder}"
    changes = {
        "data.folder": base, "data.heldout": f"{base}/held", "data.regularisation": f"{base}/reg",
        "data.mask": "file", "data.mask_folder": f"{base}/{file}", "data.repeats": [f"{folder}=2"],
        "against.adapters": [f"{base}/{file}.safetensors:0.5"], "start.source": f"{base}/{file}.safetensors",
    }  # fmt: skip
    run, own = fake_run(tmp_path / str(number), "run", **changes), presets.load(plain.CHARACTER, {}).model_dump_json()
    log = events.Log(run.events_file)
    log.write(events.Warned(f"{base}/{file}.png is small"))
    log.write(Sampled(12, "a cat", "samples/12.png", 0.5, f"{file}.png"))
    raw = making.make(sources.of(str(run.folder)), Wishes(with_samples=True)).raw
    told = card_file.opened(raw, "x")
    text = (told.card.model_dump_json() + told.settings.model_dump_json()).encode() + raw
    for word in (user, folder, file, str(tmp_path), os.environ.get("USER", "") or "no such user"):
        common = (
            word.strip() in "a cat imprimatura" or word in own or not set(word) - {*string.digits, *string.punctuation}
        )
        assert common or word.encode() not in text, word


# Commands.


def test_a_card_is_exported_shown_imported_and_found(tmp_path: Path) -> None:
    out = velatura(
        "preset", "export", "imprimatura-style", "--out", tmp_path, "--author", "Ann", "--note", "soft lines"
    )
    path = Path(out.strip())
    assert path.name.startswith("style-on-imprimatura-") and path.suffix == ".velatura"
    before = sorted(tmp_path.rglob("*"))
    dry = velatura("preset", "import", path, "--dry-run")
    assert "learning_rate = 0.0015" in dry and "nothing was written" in dry and sorted(tmp_path.rglob("*")) == before
    kept = json.loads(velatura("preset", "import", path, "--name", "theirs", "--json"))
    assert kept["name"] == "theirs" and kept["kept"] and kept["missing"] == []
    assert presets.load("theirs", {}) == presets.load("imprimatura-style", {})
    assert keeping.card_of("theirs") == keeping.every()[kept["digest"]]
    assert keeping.card_of("imprimatura-style") is None
    shown = velatura("preset", "show", path)
    assert "# By: Ann" in shown and "learning_rate = 0.0015" in shown
    assert "card " in velatura("preset", "search", "soft", "lines", "--family", "sd")
    assert "no preset" in velatura("preset", "search", "soft", "--family", "sdxl")
    memories = [hit["memory_gib"] for hit in json.loads(velatura("preset", "search", "--memory-gib", "12", "--json"))]
    assert memories and all(0 < memory <= 12 for memory in memories)


def test_a_difference_names_settings_with_titles_and_the_effective_scale(tmp_path: Path) -> None:
    presets.save(presets.load("imprimatura-style", {"adapter.alpha": 8.0, "max_steps": 50}), tmp_path / "b.toml")
    found = json.loads(velatura("preset", "diff", "imprimatura-style", tmp_path / "b.toml", "--json"))
    assert found["scale"] == [1.0, 0.5]
    assert {one["key"]: (one["title"], one["before"], one["after"]) for one in found["settings"]} == {
        "max_steps": ("Steps", 100, 50), "adapter.alpha": ("Alpha", 16.0, 8.0),
        "adapter.scale": ("Effective scale", 1.0, 0.5),
    }  # fmt: skip
    stabilised = presets.load("imprimatura-style", {"adapter.rank_stabilised": True})
    assert comparing.scale(stabilised) == 4.0


def test_a_base_that_is_not_here_is_named_with_its_hash_and_address(tmp_path: Path) -> None:
    values = card_values(base={"name": "a/b", "sha256": "c" * 64, "source_url": "https://example.org/b"}, samples=[])
    config = presets.load("sdxl-style", {"base": "a/b"})
    (tmp_path / "a.velatura").write_bytes(reading.packed(Card(**values), config))
    told = velatura("preset", "import", tmp_path / "a.velatura", "--dry-run")
    assert "base a/b (sha256 cccccccccccccccc…) is not here; the card says it comes from https://example.org/b" in told


# Will it work for mine?


def facts(**changes: Any) -> DatasetFacts:
    return DatasetFacts(**{"num_pictures": 9, "shorter_side_px": (128, 128, 128), "captions": "tags"} | changes)


def test_a_set_like_the_cards_gives_no_warning_and_another_says_how_it_differs() -> None:
    config, evidence = presets.load("imprimatura-character", {"data.trigger": "mokka"}), Evidence(**EVIDENCE)
    evidence = evidence.model_copy(update={"dataset": facts(has_trigger=1.0)})
    assert suiting.differences(config, evidence, "", facts(has_trigger=1.0)) == []
    other = facts(num_pictures=2, captions="sentences", shorter_side_px=(40, 50, 60))
    few, small, style, trigger = suiting.differences(config, evidence, "", other)
    assert "2 pictures, fewer than the card's 9" in few and "max_steps=22" in few
    assert "below 50 px" in small and "sentences" in style and "'mokka'" in trigger
    assert suiting.differences(config, None, "Made for 30-60 pictures of 128 px", facts(num_pictures=40))[0].startswith(
        "Its trigger"
    )
    assert (
        "more than the 30-60 pictures"
        in suiting.differences(config, None, "30-60 pictures", facts(num_pictures=300))[0]
    )


def test_a_card_predicts_for_its_own_device_alone() -> None:
    card = Card(**card_values())
    config = presets.load("imprimatura-style", {"max_steps": 24})
    told = suiting.predicted(config, card, "cpu")
    assert told == Prediction("card", 0.5, 19.0, 10**9) and suiting.predicted(config, card, "another") is None


def test_a_prediction_waits_for_the_run_with_its_settings(tmp_path: Path) -> None:
    config = presets.load("imprimatura-style", {})
    (tmp_path / "run").mkdir()
    predicted_cost.keep(predicted_cost._waiting(tmp_path, config), Prediction("rehearsal", 0.5, 60.0, 1 << 30))
    predicted_cost.hand_over(presets.changed(config, {"seed": 5}), tmp_path, tmp_path / "run")
    assert predicted_cost.read(tmp_path / "run" / predicted_cost.FILE) is None
    predicted_cost.hand_over(config, tmp_path, tmp_path / "run")
    assert predicted_cost.read(tmp_path / "run" / predicted_cost.FILE) == Prediction("rehearsal", 0.5, 60.0, 1 << 30)
    for text in ("", "[]", "{}", '{"source": 3, "step_s": "x"}', "[" * 5000):
        (tmp_path / "run" / predicted_cost.FILE).write_text(text)
        assert predicted_cost.read(tmp_path / "run" / predicted_cost.FILE) is None


def test_check_holds_a_set_against_the_cards_and_ends_a_rehearsal_that_takes_too_long(
    tmp_path: Path, examples: Path
) -> None:
    config = presets.load("imprimatura-character", {"data.trigger": "mokka"})
    values = card_values(samples=[], loras=[], evidence=EVIDENCE | {"device": "another", "dataset": {"num_pictures": 90,
                         "captions": "tags", "has_trigger": 1.0}})  # fmt: skip
    (tmp_path / "a.velatura").write_bytes(reading.packed(Card(**values), config))
    told = json.loads(velatura("preset", "check", tmp_path / "a.velatura", "--data", examples / "grey-cat" / "train",
                               "--json"))  # fmt: skip
    assert told["prediction"] is None and told["missing"] == []
    few, style, device = told["warnings"]
    assert (
        "9 pictures, fewer than the card's 90" in few
        and "tags" in style
        and "The card's figures are of another" in device
    )

    from trainer.cards import checking, training_like

    config, _ = training_like.like(str(tmp_path / "a.velatura"), str(examples / "grey-cat" / "train"), None, [])
    prediction, reason = checking.measured(config, tmp_path / "runs", longest_s=0.2)
    assert prediction is None and "takes longer" in reason


@pytest.mark.parametrize(
    ("texts", "style"),
    [
        (["1girl, red hair, smile", "cat, grey, sitting"], "tags"), (["a cat", "a red cat"], "words"),
        (["A grey cat sits on the wall and looks at us.", "It is a cat that has seen many things today."], "sentences"),
        (["", ""], "none"), ([], "none"), (["a cat", "1girl, red hair, smile"], "mixed"),
    ],
)  # fmt: skip
def test_captions_are_known_by_how_they_are_written(texts: list[str], style: str) -> None:
    assert run_facts.caption_style(texts) == style


# With a run.


def test_a_run_from_a_card_has_both_figures_in_its_report(tmp_path: Path, tiny: Path, draw_dots: Any) -> None:
    from tests import small_runs
    from trainer import report, train_command

    values = {"base": str(tiny), "max_steps": 2, "checkpoint_every_steps": 2, "preview_every_steps": 0}
    config = session.absolute(small_runs.config(tiny, draw_dots(tmp_path / "dots", "a {colour} dot"), **values))
    card = tmp_path / "a.velatura"
    card.write_bytes(reading.packed(Card(**card_values(samples=[])), places.without(config)))
    beside = train_command.Beside(card, "concept")
    train_command.train(config, tmp_path / "runs", "x", False, False, True, beside)
    run = runs.Run(tmp_path / "runs" / "x")
    kept = run_facts.kept(run.folder)
    assert kept is not None and kept.dataset.kind == "concept" and (run.folder / bundle.IN_RUN).is_file()
    report.write(run)
    page = run.report_file.read_text()
    assert "Beside the card and what was predicted" in page and "<td>A step<td>0.5 s" in page
