"""The libraries that Velatura asks for, by its own metadata: which are here, and which versions fit."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from trainer import system

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same parser, by its name on 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PURPOSES = {
    "bitsandbytes": "bases quantised to 4 and 8 bit, 8-bit optimizers",
    "xformers": "another attention kernel for NVIDIA GPUs; no use without one",
    "ray": "batches over several processes or machines",
    "playwright": "the tests of the web UI",
}


@dataclass(frozen=True)
class Library:
    """A library that Velatura uses."""

    name: str
    version: str | None
    wanted: str
    fits: bool
    extra: str | None  # it belongs to; None for what Velatura can't do without
    purpose: str
    command: str  # that installs it


def _requirements() -> list[Requirement]:
    """What the distribution asks for, extras included."""
    try:
        return [Requirement(line) for line in importlib.metadata.requires("velatura") or []]
    except importlib.metadata.PackageNotFoundError:
        # A checkout that isn't installed has it in its pyproject.toml.
        pyproject = ROOT / "pyproject.toml"
        if not pyproject.is_file():
            return []
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    optional = [
        f"{line}; extra == '{extra}'" for extra, lines in project["optional-dependencies"].items() for line in lines
    ]
    return [Requirement(line) for line in project["dependencies"] + optional]


def libraries() -> tuple[Library, ...]:
    """Every library of the metadata that applies here; in a checkout the commands keep to its pins."""
    pins = f" -c {system.quoted(str(ROOT / 'constraints.txt'))}" if (ROOT / "constraints.txt").is_file() else ""
    listed = []
    for requirement in _requirements():
        # Is it for this Python and system? Extras are listed whether they were asked for or not.
        match = re.search(r"extra == [\"'](\w+)", str(requirement.marker or ""))
        extra = match[1] if match else None
        if extra is None and requirement.marker and not requirement.marker.evaluate():
            continue

        # Is it here, and within the range that is tested?
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)

        purpose = PURPOSES.get(requirement.name, f"the {extra} extra" if extra else "Velatura itself")
        wanted = system.quoted(f"{requirement.name}{requirement.specifier}")
        command = f"{system.quoted(sys.executable)} -m pip install {wanted}{pins}"
        listed.append(Library(requirement.name, version, str(requirement.specifier), fits, extra, purpose, command))
    return tuple(listed)
