"""The README keeps up with the code."""

import re
from pathlib import Path

from app.form import Spec, specs
from trainer import methods
from trainer.config import TrainConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


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


def test_every_setting_is_in_the_table_with_its_default_and_help() -> None:
    missing = [row for row in rows() if row not in README]
    assert not missing, "\n".join(missing)


def test_every_file_the_readme_shows_or_links_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).is_file(), target


def test_every_module_of_the_map_is_there() -> None:
    for name in re.findall(r"^\s+(\w+\.py)\s", README, re.MULTILINE):
        assert (ROOT / "trainer" / name).is_file() or (ROOT / "app" / name).is_file(), name
