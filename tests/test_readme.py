"""The README keeps up with the code."""

import re
from pathlib import Path

from trainer.config import TrainConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows(model, prefix: str = "") -> list[str]:
    """The table's rows for a settings model."""
    found = []
    for name, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            found += rows(field.annotation, f"{prefix}{name}.")
        elif name != "version":
            default = "required" if field.is_required() else field.default if field.default not in ("", ()) else "none"
            found.append(f"| `{prefix}{name}` | {default} | {field.description} |")
    return found


def test_every_setting_is_in_the_table_with_its_default_and_help() -> None:
    missing = [row for row in rows(TrainConfig) if row not in README]
    assert not missing, "\n".join(missing)


def test_every_file_the_readme_shows_or_links_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).is_file(), target


def test_every_module_of_the_map_is_there() -> None:
    for name in re.findall(r"^\s+(\w+\.py)\s", README, re.MULTILINE):
        assert (ROOT / "trainer" / name).is_file() or (ROOT / "app" / name).is_file(), name
