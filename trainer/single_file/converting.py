"""A single file laid out once as the diffusers folder that everything else here works on.

Loading the file directly each time was weighed and left: a base's digest, its parts, its tokenizers, processes that load it again, memory
that is measured by rehearsal, all ask a folder, and every family loads one. The price is disk: the folder is as large as the file, which
is said when it is made. It is named by the sha256 of what it was made from, is made in a folder beside and put in place whole, keeps
the file's precision (float8 is widened to bfloat16, since nothing computes in it), and is made again if it was deleted.

Which tensors went where is checked by counting: a part's weights must be as many as the file had for it, so that a wrong architecture
or a name that nobody reads is an error and no blurred picture.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from trainer import families, files, foreign_json
from trainer.errors import ModelError
from trainer.single_file import texts
from trainer.single_file.blueprints import Part, blueprint, index_extras
from trainer.single_file.detecting import Detected, detect
from trainer.single_file.head import Head, read_head

if TYPE_CHECKING:
    from torch import Tensor

_VERSION = 1  # of what is written; a new one makes folders anew
_IGNORED = ("position_ids", "logit_scale")  # of text encoders: derived, or never used
_MARKERS = ("v_pred", "ztsnr", "edm_mean", "edm_std")  # what says how a model predicts, beside its weights
_VAE_AT = ("first_stage_model.", "vae.")
_CLIPS_AT = {
    "text_encoder": ("cond_stage_model.transformer.", "cond_stage_model.model.", "conditioner.embedders.0.transformer.", "text_encoders.clip_l.transformer."),
    "text_encoder_2": ("conditioner.embedders.1.model.", "text_encoders.clip_g.transformer."),
}
_ALONE = {"vae": _VAE_AT}  # prefixes within a file that holds one part
_ALONE_TEXT = ("model.", "transformer.")


@dataclass(frozen=True)
class Wishes:
    """What a file doesn't say, from who registered it."""

    like: Path | None = None  # a diffusers folder of the same architecture: configs, tokenizers, and weights that the file lacks
    parts: dict[str, Path] = field(default_factory=dict)  # part -> its folder or .safetensors file
    prediction: str | None = None


@dataclass(frozen=True)
class Plan:
    """Where each part of the folder comes from."""

    head: Head
    found: Detected
    parts: dict[str, Part]
    sources: dict[str, tuple[Head, str] | Path]  # part -> a file and the prefix of its names there, or a folder to copy; what is built has none
    missing: tuple[str, ...]


def plan(path: Path, wishes: Wishes) -> Plan:
    """What the folder of a file is made of. Raises: ModelError."""
    head = read_head(path)
    found = _as_wished(detect(head), wishes, path)
    parts = _like_parts(wishes.like, found) if wishes.like else blueprint(head, found)
    if parts and wishes.like and found.prediction and not found.certain:
        kind = parts["scheduler"].config.get("prediction_type", "epsilon")
        found = replace(found, prediction="v" if kind == "v_prediction" else "epsilon", why="as the base that it is like")
    if parts is None:
        raise ModelError(
            f"{path} is {found.title}, in sizes or names that no architecture known here has; name a diffusers folder of the same architecture: "
            "velatura models add FILE --like FOLDER."
        )
    if strange := [name for name in wishes.parts if name not in parts]:
        raise ModelError(f"--part names {', '.join(strange)}, which {found.title} hasn't; allowed: {', '.join(parts)}.")
    sources: dict[str, tuple[Head, str] | Path] = {}
    for name, part in parts.items():
        if (source := _source(name, part, head, wishes)) is not None:
            sources[name] = source
    missing = [name for name, part in parts.items() if name not in sources and not _built(name, part, wishes)]
    gone = [name for name in missing if parts[name].optional] if "text_encoder_3" in missing else []
    return Plan(head, found, {name: part for name, part in parts.items() if name not in gone}, sources, tuple(name for name in missing if name not in gone))


def refuse_missing(made: Plan) -> None:
    """Raises: ModelError, which says precisely what else is needed."""
    if made.missing:
        needs = [f"{name} ({made.parts[name].kind}{': T5 v1.1 XXL' if made.parts[name].kind.startswith('T5') else ''})" for name in made.missing]
        raise ModelError(
            f"{made.head.path} ({made.found.title}) has no {', '.join(needs)}; velatura models add FILE --part {made.missing[0]}=PATH names a folder "
            "or .safetensors file for one, --like FOLDER a diffusers folder of the family for all."
        )


def convert(made: Plan, shelf: Path, digest: str) -> Path:
    """The diffusers folder of a plan whose file has this sha256, from the shelf or written there. Raises: ModelError."""
    refuse_missing(made)
    folder = shelf / key(made, digest)
    if folder.is_dir():
        return folder
    shelf.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return folder
        needed = written_bytes(made)
        if (free := shutil.disk_usage(shelf).free) < needed:
            raise ModelError(f"{shelf} has {free / 2**30:.1f} GiB free; {made.head.path.name} needs {needed / 2**30:.1f} GiB there, laid out as a folder.")
        logging.getLogger(__name__).warning("laying out %s as a diffusers folder, once: %.2f GiB in %s", made.head.path.name, needed / 2**30, folder)
        with tempfile.TemporaryDirectory(dir=shelf, prefix=".making-") as making:
            _write(made, Path(making) / "folder")
            (Path(making) / "folder").rename(folder)
    return folder


def key(made: Plan, digest: str) -> str:
    """The folder's name: a hash of everything it is made from."""
    others = {name: _fingerprint(source) for name, source in made.sources.items() if isinstance(source, Path) or source[0].path != made.head.path}
    configs = {name: (part.kind, part.config) for name, part in made.parts.items()}
    state = json.dumps([_VERSION, digest, others, configs], sort_keys=True)
    return f"{made.head.path.stem[:40]}-{hashlib.sha256(state.encode()).hexdigest()[:16]}"


def written_bytes(made: Plan) -> int:
    """What the folder takes on the disk, about."""
    return sum(_size(source) for source in made.sources.values())


def _as_wished(found: Detected, wishes: Wishes, path: Path) -> Detected:
    if wishes.prediction is None:
        return found
    allowed = families.registry()[found.family].prediction if found.family in families.registry() else ()
    if wishes.prediction not in allowed:
        raise ModelError(f"--prediction is {wishes.prediction!r} for {path} ({found.title}); allowed: {', '.join(allowed)}.")
    return replace(found, prediction=wishes.prediction, why="what was said of it", certain=True)


def _like_parts(like: Path, found: Detected) -> dict[str, Part]:
    """The parts that a diffusers folder of the same architecture names, with the file's prefixes."""
    try:
        index = foreign_json.table(like / "model_index.json")
    except (OSError, ValueError):
        raise ModelError(f"{str(like)!r}, which the file was said to be like, has no readable model_index.json; add the file again with --like.") from None
    family = families.registry().get(found.family)
    if family is None or index.get("_class_name") != family.pipeline:
        kind = str(index.get("_class_name"))[:80]
        raise ModelError(f"--like is {str(like)!r}, a {kind}; the file is {found.title}, so it must be a folder of the same family.")
    denoiser = family.denoiser
    parts = {}
    for name, value in ((name, value) for name, value in index.items() if isinstance(value, list) and value[:1] != [None]):
        if len(value) != 2 or not all(isinstance(one, str) for one in value):
            raise ModelError(f"{str(like)!r}, which the file was said to be like, has {name[:80]!r} in its model_index.json, which names no class.")
        library, kind = value
        file = like / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
        try:
            config = foreign_json.table(file) if os.path.isfile(file) else {}
        except (OSError, ValueError):
            raise ModelError(f"{str(like)!r}, which the file was said to be like, has a {file.name} of {name} that can't be read.") from None
        if name == "scheduler" and found.prediction and found.certain:
            config |= {"prediction_type": "v_prediction" if found.prediction == "v" else "epsilon"}
            config |= {"rescale_betas_zero_snr": True} if found.zero_snr else {}
        parts[name] = Part(library, kind, config, (found.prefix,) if name == denoiser else _prefixes(name, kind))
    return parts


def _prefixes(name: str, kind: str) -> tuple[str, ...]:
    """Where single files have a part that isn't the denoiser."""
    if name == "vae":
        return _VAE_AT
    if kind.startswith("T5"):
        return ("text_encoders.t5xxl.transformer.",) if "Encoder" in kind else ()
    return _CLIPS_AT.get(name, ())


def _source(name: str, part: Part, head: Head, wishes: Wishes) -> tuple[Head, str] | Path | None:
    """Where one part's weights or files come from; None if nowhere, or if it is built."""
    if named := wishes.parts.get(name):
        if named.is_dir():
            inner = named / name if (named / name).is_dir() else named
            if not any(inner.glob("*.json")) and not any(inner.glob("*.model")):
                raise ModelError(f"--part {name} is {str(named)!r}, a folder without config or tokenizer files; it must be a part of a diffusers folder.")
            return inner
        if not part.prefixes and name != "vae":
            raise ModelError(f"--part {name} is {str(named)!r}, a file; {part.kind} is a folder, with tokenizer.json or spiece.model.")
        alone = read_head(named)
        starts = _ALONE.get(name, (*_ALONE_TEXT, *part.prefixes))
        return alone, next((start for start in starts if all(one.startswith(start) for one in alone.shapes)), "")
    for prefix in part.prefixes:
        if head.under(prefix):
            return head, prefix
    if wishes.like and name != "scheduler" and (wishes.like / name).is_dir():
        return wishes.like / name
    return None


def _built(name: str, part: Part, wishes: Wishes) -> bool:
    """True for what needs no file: the scheduler, and CLIP's tokenizer."""
    return name == "scheduler" or part.kind == "CLIPTokenizer" and wishes.like is None


def _size(source: tuple[Head, str] | Path) -> int:
    if isinstance(source, Path):
        return sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    head, prefix = source
    bytes_each = {"F64": 8, "F32": 4}
    return sum(head.num_parameters([name]) * bytes_each.get(head.dtypes[name], 2) for name in head.under(prefix))


def _fingerprint(source: tuple[Head, str] | Path) -> str:
    """sha256 of a part's files."""
    paths = sorted(path for path in source.rglob("*") if path.is_file()) if isinstance(source, Path) else [source[0].path]
    state = hashlib.sha256()
    for path in paths:
        state.update(path.name.encode() + sha256(path).encode())
    return state.hexdigest()


def sha256(path: Path) -> str:
    """sha256 of a file; read once while the file stays as it is."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@cache
def _sha256(path: Path, size_bytes: int, changed_ns: int) -> str:
    return files.sha256(path)


def _write(made: Plan, folder: Path) -> None:
    import diffusers

    for name, part in made.parts.items():
        target, source = folder / name, made.sources.get(name)
        target.mkdir(parents=True)
        if isinstance(source, Path):
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif name == "scheduler":
            _save_json(target / "scheduler_config.json", {**part.config, "_class_name": part.kind})
        elif source is None:
            texts.clip_tokenizer(part.config["pad_token"]).save_pretrained(str(target))
        else:
            _write_weights(name, part, *source, target)
    index = {"_class_name": families.registry()[made.found.family].pipeline, "_diffusers_version": diffusers.__version__}
    absent = {name: [None, None] for name in ("text_encoder_3", "tokenizer_3") if made.found.family == "sd3" and name not in made.parts}
    index |= index_extras(made.found.family) | absent | {name: [part.library, part.kind] for name, part in made.parts.items()}
    _save_json(folder / "model_index.json", index)


def _write_weights(name: str, part: Part, head: Head, prefix: str, target: Path) -> None:
    """One part's config and weights, from a file's tensors under a prefix. Raises: ModelError if they don't fit the architecture."""
    from safetensors.torch import save_file

    tensors = _tensors(head, prefix)
    config = {"_class_name": part.kind, **part.config} if part.library == "diffusers" else {"architectures": [part.kind], **part.config}
    _save_json(target / "config.json", config)
    try:
        if part.library == "diffusers":
            _write_model(part.kind, tensors, target)
            return
        layers = part.config.get("num_hidden_layers", 0)
        named = texts.clip_tensors(tensors, layers, part.kind.endswith("WithProjection")) if part.kind.startswith("CLIP") else tensors
        _check_text(part, named)
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{head.path}: its {name} doesn't fit {part.kind} of the expected sizes: {str(error)[:300]}") from error
    save_file({key: tensor.contiguous() for key, tensor in named.items()}, target / "model.safetensors", metadata={"format": "pt"})


def _write_model(kind: str, tensors: dict[str, Tensor], target: Path) -> None:
    """A denoiser or autoencoder by diffusers' own reader of single files, saved as a folder's part."""
    import diffusers

    dtype = Counter(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()).most_common(1)[0][0]
    given = sum(tensor.numel() for tensor in tensors.values())
    if "input_blocks.0.0.weight" in tensors:  # its reader of UNets wants the prefix
        tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
    model = getattr(diffusers, kind).from_single_file(tensors, config=str(target), subfolder="", local_files_only=True, torch_dtype=dtype)
    state: dict[str, Any] = model.state_dict()
    if empty := [name for name, tensor in state.items() if tensor.is_meta]:
        raise ValueError(f"{len(empty)} tensors are missing, such as {empty[0]}")
    if (held := sum(tensor.numel() for tensor in state.values())) != given:
        raise ValueError(f"the file has {given} numbers for it, {held} were read")
    model.save_pretrained(str(target))


def _check_text(part: Part, named: dict[str, Tensor]) -> None:
    """A text encoder's tensors against an empty one of its class. Raises: ValueError."""
    import torch
    import transformers

    with torch.device("meta"):
        config = getattr(transformers, "T5Config" if part.kind.startswith("T5") else "CLIPTextConfig")(**part.config)
        model = getattr(transformers, part.kind)(config)
    spelled = {name.removeprefix("text_model."): tensor for name, tensor in named.items()}
    for name, tensor in model.state_dict().items():
        given = spelled.pop(name.removeprefix("text_model."), None)
        if given is None and name not in ("encoder.embed_tokens.weight", "shared.weight") and not name.endswith(_IGNORED):
            raise ValueError(f"{name} is missing")
        if given is not None and given.shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(given.shape)}, {tuple(tensor.shape)} is wanted")
    if spelled := {name: one for name, one in spelled.items() if name not in ("encoder.embed_tokens.weight", "shared.weight")}:
        raise ValueError(f"{len(spelled)} tensors are unknown, such as {next(iter(spelled))}")


def _tensors(head: Head, prefix: str) -> dict[str, Tensor]:
    """A file's tensors under a prefix, without it; float8 widened to bfloat16."""
    import torch
    from safetensors import safe_open

    found = {}
    with safe_open(str(head.path), framework="pt") as file:
        for name in head.under(prefix):
            tensor = file.get_tensor(name)
            if not name.endswith(_IGNORED) and name not in _MARKERS:
                found[name[len(prefix) :]] = tensor.to(torch.bfloat16) if tensor.element_size() == 1 and tensor.is_floating_point() else tensor
    return found


def _save_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
