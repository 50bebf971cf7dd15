"""Families, methods and modes are values of their contracts: what a file says that no contract knows, or doesn't say,
is refused when it is imported.
"""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import sys
import typing
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest

from trainer import contracts, families, methods
from trainer.config import TrainConfig
from trainer.families.contract import Family
from trainer.lora_file import names
from trainer.memory import ladder
from trainer.methods.contract import Method
from trainer.render import modes
from trainer.render.modes.contract import Mode, all_act

KINDS = {"families": Family, "methods": Method, "render.modes": Mode}


@pytest.fixture
def gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, object]]]:
    """A registry of one plug-in, which is one of ours with lines of its file changed."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def gather(room: str, name: str, old: str, new: str) -> dict[str, object]:
        folder = tmp_path / "others"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        text = (Path(contracts.__file__).parent / room.replace(".", "/") / f"{name}.py").read_text(encoding="utf-8")
        assert old in text
        (folder / "mine.py").write_text(text.replace(old, new, 1), encoding="utf-8")
        for loaded in ("others", "others.mine"):
            sys.modules.pop(loaded, None)
        importlib.invalidate_caches()
        return contracts.gather(KINDS[room], "others", [str(folder)])

    yield gather
    for loaded in ("others", "others.mine"):
        sys.modules.pop(loaded, None)


@pytest.mark.parametrize(
    ("room", "name", "old", "new", "says"),
    [
        ("families", "flux2dev", "negates = False", "negate = False", ("negate is unknown; the nearest that is "
            "allowed: negates")),
        ("families", "sana", "def encode_negative", "def encode_negatives", ("encode_negatives is unknown; the nearest "
            "that is allowed: encode_negative")),
        ("families", "flux", "is_v2 = pipelines.is_not_v2", "is_V2 = pipelines.is_not_v2", ("is_V2 is unknown; the "
            "nearest that is allowed: is_v2; is_v2 is m")),
        ("families", "sd", 'title = "Stable Diffusion 1.x / 2.x"\n', "", "title is missing"),
        ("families", "sd", "text_layers = ", "_text_layers = ", "text_layers is missing"),
        ("families", "pixart", "rescales = False", "rescales = 'no'", ("rescales is 'no': Input should be a valid "
            "boolean")),
        ("families", "pixart", 'prediction = ("epsilon",)', 'prediction = ("noise",)', (r"prediction is \('noise',\): "
            r"Input should be 'epsilon', 'v' or 'flow'")),
        ("families", "pixart", 'prediction = ("epsilon",)', "prediction = ()", (r"prediction is \(\): .* at least 1 "
            r"item")),
        ("families", "chroma", 'guidance_layout = "separate calls"', 'guidance_layout = "positive second"',
            "guidance_layout is 'positive second'"),
        ("families", "hidream", "multiple_px = 16", 'multiple_px = "16"', ("multiple_px is '16': Input should be a "
            "valid integer")),
        ("families", "sd", "def window(pipe: StableDiffusionPipeline)", "def window()", (r"window is .*: it must take "
            r"1 arguments; found: \(\)")),
        ("methods", "oft", "def by_header", "def as_said", "as_said is unknown; the nearest that is allowed: "),
        ("methods", "lora", "loraplus = ", "lora_plus = ", ("lora_plus is unknown; the nearest that is allowed: "
            "loraplus")),
        ("methods", "loha", "class Config", "class Settings_", "Config is missing"),
        ("render.modes", "switch", "def acting", "def acts", "acts is unknown; the nearest that is allowed: acting"),
        ("render.modes", "loratorio", "splits_guidance = True", "split_guidance = True", ("split_guidance is unknown; "
            ".*: splits_guidance")),
    ],
)  # fmt: skip
def test_a_file_that_breaks_its_contract_is_refused_by_name(
    room: str, name: str, old: str, new: str, says: str, gathered: Callable[..., dict[str, object]]
) -> None:
    with pytest.raises(TypeError, match=rf"mine\.py is no {KINDS[room].__name__}: .*{says}"):
        gathered(room, name, old, new)


def test_everything_that_is_wrong_is_said_at_once(gathered: Callable[..., dict[str, object]]) -> None:
    with pytest.raises(TypeError) as raised:
        gathered("families", "flux2dev", 'base_version = "flux2"', "negate = rescale = False\npatch = None")
    assert re.findall(r"(\w+) is (unknown|missing|None)", str(raised.value)) == [
        ("negate", "unknown"), ("rescale", "unknown"), ("base_version", "missing"), ("patch", "None"),
    ]  # fmt: skip


def test_a_new_file_is_a_new_plug_in_with_defaults_for_what_it_leaves_out(
    gathered: Callable[..., dict[str, object]],
) -> None:
    family = gathered("families", "sana", 'name = "sana"', 'name = "mine"')["mine"]
    assert (
        isinstance(family, Family)
        and family.negates
        and family.comfyui_graph is False
        and family.prepare_call is None
        and family.cross_attention == ()
    )
    mode = gathered(
        "render.modes", "sum", 'name, title, is_guided, fewest = "sum"', 'name, title, is_guided, fewest = "mine"'
    )["mine"]
    assert isinstance(mode, Mode) and mode.acting(3, 0, 1) == [1.0] * 3 and mode.most is None
    method = gathered("methods", "loha", 'starts_on_fetched = ("default",)\n', "")["loha"]
    assert isinstance(method, Method) and not (
        method.starts_on_quantised or method.starts_on_fetched or method.overlap_penalty or method.loraplus
    )


def undocumented(plugin: object) -> list[str]:
    """The functions of a plug-in that don't say what they give."""
    return [name for name, value in vars(plugin).items() if inspect.isfunction(value) and not value.__doc__]


@pytest.mark.parametrize("name", methods.registry())
def test_method_keeps_its_contract(name: str) -> None:
    method = methods.registry()[name]
    assert method.name == name and not undocumented(method)
    tag = method.Config.model_fields["method"]
    assert tag.is_required() and typing.get_args(tag.annotation) == (name,), "method: Literal[name], without a default"
    unexplained = [key for key, field in method.Config.model_fields.items() if not (field.title and field.description)]
    assert not unexplained, f"settings without label or help: {unexplained}"
    starts = (
        typing.get_args(method.Config.model_fields["init"].annotation)
        if "init" in method.Config.model_fields
        else ("default",)
    )
    assert {
        *method.starts_on_quantised,
        *method.starts_on_fetched,
        *method.starts_from_base,
        *method.starts_from_inputs,
    } <= set(starts)
    assert method.header_arguments is None or method.by_header


@pytest.mark.parametrize("name", families.registry())
def test_family_keeps_its_contract(name: str) -> None:
    family = families.registry()[name]
    assert family.name == name and not undocumented(family)
    assert bool(family.text_targets) == (len(family.components) > 1), "text_targets, where a text encoder is adapted"
    assert family.default_px % family.multiple_px == 0 and set(family.convolution_targets) < set(family.targets)
    patterns = [
        *family.targets.values(),
        *family.cross_attention,
        family.text_targets,
        family.text_layers,
        family.placeless_layers,
        family.joined_layers,
    ]
    assert all(re.compile(pattern) for pattern in patterns)
    assert bool(family.num_chunks) == bool(family.encode_windows) and set(family.words) < set(family.components)


@pytest.mark.parametrize("name", modes.registry())
def test_mode_keeps_its_contract(name: str) -> None:
    mode = modes.registry()[name]
    assert mode.fewest <= (mode.fewest if mode.most is None else mode.most) and bool(mode.watched) == bool(mode.place)
    assert len(f"{mode.title}: {mode.says}") < 60, "a line of the page's list"


@pytest.mark.parametrize(
    "plugin",
    [*families.registry().values(), *methods.registry().values(), *modes.registry().values()],
    ids=lambda entry: entry.name,
)
def test_a_plug_in_stays_as_it_is(plugin: Family | Method | Mode) -> None:
    with pytest.raises(FrozenInstanceError):
        plugin.title = "another"  # type: ignore[misc]
    assert not [field.name for field in fields(plugin) if isinstance(getattr(plugin, field.name), dict | list | set)]


def test_a_method_that_names_nothing_may_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new method is refused where nobody has shown that it goes."""
    assert methods.allowing(lambda method: method.loraplus) == ("lora", "dora") and methods.allowing(
        lambda plugin: plugin.norm_limit
    ) == ("lora",)
    assert methods.on_quantised() == "lora, started by default, gaussian or eva"
    bare = {
        field.name: field.default
        for field in fields(Method)
        if field.name.startswith("starts_") or field.default is False
    }
    monkeypatch.setitem(methods.registry(), "lora", replace(methods.registry()["lora"], **bare))
    for settings, says in (
        ({"quantise": "int8"}, "adapter.method lora works on the base's own weights"),
        ({"offload": "blocks"}, "which doesn't go with adapter.method = lora;"),
    ):  # fmt: skip
        config = TrainConfig.model_validate(
            {"family": "sd", "base": "imprimatura", "adapter": {"method": "lora"}, "memory": settings}
        )
        assert any(says in problem for problem in ladder.check(config))


@pytest.mark.parametrize("name", [name for name, mode in modes.registry().items() if mode.only_acting])
def test_a_mode_that_the_map_sees_whole_is_one_pass_with_its_factors(name: str) -> None:
    mode, seen = modes.registry()[name], []
    for step in range(12):
        mode.predict(lambda *given: seen.append(given), 3, step, 12)
    assert seen == [(mode.acting(3, step, 12),) for step in range(12)] and mode.prepare is mode.place is None


def test_every_family_has_names_for_its_files() -> None:
    """FLUX.2 dev's layers are klein's."""
    assert (
        set(families.registry()) - set(names.registry()) == {"flux2dev"} and modes.registry()["sum"].acting is all_act
    )
