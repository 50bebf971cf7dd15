"""The README and the docs keep up with the code. `python -m tests.test_readme` writes the table of settings anew."""

import re
from pathlib import Path

from app.form import Spec, specs
from trainer import methods
from trainer.config import TrainConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = ROOT / "docs" / "settings.md"
DOCS = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def rows() -> list[str]:
    """The table's rows; a setting of some methods only says which, and one that all share stands there once."""
    found: dict[str, tuple[Spec, list[str]]] = {}
    for spec in specs(TrainConfig):
        if spec.path != ("version",):
            name = ".".join(spec.path)
            key = f"{name} {spec.info.description} {spec.info.default}"
            found.setdefault(key, (spec, []))[1].append(spec.kind or "")
    lines = []
    for spec, kinds in found.values():
        field, name = spec.info, ".".join(spec.path)
        default = "required" if field.is_required() else field.default if field.default not in ("", ()) else "none"
        some = "" if len(kinds) in (len(methods.registry()), 1) and kinds[0] == "" or len(kinds) == len(methods.registry()) else f" ({', '.join(kinds)})"
        help = "How the update is built: " + ", ".join(methods.registry()) + "." if name == "adapter.method" else field.description
        lines.append(f"| `{name}` | {default} | {help}{some} |")
    return lines


def settings_page() -> str:
    """docs/settings.md as it should be."""
    return (
        "# Settings\n\nEvery setting of a training: as `--set KEY=VALUE`, in a preset or `config.toml`, and in the form of the Train tab. Lists are one\n"
        "entry a line in the form and `KEY=[...]` elsewhere. A setting that nothing would read with the others as they are is refused by name.\n\n"
        "| setting | default | what it does |\n|---|---|---|\n" + "\n".join(rows()) + "\n"
    )


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
