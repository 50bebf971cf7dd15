"""Where a LoRA's tensors lie: in a file, or in a folder as PEFT saves a LoRA, with its config beside them."""

from __future__ import annotations

import os
from pathlib import Path

from trainer.errors import AdapterError

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
CONFIG_KEY = "adapter_config"  # PEFT's config in a header, as it is read here
MAX_CONFIG_BYTES = 1 << 20


def located(path: Path) -> Path:
    """The file that holds the tensors: `path`, or PEFT's in that folder. Raises: AdapterError if it has none."""
    if not os.path.isdir(path):  # pathlib's own raises for a name that is too long
        return path
    inside = path / PEFT_FILE
    if os.path.isfile(inside):
        return inside
    if os.path.isfile(path / "adapter_model.bin"):
        raise AdapterError(
            f"LoRA folder {str(path)!r} has its numbers in adapter_model.bin, a pickle, which can run anything and is "
            f"not opened; save it again with PEFT's save_pretrained, which writes .safetensors."
        )
    raise AdapterError(
        f"{str(path)!r} is a folder without {PEFT_FILE}; name a LoRA file (.safetensors), or a folder as PEFT saves "
        f"one."
    )


def is_there(path: Path) -> bool:
    """Whether a LoRA file, or a folder as PEFT saves it, is there to be read."""
    return os.path.isfile(path) or os.path.isfile(path / PEFT_FILE)


def name_of(path: Path) -> str:
    """What a LoRA is called: its file's name without the ending, or its folder's name where PEFT saved it."""
    path = path / PEFT_FILE if os.path.isdir(path) else path
    return path.resolve().parent.name or path.stem if path.name == PEFT_FILE else path.stem


def stamp(path: Path) -> tuple[int, ...]:
    """What changes when a LoRA is written anew: time and size of its file, and of the config beside it.

    Raises: AdapterError if there is no file.
    """
    place = located(path)
    try:
        status = [place.stat()]
    except OSError as error:
        raise AdapterError(f"LoRA file {str(path)!r} can't be read: {error.strerror}.") from None
    config = place.with_name(PEFT_CONFIG)
    if place.name == PEFT_FILE and config.is_file():
        status.append(config.stat())
    return tuple(number for file in status for number in (file.st_mtime_ns, file.st_size))


def config_beside(file: Path) -> str | None:
    """PEFT's config beside its file as text; None where there is none, or the file isn't PEFT's.

    Raises: AdapterError if it can't be read.
    """
    place = file.with_name(PEFT_CONFIG)
    if file.name != PEFT_FILE or not place.is_file():
        return None
    try:
        with place.open("rb") as opened:
            raw = opened.read(MAX_CONFIG_BYTES + 1)
        if len(raw) > MAX_CONFIG_BYTES:
            raise AdapterError(
                f"{str(place)!r} has more than {MAX_CONFIG_BYTES} bytes; PEFT's configs have a few thousand."
            )
        return raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise AdapterError(
            f"{str(place)!r} can't be read: {reason}; it says how strong the LoRA beside it is, which is not guessed."
        ) from None
