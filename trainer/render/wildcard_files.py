"""The lines that `__name__` in a prompt stands for, read from the folder of wildcards and from nowhere else."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from trainer.config.parsing import text_of
from trainer.errors import ConfigError

MAX_FILE_BYTES = 1 << 20
MAX_FILES = 10_000  # looked at for a name with * in it


def lines_of(name: str, folder: Path | None) -> list[str]:
    """The lines of the file `name.txt`, or of all files that fit a name with * or ? in it.

    Lines of several files come sorted, each once, so that the order of a folder doesn't matter. Raises: ConfigError.
    """
    if folder is None:
        raise ConfigError(f"prompt has __{name}__, but there is no folder of wildcards; name one, or write {{a|b}}.")

    # The file of exactly that name, else those that fit it as a pattern, else those that fit it in any folder below.
    path = folder / f"{name}.txt"
    files = [path] if not any(mark in name for mark in "*?") and path.is_file() else []
    if not files:
        by_name = _files(folder)
        fitting = [
            [file for file_name, file in by_name.items() if fnmatch.fnmatchcase(file_name, pattern)]
            for pattern in (name, f"**/{name}")
        ]
        files = fitting[0] or fitting[1]
    # Links may lead out of the folder, and a prompt comes from anywhere.
    files = [file for file in files if file.resolve().is_relative_to(folder.resolve())]
    if not files:
        names = list(_files(folder))
        raise ConfigError(
            f"prompt has __{name}__, and the folder {'/'.join(folder.parts[-2:])} has no {name}.txt; allowed: "
            f"{', '.join(names[:20]) or 'nothing yet'}, and any text file that is put there, an alternative a line."
        )

    lines = [line for file in files for line in _read(file)]
    if not lines:
        raise ConfigError(f"{name}.txt of the wildcards has no lines to draw from; write an alternative a line.")
    return lines if len(files) == 1 else sorted(set(lines))


def _files(folder: Path) -> dict[str, Path]:
    """Every file of wildcards by its name, sorted."""
    by_name: dict[str, Path] = {}
    for file in folder.rglob("*.txt"):
        if not file.is_file():  # a pipe would be waited for without end
            continue
        if len(by_name) >= MAX_FILES:
            raise ConfigError(
                f"{folder.name} has more than {MAX_FILES} files of wildcards; a prompt with * in a name looks at up "
                f"to that many."
            )
        by_name[file.relative_to(folder).with_suffix("").as_posix()] = file
    return dict(sorted(by_name.items()))


def _read(path: Path) -> list[str]:
    """A file's lines without blank lines and comments."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path.name} of the wildcards can't be read ({error.strerror}).") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path.name} of the wildcards is larger than {MAX_FILE_BYTES} bytes; split it.")
    lines = [line.strip() for line in text_of(raw, f"{path.name} of the wildcards").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]
