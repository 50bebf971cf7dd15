"""Which LoRA of a library a name means: the file of exactly that name, else the only file that is nearly called so.

Nearly: it differs in folder, ending or case, or has the name in its header. Names come from prompts and from other
tools' pictures. They are compared with what the library offers and never opened as paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from trainer import printing
from trainer.errors import AdapterError
from trainer.lora_file import LoraInfo

_ENDINGS = (".safetensors", ".pt", ".ckpt", ".bin")


def alias(name: str) -> str:
    """A name as it can stand in a tag and in `Lora hashes`."""
    return " ".join(re.sub(r'[:<>,="\\\x00-\x1f]', " ", name).split()) or "lora"


def matches(wanted: str, library: Iterable[LoraInfo]) -> list[LoraInfo]:
    """The LoRAs that a name means: none, one, or those among which it doesn't decide."""
    infos = list(library)
    # Exactly that name, or a path that ends so.
    path = _path(wanted)
    exact = [
        info
        for info in infos
        if wanted in _names(info) or any(_ends_with(_path(str(place)), path) for place in (info.path, *info.copies))
    ]
    if exact:
        return exact

    # Nearly that name: its last part, whatever the case.
    loose = path[-1].casefold() if path else ""
    return [info for info in infos if loose and loose in _loose_names(info)]


def one(wanted: str, library: Iterable[LoraInfo], where: str) -> LoraInfo:
    """The LoRA of that name. Raises: AdapterError naming those it could be, or those there are."""
    infos = list(library)
    candidates = matches(wanted, infos)
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        several = printing.some(
            [f"{info.name} ({'/'.join(info.path.parts[-2:])}, hash {info.sha256[:12]})" for info in candidates]
        )
        raise AdapterError(
            f"{where} names the LoRA {wanted[:120]!r}, which could be {several}; allowed: the exact name of one file, "
            f"with its folder."
        )
    names = sorted({info.name for info in infos})
    raise AdapterError(
        f"{where} names the LoRA {wanted[:120]!r}, which isn't here; allowed: one of "
        f"{printing.some(names) or '(none)'}."
    )


def bare(name: str) -> str:
    """A name without folders and a LoRA's ending, as other tools write both; the name itself if nothing is left."""
    last = re.split(r"[/\\]", name.strip())[-1]
    return re.sub(r"\.safetensors$", "", last, flags=re.IGNORECASE) or name


def _path(name: str) -> tuple[str, ...]:
    """Folders and name without a LoRA's ending; slashes of either kind."""
    parts = [part for part in re.split(r"[/\\]", name.strip()) if part not in ("", ".")]
    if parts and (ending := next((ending for ending in _ENDINGS if parts[-1].lower().endswith(ending)), "")):
        parts[-1] = parts[-1][: -len(ending)]
    return tuple(parts) if parts and parts[-1] else ()


def _ends_with(whole: tuple[str, ...], end: tuple[str, ...]) -> bool:
    # An empty end would fit every path.
    return bool(end) and whole[-len(end) :] == end


def _names(info: LoraInfo) -> set[str]:
    """What a LoRA is called here, copies of its file too, and as tags spell that."""
    own = {info.name, *(place.stem for place in (info.path, *info.copies))}
    return own | {alias(name) for name in own}


def _loose_names(info: LoraInfo) -> set[str]:
    """The same and the name in its header, which A1111 writes into tags, in one case."""
    output_name = info.metadata.get("ss_output_name", "")
    header_names = {output_name, alias(output_name)} if output_name.strip() else set()
    return {name.casefold() for name in _names(info) | header_names}


def base_name(name: str) -> str:
    """A base's name as it is compared: without folder, ending and case."""
    path = _path(name)
    return path[-1].casefold() if path else ""
