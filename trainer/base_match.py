"""Which base a LoRA was trained on, as its header says, and whether that is the base it is used on.

Ours write `velatura.base_sha256`, of the denoiser's config and weights, and for a base in one file what kohya's scripts
write: `ss_new_sd_model_hash`, the sha256 of that file. Theirs also write `ss_sd_model_hash`, the first 8 digits of the
sha256 of 64 KiB at 1 MiB into it (sd-scripts, `library/train_util.py`). Hashes of one kind are compared; where the two
sides have none in common, names are, and it is said that they can't tell. A LoRA for another base is used all the same,
since many do go together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer import bases, families, lora_file, model_registry, single_file
from trainer.errors import UserError

KEY = "velatura.base_sha256"
FILE_KEY, _OLD_FILE_KEY = "ss_new_sd_model_hash", "ss_sd_model_hash"
NAME_KEY = "ss_sd_model_name"
# Of Imprimatura; LoRAs for it carry no hash.
_FIRST_EDITION = "a31c8f633f321e543c8a4ee307518e47818fd89880230b9bd758a4ab7ff69592"
_EDITIONS = {
    _FIRST_EDITION: "imprimatura, first edition",
    "c57469be65476070838b328b4e0f981fe8fa3b17689b371c8f7b58b1ee6d3f8c": "imprimatura, second edition",
}


@dataclass(frozen=True)
class Origin:
    """A base by name and by what hashes are known of it; empty where they aren't."""

    name: str
    sha256: str = ""  # of the denoiser's config and weights
    file_sha256: str = ""  # of the checkpoint's file
    old_hash: str = ""  # of a part of that file

    def __str__(self) -> str:
        digest = self.sha256 or self.file_sha256 or self.old_hash
        return f"{_EDITIONS.get(self.sha256, self.name)}{f' (hash {digest[:10]})' if digest else ''}"


# What a base says of itself.


def of_base(base: str, folder: Path, family: str) -> Origin:
    """A base at hand, by its setting, its diffusers folder and its family."""
    component = families.registry()[family].denoiser
    place, _ = bases.place(base)
    name = place.name if place.is_absolute() or place.exists() else base
    digest = bases.digest(folder, component)
    if not place.is_file():
        return Origin("imprimatura" if base == "imprimatura" else name, digest)
    return Origin(name, digest, model_registry.digest(place, single_file.sha256), _old_hash(place))


def _old_hash(path: Path) -> str:
    """The short hash of a part of a file that A1111 and kohya's scripts used at first; all that older LoRAs carry."""
    with path.open("rb") as file:
        file.seek(1 << 20)
        return hashlib.sha256(file.read(1 << 16)).hexdigest()[:8]


def header(base: Origin) -> dict[str, str]:
    """What a LoRA trained on this base says of it, beside its name."""
    hashes = {KEY: base.sha256, FILE_KEY: base.file_sha256, _OLD_FILE_KEY: base.old_hash}
    return {key: value for key, value in hashes.items() if value}


def header_of(base: str, family: str) -> dict[str, str]:
    """The same of a base by its setting; nothing where it isn't here any more."""
    try:
        return header(of_base(base, bases.resolve(base, families.registry()[family]), family))
    except UserError:
        return {}


def shared(headers: Iterable[dict[str, str]]) -> dict[str, str]:
    """What to say of the base in a file made of several; nothing where they name different bases."""
    named = {origin_in_header(metadata) for metadata in headers}
    base = named.pop() if len(named) == 1 else None
    return {NAME_KEY: base.name, **header(base)} if base else {}


def differing(files: Iterable[Path]) -> str:
    """A sentence that names the bases of LoRAs that are for different bases; empty where they agree, or name none.

    Raises: AdapterError.
    """
    bases_by_file = {file.name: origin_in_header(lora_file.read_header(file).metadata) for file in files}
    if len({base for base in bases_by_file.values() if base}) < 2:
        return ""
    named = ", ".join(f"{name} on {base}" for name, base in bases_by_file.items() if base)
    return f"the LoRAs were trained on different bases: {named}."


# What a LoRA says of it.


def origin_in_header(metadata: dict[str, str]) -> Origin | None:
    """The base that a LoRA's header names; None if it names none."""
    # Our recipe's word counts before kohya's, whose name may be a file's of that day.
    recipe = lora_file.recipe_of(metadata)
    recipe_base = recipe["config"].get("base") if recipe else None
    name = recipe_base if isinstance(recipe_base, str) else metadata.get(NAME_KEY, "")
    hashes = [_hash(metadata.get(key, ""), digits) for key, digits in ((KEY, 64), (FILE_KEY, 64), (_OLD_FILE_KEY, 8))]
    if recipe and name == "imprimatura" and not any(hashes):
        hashes[0] = _FIRST_EDITION
    return Origin(name or "a base without a name", *hashes) if name or any(hashes) else None


def _hash(text: str, digits: int) -> str:
    """The hash in a header's entry; empty for anything else that was written there."""
    text = text.strip().lower().removeprefix("0x")
    return text if re.fullmatch(rf"[0-9a-f]{{{digits}}}", text) else ""


def warning(file: Path, base: Origin) -> str:
    """A sentence that names both bases if a LoRA's header names another than this; empty if not.

    Raises: AdapterError.
    """
    origin = origin_in_header(lora_file.read_header(file).metadata)
    if origin is None:
        return ""

    # By hashes of one kind that both sides have: a hash that is the same settles it.
    pairs = [(origin.sha256, base.sha256), (origin.file_sha256, base.file_sha256), (origin.old_hash, base.old_hash)]
    comparable = [(theirs, here) for theirs, here in pairs if theirs and here]
    if any(theirs == here for theirs, here in comparable):
        return ""
    if comparable:
        return (
            f"{file.name} was trained on {origin} and is used on {base}: another base, or the same one saved "
            f"otherwise. If pictures come out wrong, train it again on this one, or use its own."
        )

    # By name, which proves nothing.
    if _plain(origin.name) == _plain(base.name):
        return ""
    return (
        f"{file.name} says that it was trained on {origin}; whether {base} is the same can't be told from their hashes."
    )


def _plain(name: str) -> str:
    """A model's name without folder, ending, case and punctuation."""
    last = re.split(r"[/\\]", name.strip().lower())[-1]
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\.(safetensors|ckpt)$", "", last))


def at_home(file: Path, base: str = "") -> str:
    """The same against `base`, or else against the base that the header names, if that is here.

    Raises: UserError if `base` isn't here.
    """
    origin = origin_in_header(lora_file.read_header(file).metadata)
    if origin is None:
        return ""
    wanted = base or origin.name
    if not base and wanted != "imprimatura" and wanted not in model_registry.entries():
        return ""
    try:
        family = bases.family_of(wanted)
        return warning(file, of_base(wanted, bases.resolve(wanted, families.registry()[family]), family))
    except UserError:
        if base:
            raise
        return ""  # a registered base that has gone; the file itself can be read
