"""What a run is compared with once it is trained, an older LoRA, and on how many pictures.

A copy of the old one lies below the run's folder. With it the run knows by itself what is still to be done, whoever
goes on with it, and however it was ended; and the old one may be renamed or thrown away meanwhile. No torch is needed
to ask.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from trainer import file_names, lora_file, runs, system
from trainer.report import compared

FOLDER = ".old"  # below a run; hidden, as it is no LoRA to choose from
_SEEN = "old.json"
_MOST_BYTES = 4096
_SHARE, _FEWEST = 5, 2  # a fifth of the pictures is held out where nothing is, and at least two


def num_held_out(num_pictures: int) -> int:
    """How many pictures of a set are held out to compare on, where nothing else is; 0 of a set that is too small."""
    return max(_FEWEST, num_pictures // _SHARE) if num_pictures > 2 * _FEWEST else 0


def keep(old: Path, folder: Path, seen: int = 0) -> None:
    """Copy a LoRA into a new folder, whole or not at all, and how many of the held-out pictures it was trained on.

    Raises: AdapterError, OSError.
    """
    unnamed = folder.with_name(f".{folder.name}")
    shutil.rmtree(unnamed, ignore_errors=True)
    unnamed.mkdir(parents=True)
    file = lora_file.located(old)
    if (config_beside := lora_file.config_beside(file)) is not None:
        (unnamed / "adapter_config.json").write_text(config_beside, encoding="utf-8")
    # A run's best is called by its run. LoRA files are replaced whole, never written into.
    name = f"{file.parent.name}-{file.name}" if file.name == file_names.BEST else file.name
    system.link_or_copy(file, unnamed / name)
    (unnamed / _SEEN).write_text(json.dumps({"seen": seen}), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    system.replace(unnamed, folder)


def kept(folder: Path) -> Path | None:
    """The LoRA in a folder that `keep` made; None where there is none."""
    return next((path for path in sorted(folder.glob("[!.]*.safetensors")) if path.is_file()), None)


def seen(folder: Path) -> int:
    """How many of the held-out pictures the LoRA in such a folder was trained on; 0 where that isn't known."""
    try:
        with (folder / _SEEN).open("rb") as file:
            number = json.loads(file.read(_MOST_BYTES))["seen"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    return number if type(number) is int and 0 <= number < 10**9 else 0


def of_run(run: runs.Run) -> Path | None:
    """The old LoRA that a run is compared with; None for a run that is compared with none."""
    return kept(run.folder / FOLDER)


def is_to_do(run: runs.Run) -> bool:
    """Whether a run is still to be compared."""
    return of_run(run) is not None and not (run.folder / compared.FILE).is_file()
