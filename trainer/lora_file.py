"""LoRA files, both ways: `.safetensors` <-> deltas by module path, and the header that makes them known elsewhere.

Written: kohya's and LyCORIS' names, `ss_*` and `modelspec.*` keys, our recipe under one key; new words for the text encoder
beside them, as A1111 bundles them.
The header is sorted here because the safetensors library writes metadata in random order: one recipe on one dataset
gives the same bytes. For the same reason nothing in it tells when, where or under which name a run was made.
Read: kohya's, LyCORIS' and diffusers' / PEFT's names. Below 100 % matched a file is refused with the names that don't fit.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import methods
from trainer.deltas import Delta as Delta
from trainer.deltas import Update
from trainer.errors import AdapterError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

RECIPE_KEY = "velatura.recipe"
MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 20_000
_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}
_SUFFIX = re.compile(r"^(?P<base>.+?)\.(?P<suffix>(lora_|lora\.|hada_|lokr_|oft_|dora_scale|diff|alpha).*)$")
_EMBEDDING = re.compile(r"^bundle_emb\.(?P<word>.+)\.string_to_param\.\*$")
_EXACT = ("alpha", "dora_scale")  # rounded, these would move more than the whole update


@dataclass(frozen=True)
class Header:
    """What a file says of itself before any tensor is read."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    data_start: int  # byte offset of the tensors


@dataclass(frozen=True)
class LoraInfo:
    """What is known of a LoRA file without a base model."""

    path: Path
    name: str
    sha256: str  # of the tensor bytes: `sshs_model_hash`, computed, never trusted
    family: str | None
    base: str | None
    method: str
    rank: int
    alpha: float | None
    num_modules: int
    num_parameters: int
    size_bytes: int
    norm: float | None  # Frobenius norm of all updates together; None where that takes the base to know
    trigger: str
    title: str
    metadata: dict[str, str]
    recipe: dict[str, Any] | None
    embeddings: dict[str, int]  # new words and how many vectors each has


def read_header(path: Path) -> Header:
    """The header, checked before the library sees the file. Raises: AdapterError with what was found and allowed."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > MAX_HEADER_BYTES or 8 + length > size:
                raise AdapterError(f"{path.name} is not a safetensors file: its header claims {length} bytes of {size}; allowed: up to {MAX_HEADER_BYTES}.")
            raw = file.read(length)
    except OSError as error:
        raise AdapterError(f"LoRA file {str(path)!r} can't be read: {error.strerror}.") from None
    try:
        fields = json.loads(raw, object_pairs_hook=_no_twins)
        metadata = fields.pop("__metadata__", {})
        shapes = {name: tuple(int(side) for side in entry["shape"]) for name, entry in fields.items()}
        dtypes = {entry["dtype"] for entry in fields.values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{path.name} is not a safetensors file: {error}") from None
    if len(shapes) > MAX_TENSORS:
        raise AdapterError(f"{path.name} has {len(shapes)} tensors; allowed: up to {MAX_TENSORS}.")
    if not dtypes <= set(_DTYPES):
        raise AdapterError(f"{path.name} has tensors of {', '.join(sorted(map(str, dtypes - set(_DTYPES))))}; allowed: {', '.join(_DTYPES)}.")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise AdapterError(f"{path.name} has metadata that isn't text.")
    return Header(shapes, metadata, 8 + length)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return found


def _tensors(path: Path) -> dict[str, Tensor]:
    """All tensors, finite. Raises: AdapterError."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    header = read_header(path)
    try:
        tensors = load(path.read_bytes())
    except SafetensorError as error:
        raise AdapterError(f"{path.name} is damaged: {error}") from None
    if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise AdapterError(f"{path.name} has NaN or infinity in {len(bad)} of {len(header.shapes)} tensors, the first is {bad[0]!r}; it can't be used.")
    return tensors


def _by_module(tensors: dict[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """`{module as the file spells it: {suffix: tensor}}` and the names that follow no known scheme."""
    grouped: dict[str, dict[str, Tensor]] = {}
    strange = []
    for name, tensor in tensors.items():
        if _EMBEDDING.match(name):
            continue
        match = _SUFFIX.match(name)
        suffix = match["suffix"].replace(".default", "") if match else ""
        if match and suffix not in grouped.get(match["base"], {}):
            grouped.setdefault(match["base"], {})[suffix] = tensor
        else:
            strange.append(name)
    return grouped, strange


def _updates(path: Path) -> tuple[dict[str, Update], str, set[float]]:
    """Updates by the file's own module names, the method's name, and the alphas found."""
    grouped, strange = _by_module(_tensors(path))
    header_alphas = _header_alphas(path)
    if strange or not grouped:
        raise AdapterError(f"{path.name} is no LoRA file we can read: {len(strange)} names follow no known scheme, such as {strange[:3]}.")
    found: dict[str, Update] = {}
    names, alphas = set(), set()
    for base, suffixes in grouped.items():
        own = suffixes.pop("alpha", None)
        method = next((module for module in methods.registry().values() if module.recognises(set(suffixes))), None)
        if method is None:
            raise AdapterError(f"{path.name}: {base} has {sorted(suffixes)}, which is none of {', '.join(methods.registry())}.")
        if own is not None and own.numel() != 1:
            raise AdapterError(f"{path.name}: the alpha of {base} has {own.numel()} elements; allowed: one.")
        alpha = header_alphas.get(base.split(".")[0]) if own is None else float(own)
        try:
            found[base] = method.from_file(suffixes, alpha)
        except ValueError as error:
            raise AdapterError(f"{path.name}: {base} has {error}, which don't fit each other.") from None
        names.add(method.name)
        if alpha is not None:
            alphas.add(alpha)
    return found, "+".join(sorted(names)), alphas


def _header_alphas(path: Path) -> dict[str, float]:
    """`{component: alpha}` of a file written by diffusers, which keeps alpha in the header. Raises: AdapterError."""
    text = read_header(path).metadata.get("lora_adapter_metadata")
    if text is None:
        return {}
    try:
        values = {key: value for key, value in json.loads(text).items() if value}
        alphas = {key.removesuffix(".lora_alpha"): float(value) for key, value in values.items() if key.endswith(".lora_alpha")}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise AdapterError(f"{path.name} has lora_adapter_metadata that can't be read, so its alpha is unknown.") from None
    if strange := [key for key in values if key.rpartition(".")[2] in ("alpha_pattern", "use_rslora")]:
        raise AdapterError(f"{path.name} sets {', '.join(strange)} in its header, which is not read here; save it in kohya's names.")
    return alphas


def read(path: Path, file_keys: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> dict[str, Update]:
    """Updates by module path (`unet.down_blocks...`), every one matched by name and shape.

    `file_keys` maps module paths to kohya keys (a family's), `shapes` to weight shapes.
    Raises: AdapterError that counts and lists what doesn't fit; nothing is half-loaded.
    """
    found, _, _ = _updates(path)
    paths = {key: module for module, key in file_keys.items()} | {module: module for module in file_keys}
    places = {base: base if base in paths else _spelled(base) for base in found}
    unknown = [base for base, place in places.items() if place not in paths]
    if unknown:
        counted = f"{len(found) - len(unknown)} of {len(found)} modules matched"
        listed = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        raise AdapterError(f"{path.name} does not fit this base: {counted}. Not found: {listed}.")
    matched = {paths[places[base]]: update for base, update in found.items()}
    if len(matched) < len(found):
        raise AdapterError(f"{path.name} names {len(found) - len(matched)} of its {len(found)} modules twice, in two spellings; which one counts is not said.")
    for module, update in matched.items():
        if not update.fits(shapes[module]):
            raise AdapterError(f"{path.name} was made for another base: {module} is {shapes[module]} here and {update.made_for} in the file.")
    return matched


def embeddings(path: Path) -> dict[str, Tensor]:
    """New words for the text encoder that a file brings: `{word: (vectors, dim)}`; mostly none. Raises: AdapterError."""
    return _embeddings(path, _tensors(path))


def _embeddings(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {match["word"]: tensor for name, tensor in tensors.items() if (match := _EMBEDDING.match(name))}
    if bad := [word for word, vectors in found.items() if vectors.ndim != 2 or not vectors.numel()]:
        raise AdapterError(f"{path.name}: the word {bad[0]!r} has vectors of shape {tuple(found[bad[0]].shape)}; allowed: (vectors, width).")
    return found


def _spelled(base: str) -> str:
    """A PEFT spelling without the wrapper's prefix; transformers >= 5.6 has no `text_model.` in its own paths."""
    plain = base.removeprefix("base_model.model.")
    plain = plain if plain.startswith(("lora_", "unet.", "transformer.", "text_encoder")) else f"unet.{plain}" if "." in plain else plain
    return plain.replace("text_encoder.text_model.", "text_encoder.")


def save(path: Path, modules: dict[str, dict[str, Tensor]], metadata: dict[str, str], dtype: torch.dtype, embeddings: dict[str, Tensor] | None = None) -> str:
    """Write `{kohya key: {suffix: tensor}}` whole or not at all, and return the sha256 of the tensor bytes.

    `embeddings` are new words for the text encoder, `{word: (vectors, dim)}`.
    """
    import torch
    from safetensors.torch import save as serialize

    tensors = {
        f"{key}.{suffix}": tensor.detach().to("cpu", torch.float32 if suffix in _EXACT else dtype).contiguous()
        for key, parts in sorted(modules.items())
        for suffix, tensor in sorted(parts.items())
    } | {f"bundle_emb.{word}.string_to_param.*": vectors.detach().to("cpu", dtype).contiguous() for word, vectors in sorted((embeddings or {}).items())}
    plain = serialize(tensors)
    start = 8 + int.from_bytes(plain[:8], "little")
    body = plain[start:]
    digest = hashlib.sha256(body).hexdigest()
    fields = json.loads(plain[8:start])
    kohya = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    legacy = hashlib.sha256(_file(fields, kohya, body)[0x100000:0x110000]).hexdigest()[:8]
    whole = _file(fields, metadata | {"sshs_model_hash": digest, "sshs_legacy_hash": legacy}, body)
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(whole)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return digest


def _file(fields: dict[str, Any], metadata: dict[str, str], body: bytes) -> bytes:
    header = json.dumps({"__metadata__": dict(sorted(metadata.items())), **fields}, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + body


def inspect(path: Path) -> LoraInfo:
    """Everything a LoRA file says and is. Raises: AdapterError."""
    header = read_header(path)
    found, method, alphas = _updates(path)
    recipe = recipe_of(header.metadata)
    config = recipe.get("config", {}) if recipe else {}
    squares = [square for update in found.values() if (square := update.squared_norm()) is not None]
    version = header.metadata.get("ss_base_model_version", "")
    family = "sd" if version.startswith(("sd_v1", "sd_v2")) else version or None
    return LoraInfo(
        path=path,
        name=path.stem,
        sha256=hashlib.sha256(path.read_bytes()[header.data_start :]).hexdigest(),
        family=_text(config.get("family")) or family,
        base=_text(config.get("base")) or header.metadata.get("ss_sd_model_name"),
        method=method,
        rank=max(update.rank for update in found.values()),
        alpha=alphas.pop() if len(alphas) == 1 else None,
        num_modules=len(found),
        num_parameters=sum(update.num_parameters for update in found.values()),
        size_bytes=path.stat().st_size,
        norm=math.sqrt(math.fsum(squares)) if len(squares) == len(found) else None,
        trigger=header.metadata.get("modelspec.trigger_phrase", ""),
        title=header.metadata.get("modelspec.title", path.stem),
        metadata=header.metadata,
        recipe=recipe,
        embeddings={word: vectors.shape[0] for word, vectors in embeddings(path).items()},
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def recipe_of(metadata: dict[str, str]) -> dict[str, Any] | None:
    """Our recipe in a header, or None if there is none or it is damaged."""
    try:
        found = json.loads(metadata.get(RECIPE_KEY, "null"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("config"), dict) else None


def library(folders: list[Path]) -> dict[str, LoraInfo]:
    """Every readable LoRA file below the folders, by hash, newest last; what can't be read is passed over."""
    files = [path for folder in folders for path in folder.rglob("*.safetensors") if not _is_inner(path.relative_to(folder))]
    found = {}
    for path in sorted(files, key=lambda path: path.stat().st_mtime):
        try:
            info = inspect(path)
        except AdapterError:
            continue
        found[info.sha256] = info
    return found


def _is_inner(path: Path) -> bool:
    """Caches and checkpoints are not LoRAs to choose from."""
    return any(part.startswith(".") or part == "checkpoints" for part in path.parts)
