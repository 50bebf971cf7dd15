"""The presets that tests train with, as `presets.load` takes them: settings that nobody tunes."""

from pathlib import Path

STYLE, CHARACTER = (str(Path(__file__).parent / "presets" / f"{name}.toml") for name in ("style", "character"))
