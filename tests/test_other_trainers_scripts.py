"""What is written for another trainer is what its own code takes, and what its code makes of old files is made here.

`scripts.json` holds the arguments of the scripts' own parsers, `onetrainer_old.json` what OneTrainer's own migrations
gave; both were written by running those tools' code.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.other_trainers import older_configs, scripts
from trainer import presets
from trainer.config import TrainConfig, parse
from trainer.errors import ConfigError
from trainer.other_trainers import importing, recipes_out

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCRIPTS = scripts()
KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "str": (str,), "list": (list,), "flag": (bool,),
    "any": (str, int, float),
}  # fmt: skip
WAYS = {
    "min-snr": ["objective.weighting=min-snr"],
    "half alpha": ["adapter.alpha=0.5"],
    "restarts": ["optimizer.schedule=restarts", "optimizer.cycles=3"],
    "prodigy": ["optimizer.name=prodigy"],
    "huber": ["objective.loss=huber"],
    "no buckets": ["data.buckets=false", "data.flip=true", "data.crop=random"],
    "prefix": ["captions.prefix=a cat", "data.caption_dropout=0.1"],
    "float32": ["dtype=float32", "save_dtype=bfloat16"],
}


def _given(tool: str, text: str) -> tuple[str, dict[str, Any]]:
    """The script that a recipe names, and the values it gives that script's arguments."""
    script = re.findall(r"accelerate launch (\S+)", text)[0]
    if tool != "diffusers":
        values: dict[str, Any] = tomllib.loads(text)
        return script, values
    words = shlex.split(text.replace("\\\n", " "), comments=True)[3:]
    return script, {word[2:].partition("=")[0]: word.partition("=")[2] if "=" in word else True for word in words}


def _wrong(arguments: dict[str, str], values: dict[str, Any], are_texts: bool) -> list[str]:
    """What the script's parser would refuse or pass over."""
    wrong = [f"{name} is missing" for name, kind in arguments.items() if kind.endswith("!") and name not in values]
    for name, value in values.items():
        kind, _, choices = arguments.get(name, "").rstrip("!").partition(":")
        if not kind:
            wrong.append(f"{name} is no argument")
        elif choices and str(value) not in choices.split("|"):
            wrong.append(f"{name} is {value!r}, none of {choices}")
        elif are_texts and kind in ("int", "float"):
            try:
                (int if kind == "int" else float)(value)
            except ValueError:
                wrong.append(f"{name} is {value!r}, no {kind}")
        elif not are_texts and (not isinstance(value, KINDS[kind]) or (isinstance(value, bool) != (kind == "flag"))):
            wrong.append(f"{name} is {value!r}, no {kind}")
    return wrong


@pytest.mark.parametrize("tool", SCRIPTS)
@pytest.mark.parametrize("name", presets.names())
def test_the_script_of_a_recipe_takes_every_argument_that_it_is_given(tool: str, name: str) -> None:
    for changes in ([], *WAYS.values()):
        try:
            written = recipes_out.write(
                presets.load(name, presets.parse_overrides(changes)), "kohya" if tool == "sd-scripts" else tool
            )
        except ConfigError as error:
            assert "trains no" in str(error) or changes, error
            continue
        script, values = _given(tool, written.text)
        wrong = _wrong(SCRIPTS[tool][script], values, tool == "diffusers")
        assert not wrong, f"{script}, {changes}: {'; '.join(wrong)}"


@pytest.mark.parametrize("name", older_configs())
def test_an_old_config_of_onetrainer_trains_as_onetrainer_itself_takes_it(name: str, tmp_path: Path) -> None:
    configs = older_configs()[name]
    settings = {}
    for version, config in configs.items():
        (path := tmp_path / f"{version}.json").write_text(json.dumps(config))
        imported = importing.read(path)
        settings[version] = parse(TrainConfig, imported.settings, path.name)
        unknown = [key.key for key in imported.keys if "no key of" in key.why]
        assert not unknown or version == "now", unknown
    assert settings["old"] == settings["now"]


def test_onetrainer_is_told_which_version_of_its_configs_ours_is() -> None:
    written = json.loads(recipes_out.write(presets.load("sdxl-style", {}), "onetrainer").text)
    assert (written["__version"], written["concepts"][0]["__version"]) == (11, 2)
    assert all(config["now"]["__version"] == 11 for config in older_configs().values())
