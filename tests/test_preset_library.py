"""The presets that ship: each value says where it comes from, each tier fits, is loaded by name, shared and run."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from app import preset_choices
from trainer import card_file, cli, families, preset_heads, preset_listing, preset_parts, preset_tiers, presets, session
from trainer.bench import preset_tiers as bench_tiers
from trainer.bench import tiers
from trainer.cards import keeping, making, sources
from trainer.cards.making import Wishes
from trainer.errors import ConfigError
from trainer.memory import ladder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = sorted(path.stem for path in presets.FOLDER.glob("*.toml"))
PURPOSES = ("style", "character", "concept", "quick")
EVERY = [f"{name}@{tier}" for name in SHIPPED for tier in preset_tiers.of(name)]
FEW = ["imprimatura-style@cpu", "qwen-quick@40gb"]
ROUNDED = 0.05  # of a GiB
OF_A_BASE = ("version", "family", "base")  # what a preset is for, which has no source


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    return tmp_path


def few_and_slow(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=[] if name in FEW else [pytest.mark.slow]) for name in names]


def leaves(values: dict[str, Any]) -> set[str]:
    """Dotted names of all values."""
    return {
        name for key, value in values.items()
        for name in ({f"{key}.{inner}" for inner in value} if isinstance(value, dict) else {key})
    }  # fmt: skip


# What is in it.


def test_every_family_has_a_preset_for_every_purpose() -> None:
    bases = bench_tiers.bases()
    assert sorted(SHIPPED) == sorted(f"{base}-{purpose}" for base, purpose in itertools.product(bases, PURPOSES))
    assert {presets.load(name, {}).family for name in SHIPPED} == set(families.registry())


@pytest.mark.parametrize("name", SHIPPED)
def test_every_value_says_where_it_comes_from(name: str) -> None:
    said = preset_parts.sources(presets.path_of(name))
    assert not [key for key in leaves(presets.values(name)) if key not in OF_A_BASE and not said.get(key)]


def test_a_part_that_is_not_there_is_refused_by_name() -> None:
    path = presets.path_of("sdxl-style")
    for parts in (["sdxl", "nothing"], ["../x"], 3, [3]):
        with pytest.raises(ConfigError, match="parts of sdxl-style has .*; allowed: .*sdxl, style"):
            preset_parts.whole(path, {"parts": parts})
    with pytest.raises(ConfigError, match="parts"):  # one's own has none
        presets.add("mine", 'parts = ["sdxl", "style"]')


def test_a_preset_that_ships_says_what_pictures_it_is_for(home: Path) -> None:
    for name, kind in (
        ("sdxl-style@12gb", "style"),
        ("imprimatura-character", "character"),
        ("flux-concept", "concept"),
    ):
        assert preset_parts.purpose(name) == kind
    presets.add("my-style", tomli_w.dumps(presets.values("sdxl-style")))
    for name in ("sdxl-quick", "my-style", "../parts/style", "", str(home)):
        assert preset_parts.purpose(name) == "unknown"


# Tiers.


@pytest.mark.parametrize("name", EVERY)
def test_a_tier_changes_memory_settings_alone(name: str) -> None:
    plain, tier = preset_tiers.split(name)
    config, own = presets.load(name, {}), presets.load(plain, {})
    assert config.model_copy(update={"memory": own.memory, "device": own.device}) == own
    assert config.device == ("cpu" if tier == "cpu" else own.device)
    assert tiers.unlike_default(config.memory) == preset_tiers.of(name)[tier].memory


@pytest.mark.parametrize("base", bench_tiers.bases())
def test_a_tier_is_below_its_gb_and_takes_less_the_less_there_is(base: str) -> None:
    rows = [row for row in preset_tiers.of(f"{base}-style").values() if row.name != "cpu"]
    assert rows and all(tiers.fits(row.gib - ROUNDED, int(row.name.removesuffix("gb"))) for row in rows)
    assert [row.gib for row in rows] == sorted(row.gib for row in rows)
    assert {"8gb", "12gb"} & {row.name for row in rows} and rows[-1].name == "40gb"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("base", bench_tiers.bases())
def test_the_table_is_what_the_arithmetic_gives(base: str) -> None:
    assert {row.name: row for row in bench_tiers.rows(base)} == preset_tiers.of(f"{base}-style")


def test_a_tier_that_is_not_there_is_refused_with_those_that_are() -> None:
    for name in ("sdxl-style@10gb", "sdxl-style@"):
        assert not presets.has(name)
    with pytest.raises(ConfigError, match="asks for a tier that isn't there; allowed: cpu, 8gb, .*40gb, auto"):
        presets.load("sdxl-style@10gb", {})
    presets.add("mine", tomli_w.dumps(presets.values("sdxl-style")))
    with pytest.raises(ConfigError, match="allowed: none, since mine has no tiers"):
        presets.load("mine@8gb", {})


@pytest.mark.parametrize(
    ("gib", "tier"), [(0, "cpu"), (6, "8gb"), (7.8, "8gb"), (11.6, "12gb"), (23.5, "24gb"), (80, "40gb")]
)
def test_auto_takes_the_largest_tier_that_the_gpu_here_holds(
    gib: float, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preset_tiers, "_gpu_gib", lambda: gib)
    assert presets.load("sdxl-style@auto", {}) == presets.load(f"sdxl-style@{tier}", {})
    fitted = presets.load(f"sdxl-style@{tier}" if gib else "sdxl-style", {})
    assert preset_choices.load(preset_choices.fitted("sdxl-style")) == fitted


# Where presets are named.


def test_the_list_says_for_what_and_what_it_takes() -> None:
    lines = CliRunner().invoke(cli.app, ["preset", "list"]).stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("sdxl-character ")]
    for text in (" 0.5 ", "CPU, 8, 12, 16, 24, 40 GB", "not run at this size", "15-30 pictures of one character"):
        assert text in line
    assert any(line.startswith("left-and-right ") for line in lines)
    rows = json.loads(CliRunner().invoke(cli.app, ["preset", "list", "--json"]).stdout)
    assert rows["sdxl-character"]["scale"] == 0.5 and "12gb" in rows["sdxl-character"]["tiers"]


def test_what_is_shown_is_a_preset_and_says_where_its_values_come_from(tmp_path: Path) -> None:
    text = CliRunner().invoke(cli.app, ["preset", "show", "sdxl-style@12gb"]).stdout
    assert "# Tiers: CPU, 8, 12, 16, 24, 40 GB" in text and "#   learning_rate: sd-scripts" in text
    assert "# Memory: a GPU of 12 GB (" in text and "# Effective scale, alpha / rank: 1" in text
    (tmp_path / "x.toml").write_text(text)
    assert presets.load(str(tmp_path / "x.toml"), {}) == presets.load("sdxl-style@12gb", {})
    assert tomllib.loads(text)["memory"]["gradient_checkpointing"] is True


def test_a_search_by_memory_names_what_fits() -> None:
    assert [hit.name for hit in keeping.search("style", "sdxl", 12)] == ["sdxl-style@12gb"]
    assert not keeping.search("style", "flux2dev", 8)


@pytest.mark.parametrize("name", few_and_slow(EVERY))
def test_a_tier_becomes_a_card_and_a_preset_again(name: str) -> None:
    opened = card_file.opened(making.make(sources.of(name), Wishes()).raw, "x")
    assert opened.settings == presets.load(name, {}) and opened.card.title == presets.title(name)
    assert f"Memory: {preset_heads.of(name).memory}." in opened.card.head
    presets.add("again", keeping.preset_text(opened))
    assert presets.load("again", {}) == presets.load(name, {})
    assert preset_listing.row("again").tiers == ()


# Running them.


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's tiny model by its name, made once."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = families.registry()[family].tiny(tmp_path_factory.mktemp(family))
        return made[family]

    return of


@pytest.mark.parametrize("name", few_and_slow(EVERY))
def test_a_tier_runs_on_the_familys_tiny_model_with_every_setting_in_use(
    name: str, bases: Callable[[str], Path], draw_dots: Callable[..., Path], tmp_path: Path, monkeypatch: Any
) -> None:
    """A setting that nothing reads is refused at the start; both memories are the CPU's here."""
    monkeypatch.setattr(ladder, "can_offload", lambda device: True)
    dots = draw_dots(tmp_path / "dots", "a {colour} dot", num=2)
    changes = {
        "base": str(bases(presets.load(name, {}).family)), "resolution_px": 64, "max_steps": 2, "batch_size": 1,
        "checkpoint_every_steps": 2, "preview_every_steps": 2, "validate_every_steps": 2, "optimizer.warmup_steps": 0,
        "preview.steps": 2, "preview.guidance_rescale": 0.0, "data.folder": str(dots), "data.heldout": str(dots),
    }  # fmt: skip
    run, stream = session.start(presets.load(name, changes), tmp_path / "runs", "x", None)
    events = list(stream)
    assert events[-1].kind == "finished" and run.lora_file.is_file()
    assert run.config().memory == presets.load(name, {}).memory
