"""Settings, presets and what is said when they are wrong."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.form_fields import specs
from trainer import presets
from trainer.config import TrainConfig, digest, recipe
from trainer.errors import ConfigError, UserError


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_survives_saving_and_loading(name: str, tmp_path: Path) -> None:
    config = presets.load(name, {"data.folder": "some where/ümlaut"})
    presets.save(config, tmp_path / "x.toml")
    assert presets.load(str(tmp_path / "x.toml"), {}) == config


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("adapter.rnak=8", ["adapter.rnak", "8", "did you mean adapter.rank", "adapter.alpha"]),
        ("max_steps=-1", ["max_steps is -1", "1 or more"]),
        ("adapter.method=loar", ["adapter.method is 'loar'", "lora"]),
        ("adapter.rank=0", ["adapter.rank is 0"]),
        ("learning_rate=much", ["learning_rate is 'much'", "number"]),
        ("learning_rate=nan", ["learning_rate is nan"]),
        ("family=sdd", ["family is 'sdd'", "sd"]),
        ("resolution_px=130", ["resolution_px is 130", "multiple of 8"]),
        ("optimizer.warmup_steps=999", ["optimizer.warmup_steps is 999", "max_steps"]),
        ("adapter.targets=everything", ["adapter.targets is 'everything'", "attention"]),
        ("dtype=fp16", ["dtype is 'fp16'", "float16"]),
        ("max_steps.deep=1", ["max_steps"]),
    ],
)
def test_a_bad_setting_is_named_with_what_was_found_and_what_is_allowed(setting: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        presets.load("imprimatura-style", presets.parse_overrides([setting]))
    for part in words:
        assert part in str(raised.value)


def test_all_bad_settings_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)3 settings.*max_steps.*batch_size|3 settings.*batch_size.*max_steps"):
        presets.load("imprimatura-style", {"max_steps": 0, "batch_size": "x", "adapter.rank": 10_000})


def test_an_unknown_preset_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="imprimatura-stile.*imprimatura-style.*imprimatura-character"):
        presets.load("imprimatura-stile", {})


def test_every_default_is_within_its_own_bounds_and_every_setting_has_a_label_and_help() -> None:
    for spec in specs(TrainConfig):
        assert spec.info.title, f"{spec.key} has no label"
        assert spec.info.description, f"{spec.key} has no help"
    TrainConfig.model_validate({"family": "sd", "base": "imprimatura", "adapter": {"method": "lora"}})


def test_equal_settings_have_equal_digests_and_recipes_carry_no_path() -> None:
    first = presets.load("imprimatura-style", {"data.folder": "/home/someone/secret/cats"})
    second = presets.load("imprimatura-style", {"data.folder": "/home/someone/secret/cats"})
    assert (
        digest(first) == digest(second) != digest(presets.load("imprimatura-style", {"data.folder": "/x", "seed": 1}))
    )
    assert recipe(first)["data"]["folder"] == "cats" and "secret" not in str(recipe(first))


@given(st.text(max_size=200))
@settings(max_examples=200)
def test_any_text_as_a_preset_file_is_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("preset") / "p.toml"
    path.write_text(text, encoding="utf-8", errors="replace")
    with pytest.raises(UserError):
        presets.load(str(path), {})


@given(st.lists(st.text(max_size=30), max_size=4))
@settings(max_examples=200)
def test_any_text_as_an_override_is_read_or_refused_in_words(pairs: list[str]) -> None:
    try:
        presets.load("imprimatura-style", presets.parse_overrides(pairs))
    except UserError as error:
        assert str(error) and all(line.isprintable() for line in str(error).split("\n"))
    else:
        assert all("=" in pair for pair in pairs)


def test_another_method_than_the_presets_keeps_only_what_both_have() -> None:
    config = presets.load("imprimatura-style", {"adapter.method": "oft"})
    assert config.adapter.method == "oft" and not hasattr(config.adapter, "rank")
    with pytest.raises(ConfigError, match="adapter.rank"):
        presets.load("imprimatura-style", {"adapter.method": "oft", "adapter.rank": 8})
