"""The README and the docs keep up with the code. `python -m tests.test_readme` writes the table of settings anew."""

import importlib
import pkgutil
import re
import sys
from pathlib import Path

from app.form_fields import Spec, specs
from trainer import methods
from trainer.config import AdapterChoice, BatchConfig, StackConfig, TrainConfig, parse
from trainer.render import command, modes, regions, strength
from trainer.schema import Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = ROOT / "docs" / "settings.md"
STACKS = ROOT / "docs" / "stacks.md"
PRESETS = "<!-- The presets below are written by: python -m tests.test_readme -->"
TABLES = "<!-- The tables below are written by: python -m tests.test_readme -->"
STACK_TABLES: dict[str, type[Settings]] = {
    "A picture": StackConfig,
    "A LoRA of it": AdapterChoice,
    "A batch in TOML": BatchConfig,
}
UNET = [
    f"unet.{block}.attentions.0.transformer_blocks.0.attn2.to_q"
    for block in ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")
]
DOCS = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def rows() -> list[str]:
    """The table's rows; a setting of some methods only says which, and one that all share stands there once."""
    settings: dict[str, tuple[Spec, list[str]]] = {}
    for spec in specs(TrainConfig):
        if spec.path != ("version",):
            name = ".".join(spec.path)
            key = f"{name} {spec.info.description} {spec.info.default}"
            settings.setdefault(key, (spec, []))[1].append(spec.kind or "")
    lines = []
    for spec, kinds in settings.values():
        field, name = spec.info, ".".join(spec.path)
        default = "required" if field.is_required() else field.default if field.default not in ("", ()) else "none"
        some = (
            ""
            if len(kinds) in (len(methods.registry()), 1) and kinds[0] == "" or len(kinds) == len(methods.registry())
            else f" ({', '.join(kinds)})"
        )
        help = (
            "How the update is built: " + ", ".join(methods.registry()) + "."
            if name == "adapter.method"
            else field.description
        )
        lines.append(f"| `{name}` | {default} | {help}{some} |")
    return lines


def settings_page() -> str:
    """docs/settings.md as it should be."""
    return (
        "# Settings\n\nEvery setting of a training: as `--set KEY=VALUE`, in a preset or `config.toml`, and in the "
        "form of the Train tab. Lists are one\n"
        "entry a line in the form and `KEY=[...]` elsewhere. A setting that nothing would read with the others as "
        "they are is refused by name.\n\n"
        "| setting | default | what it does |\n|---|---|---|\n" + "\n".join(rows()) + "\n"
    )


def stacks_page() -> str:
    """docs/stacks.md as it should be: what stands before its tables, and the tables."""
    before, mark, _ = STACKS.read_text(encoding="utf-8").partition(TABLES)
    assert mark and PRESETS in before, f"{STACKS} has lost the line {TABLES!r} or {PRESETS!r}"
    text, _, rest = before.partition(PRESETS)
    before = f"{text}{PRESETS}\n\n{presets()}\n\n## {rest.partition('## ')[2]}"
    tables = [
        f"## {title}\n\n| setting | default | what it does |\n|---|---|---|\n" + "\n".join(fields(model))
        for title, model in STACK_TABLES.items()
    ]
    curves = [
        "## Weight curves\n\n| `curve=` | at the input, a quarter, the middle, three quarters, the output |\n|---|---|"
    ]
    curves += [
        f"| `{name}` | {', '.join(f'{curve(depth / 4):.2g}' for depth in range(5))} |"
        for name, curve in strength.CURVES.items()
    ]
    ways = ["## Modes\n\n| `mode=` | LoRAs | how they go together |\n|---|---|---|"]
    ways += [f"| `{name}` | {_numbers(mode)} | {_first_sentence(name)} |" for name, mode in modes.registry().items()]
    return before + TABLES + "\n\n" + "\n\n".join([*tables, "\n".join(ways), "\n".join(curves)]) + "\n"


def presets() -> str:
    """What ships of stacks and of batches, and what each is for."""
    return "\n\n".join(
        "\n".join(
            [f"| `{option}` | |", "|---|---|"]
            + [f"| `{path.stem}` | {command.purpose(path)} |" for path in sorted(folder.glob("*.toml"))]
        )
        for option, folder in (("render --stack", command.PRESETS), ("batch", command.BATCHES))
    )


def _numbers(mode: modes.Mode) -> str:
    """How many LoRAs a mode takes."""
    return f"{mode.fewest} or more" if mode.most is None else f"{mode.fewest}"


def _first_sentence(name: str) -> str:
    """What a mode's file says of it first."""
    (text,) = [
        str(module.__doc__)
        for info in pkgutil.iter_modules(modes.__path__)
        if getattr(module := importlib.import_module(f"{modes.__name__}.{info.name}"), "name", None) == name
    ]
    return " ".join(text.split("\n\n")[0].split())


def fields(model: type[Settings]) -> list[str]:
    """A table's rows for one model, without those of the models in it."""
    shown = {name: field for name, field in model.model_fields.items() if name != "version"}
    return [
        f"| `{name}` | {'none' if field.default in ('', (), None) else field.default} | {field.description} |"
        for name, field in shown.items()
    ]


def test_every_setting_of_a_stack_is_in_its_tables_with_its_default_and_help() -> None:
    assert STACKS.read_text(encoding="utf-8") == stacks_page(), "run: python -m tests.test_readme"


def test_every_spelling_that_the_stacks_page_shows_is_read() -> None:
    text = STACKS.read_text(encoding="utf-8").partition(TABLES)[0]
    for example in re.findall(r"```toml\n(.*?)```", text, re.DOTALL):
        stack = parse(StackConfig, tomllib.loads(example), "the page")
        assert stack.adapters
        for adapter in stack.adapters:
            strength.schedule(adapter)
            strength.block_factors(adapter, UNET)
            regions.resolved(adapter, (16, 16))
    schedules, blocks = (re.findall(rf"^\\| `{kind}=([^`]+)`", text, re.MULTILINE) for kind in ("schedule", "blocks"))
    assert len(schedules) >= 3 and len(blocks) >= 4
    for line in schedules:
        strength.schedule(AdapterChoice(schedule=line))
    for line in blocks:
        assert set(strength.block_factors(AdapterChoice(blocks=(line,)), UNET).values()) != {1.0}, line


def test_every_setting_is_in_the_table_with_its_default_and_help() -> None:
    assert SETTINGS.read_text(encoding="utf-8") == settings_page(), "run: python -m tests.test_readme"


def test_every_file_the_docs_show_or_link_is_there() -> None:
    for path, text in DOCS.items():
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("http") or (path.parent / target).is_file(), f"{path.name}: {target}"


def test_every_module_of_the_map_is_there() -> None:
    for name in re.findall(r"(?<![\w/.])(\w+\.py)\b", README[README.index("## Map") : README.index("## Developing")]):
        assert any(list((ROOT / room).rglob(name)) for room in ("trainer", "app", "tests")), name


if __name__ == "__main__":
    SETTINGS.write_text(settings_page(), encoding="utf-8")
    STACKS.write_text(stacks_page(), encoding="utf-8")
