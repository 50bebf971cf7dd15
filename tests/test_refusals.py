"""Settings files from anywhere: read as editors save them, refused in an artist's words, never with a traceback or
pydantic's words.
"""

from __future__ import annotations

import codecs
import json
import typing
from pathlib import Path
from typing import Any

import pydantic_core
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import presets
from trainer.config import BatchConfig, StackConfig, TrainConfig, parse
from trainer.config.data import DataConfig
from trainer.config.parsing import from_json, from_toml
from trainer.config.refusals import _ALLOWED, _PATTERNS
from trainer.errors import ConfigError, UserError
from trainer.printing import MOST_NAMED
from trainer.schema import Settings

WHOLE: dict[str, Any] = {"family": "sd", "base": "imprimatura", "max_steps": 30, "adapter": {"method": "lora"}}
# Words of pydantic's messages that mean nothing to an artist.
STRANGE = (
    "pydantic", "Input should", "valid ", "instance of", "dictionary", "discriminator", "tag ", "unable to",
    "Unable to", "tuple", "unicode", "parse",
    "Keys should",
    "should have", "should match", "pattern", "extract", "NoneType", "Traceback", "greater than", "less than or equal",
    "decimal", "integer",
)  # fmt: skip


def refusal(values: Any, model: type[Settings] = TrainConfig) -> str:
    with pytest.raises(ConfigError) as raised:
        parse(model, values, "x.toml")
    return str(raised.value)


def in_plain_words(message: str) -> None:
    assert not [word for word in STRANGE if word in message], message
    assert message.encode("utf-8")  # half of a pair of surrogates would raise
    lines = message.split("\n")
    assert len(lines) <= MOST_NAMED + 2 and all(line.isprintable() and len(line) < 2000 for line in lines)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a list for a table": ({"data": [1]}, "data is [1]; allowed: a table of settings."),
    "text for a table": ({"data": "cats"}, "data is 'cats'; allowed: a table of settings."),
    "nothing": ({"data": None}, "data is nothing; allowed: a table of settings."),
    "a list for a method": (
        {"adapter": {"method": ["lora"]}},
        "adapter.method is ['lora']; allowed: dora, loha, lokr, lora, oft.",
    ),
    "no method": ({"adapter": {"rank": 4}}, "adapter is a table of 1 settings; allowed: a table with a method"),
    "half a character in a key": ({"a\ud83d": 1}, r"x.toml has a setting called 'a\ud83d', which is no text"),
    "half a character in a deep key": (
        {"data": {"b\udfff": 1}},
        r"x.toml has a setting called 'b\udfff', which is no text",
    ),
    "half a character in a value": (
        {"data": {"trigger": "\ud83d"}},
        r"data.trigger is '\ud83d'; allowed: text without halves of characters.",
    ),
    "a number for a key": ({7: 1}, "x.toml has a setting called 7, which is no text"),
    "too much": ({"max_steps": 10**400}, "max_steps is a number of more than 40 digits; allowed: 1000000 or less."),
    "too little": ({"max_steps": 0}, "max_steps is 0; allowed: 1 or more."),
    "no number": ({"learning_rate": "much"}, "learning_rate is 'much'; allowed: a number."),
    "not whole": ({"max_steps": 2.5}, "max_steps is 2.5; allowed: a whole number."),
    "no answer": ({"data": {"flip": "maybe"}}, "data.flip is 'maybe'; allowed: true or false."),
    "no choice": ({"data": {"crop": "x" * 9000}}, "allowed: 'centre' or 'random'."),
    "no colour": (
        {"data": {"background": "red"}},
        "data.background is 'red'; allowed: a colour as #rrggbb, such as #ffffff.",
    ),
    "blanks around": (
        {"data": {"trigger": " a "}},
        "data.trigger is ' a '; allowed: text on one line without blanks around it.",
    ),
    "too long": ({"data": {"trigger": "a" * 81}}, "allowed: up to 80 characters."),
    "too many": (
        {"data": {"more_resolutions_px": [64] * 9}},
        "data.more_resolutions_px is a list of 9; allowed: up to 4 entries.",
    ),
    "no list": ({"data": {"repeats": "a=2"}}, "data.repeats is 'a=2'; allowed: a list."),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_setting_is_said_in_an_artists_words(name: str) -> None:
    values, wanted = BAD[name]
    message = refusal({**WHOLE, **values})
    in_plain_words(message)
    assert wanted in message


@pytest.mark.parametrize("values", [[], [1, 2], "text", None, 7, True])
def test_what_is_no_table_is_refused_as_a_whole(values: Any) -> None:
    assert refusal(values).startswith("x.toml holds ") and "allowed: a table of settings." in refusal(values)


def test_of_many_problems_five_are_named() -> None:
    message = refusal({**WHOLE, **{f"k{number}": number for number in range(30)}})
    assert (
        message.startswith("30 settings in x.toml can't be used:")
        and message.count("is not a setting") == 5
        and message.endswith("  and 25 more.")
    )
    in_plain_words(message)


def test_both_branches_of_a_choice_of_kinds_are_one_line() -> None:
    message = refusal({"seeds": [1.5, 2]}, BatchConfig)
    assert message == "1 setting in x.toml can't be used:\n  seeds.0 is 1.5; allowed: a whole number or text."


def test_a_deep_table_is_refused_at_once() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    assert "more than 24 deep" in refusal({**WHOLE, "data": deep})


def kinds(model: type[Settings], seen: set[type]) -> set[str]:
    """Patterns of a model's fields and of those inside it."""
    patterns: set[str] = set()
    for field in model.model_fields.values():
        patterns |= {constraint.pattern for constraint in field.metadata if getattr(constraint, "pattern", None)}
        for inner in [field.annotation, *typing.get_args(field.annotation)]:
            for part in (inner, *typing.get_args(inner)):
                if isinstance(part, type) and issubclass(part, Settings) and part not in seen:
                    seen.add(part)
                    patterns |= kinds(part, seen)
    return patterns


def test_every_pattern_of_a_setting_has_its_words() -> None:
    patterns = kinds(TrainConfig, set()) | kinds(StackConfig, set()) | kinds(BatchConfig, set())
    assert patterns and patterns <= set(_PATTERNS)


def test_every_kind_that_has_words_is_one_of_pydantics() -> None:
    assert set(_ALLOWED) <= set(typing.get_args(pydantic_core.core_schema.ErrorType))


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
LEAF = PLAIN | st.binary(max_size=9) | st.dates() | st.sampled_from([10**500, "\ud83d", "x" * 9000])
NAMED = [
    *TrainConfig.model_fields,
    *DataConfig.model_fields,
    *BatchConfig.model_fields,
    *StackConfig.model_fields,
    "method",
    "rank",
]
KEYS = st.sampled_from(NAMED) | st.text(max_size=9)
INSIDE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
TREES = st.dictionaries(KEYS, INSIDE, max_size=5)


def any_values(values: dict[str, Any]) -> None:
    for model in (TrainConfig, StackConfig, BatchConfig, DataConfig):
        for each in (
            values,
            {**WHOLE, **values},
            {**WHOLE, "data": values},
            {**WHOLE, "adapter": {"method": "lora", **values}},
        ):
            try:
                parse(model, each, "x.toml")
            except ConfigError as error:
                in_plain_words(str(error).replace(repr(values), ""))


@given(TREES)
@settings(max_examples=60, deadline=None)
def test_any_values_are_a_config_or_refused_in_words(values: dict[str, Any]) -> None:
    try:
        any_values(values)
    except AssertionError as error:  # a word of pydantic's that the values themselves hold
        if not any(word in str(values) for word in STRANGE):
            raise error


@pytest.mark.slow
@given(TREES)
@settings(max_examples=5000, deadline=None)
def test_any_of_many_values_are_a_config_or_refused_in_words(values: dict[str, Any]) -> None:
    any_values(values)


# Files.


ENCODINGS = {
    "utf-8": b"", "utf-8-sig": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}  # fmt: skip


def encoded(text: str, encoding: str) -> bytes:
    return ENCODINGS[encoding] + text.encode("utf-8" if encoding == "utf-8-sig" else encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_file_is_read_as_editors_save_it(encoding: str, tmp_path: Path) -> None:
    values = {**WHOLE, "data": {"trigger": "mökka 猫"}}
    assert (
        from_toml(encoded(tomli_w.dumps(values), encoding), "x")
        == from_json(encoded(json.dumps(values, ensure_ascii=False), encoding), "x")
        == values
    )
    (tmp_path / "x.toml").write_bytes(encoded(tomli_w.dumps(values), encoding))
    assert presets.load(str(tmp_path / "x.toml"), {}).data.trigger == "mökka 猫"


@pytest.mark.parametrize("read", [from_toml, from_json])
@pytest.mark.parametrize(
    "raw, problem",
    [
        (b"caf\xe9 = 1", "byte 3"), (b"\xff\xfea", "no text"), ("a = 1".encode("utf-16-le"), "is not"),
        (b"[" * 100_000, "is not"), (b"a = " + b"[" * 9000, "is not"),
        (b"a = " + b"9" * 5000, "is not"), (b"\0", "is not"), (b"{", "is not"), (b"a = \x1b[31m", "is not"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_refused_in_words(read: Any, raw: bytes, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as raised:
        read(raw, "x.toml")
    assert str(raised.value).isprintable() and len(str(raised.value)) < 300 and str(raised.value).startswith("x.toml ")


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-16")))
@settings(max_examples=150, deadline=None)
def test_any_bytes_as_a_settings_file_are_read_or_refused(raw: bytes) -> None:
    for read in (from_toml, from_json):
        try:
            values = read(raw, "x")
            parse(TrainConfig, values, "x")
        except UserError as error:
            assert str(error)


@pytest.mark.parametrize("data", [[], [1], "x", 7, True])
def test_a_preset_whose_data_is_no_table_is_refused_with_overrides_and_without(data: Any, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(tomli_w.dumps({**WHOLE, "data": data}))
    for overrides in (
        {},
        {"max_steps": 4},
        {"data.folder": "cats"},
        {"adapter.method": ["lora"]},
        {"adapter.method": {"a": 1}},
    ):
        with pytest.raises(ConfigError, match="data"):
            presets.load(str(tmp_path / "x.toml"), overrides)


@pytest.mark.parametrize("key", ["data", "against", "adapter", "base", "family"])
@pytest.mark.parametrize("value", [[], [1], "x", 7, None, {"adapters": 7, "folder": [], "method": []}])
def test_a_lora_whose_recipe_is_damaged_is_refused_in_words(key: str, value: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from trainer.lora_file.header import RECIPE_KEY

    recipe = {"version": 1, "config": {**WHOLE, key: value}}
    save_file(
        {"lora_unet_x.lora_down.weight": torch.zeros(1, 1)},
        tmp_path / "x.safetensors",
        {RECIPE_KEY: json.dumps(recipe)},
    )
    try:
        presets.load(str(tmp_path / "x.safetensors"), {})
    except UserError as error:
        in_plain_words(str(error))
