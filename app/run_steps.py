"""The saved steps of runs as LoRAs: what was drawn with a step can be opened once the step lies in the library.

All steps of all runs among the LoRAs to choose from would bury the others, so a step becomes a LoRA of the library
when it is taken.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from app.context import Context
from app.texts import say
from trainer import file_names, lora_file, system, unique_names
from trainer.errors import AdapterError, DataError, UserError


def adopt(context: Context, picture: Path) -> None:
    """Put the steps that a picture was drawn with into the library, those that aren't there.

    Raises: DataError where nothing can be written.
    """
    from trainer.render import picture_metadata

    try:
        adapters = (picture_metadata.read(picture).recipe or {}).get("adapters")
    except UserError:
        return
    wanted = {adapter.get("sha256") for adapter in adapters or () if isinstance(adapter, dict)}
    if not wanted - context.find_loras().keys():
        return
    # Every saved step is read whole for its hash, so only where a LoRA is missing.
    missing = wanted - context.known_loras().keys()
    for path in sorted(context.runs.glob(f"[!.]*/{file_names.STEPS}/*.safetensors")):
        with suppress(AdapterError):
            if lora_file.inspect(path).sha256 in missing:
                _take(context, path)
    context.find_loras()


def take(context: Context, path: Path, sha256: str) -> None:
    """Put a run's file into the library unless it can be chosen as it lies. Raises: DataError."""
    if sha256 not in context.find_loras():
        _take(context, path)
        context.find_loras()


def _take(context: Context, step: Path) -> None:
    context.loras.mkdir(exist_ok=True)
    try:
        with unique_names.temporary(context.loras, ".tmp") as unnamed:
            system.link_or_copy(step, unnamed)
            unique_names.put(unnamed, unique_names.numbered(context.loras, step.stem, step.suffix))
    except OSError as error:
        raise DataError(say("run.step_not_taken", name=step.name, reason=error.strerror or error)) from None
