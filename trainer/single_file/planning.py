"""Where each part of the diffusers folder of a single file comes from: the file, another file, a folder, or nowhere."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer import families, foreign_json
from trainer.errors import ModelError
from trainer.single_file.blueprints import VAE_PREFIXES, Part, blueprint
from trainer.single_file.detecting import Detected, detect
from trainer.single_file.head import Head, read_head

_CLIP_PREFIXES = {
    "text_encoder": (
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.transformer.",
        "text_encoders.clip_l.transformer.",
    ),
    "text_encoder_2": ("conditioner.embedders.1.model.", "text_encoders.clip_g.transformer."),
}
# Prefixes in a file that holds one part.
_ALONE = {"vae": VAE_PREFIXES}
_ALONE_TEXT = ("model.", "transformer.")


@dataclass(frozen=True)
class Wishes:
    """What a file doesn't say, from whoever registered it."""

    # A diffusers folder of the same architecture: configs, tokenizers, and weights that the file lacks.
    like: Path | None = None
    parts: dict[str, Path] = field(default_factory=dict)  # part -> its folder or .safetensors file
    prediction: str | None = None


@dataclass(frozen=True)
class Plan:
    """Where each part of the folder comes from."""

    head: Head
    detected: Detected
    parts: dict[str, Part]
    # Part -> a file and the prefix of its names there, or a folder to copy; what is built has none.
    sources: dict[str, tuple[Head, str] | Path]
    missing: tuple[str, ...]


def plan(path: Path, wishes: Wishes) -> Plan:
    """What the folder of a file is made of. Raises: ModelError."""
    # Its architecture.
    head = read_head(path)
    detected = _as_wished(detect(head), wishes, path)
    parts = _like_parts(wishes.like, detected) if wishes.like else blueprint(head, detected)
    if parts and wishes.like and detected.prediction and not detected.certain:
        kind = parts["scheduler"].config.get("prediction_type", "epsilon")
        prediction = "v" if kind == "v_prediction" else "epsilon"
        detected = replace(detected, prediction=prediction, why="as the base that it is like")
    if parts is None:
        raise ModelError(
            f"{path} is {detected.title}, in sizes or names that no architecture known here has; name a diffusers "
            f"folder of the same architecture: velatura models add FILE --like FOLDER."
        )
    if strange := [name for name in wishes.parts if name not in parts]:
        raise ModelError(
            f"--part names {', '.join(strange)}, which {detected.title} hasn't; allowed: {', '.join(parts)}."
        )
    # Where its parts are.
    sources: dict[str, tuple[Head, str] | Path] = {}
    for name, part in parts.items():
        if (source := _source(name, part, head, wishes)) is not None:
            sources[name] = source
    missing = [name for name, part in parts.items() if name not in sources and not _is_built(name, part, wishes)]
    # SD 3 draws without T5 too, so that T5 and its tokenizer are left out together where T5 isn't there.
    left_out = [name for name in missing if parts[name].optional] if "text_encoder_3" in missing else []
    kept = {name: part for name, part in parts.items() if name not in left_out}
    return Plan(head, detected, kept, sources, tuple(name for name in missing if name not in left_out))


def refuse_missing(plan: Plan) -> None:
    """Raises: ModelError, which says precisely what else is needed."""
    if not plan.missing:
        return
    kinds = {name: plan.parts[name].kind for name in plan.missing}
    needs = [f"{name} ({kind}{': T5 v1.1 XXL' if kind.startswith('T5') else ''})" for name, kind in kinds.items()]
    raise ModelError(
        f"{plan.head.path} ({plan.detected.title}) has no {', '.join(needs)}; velatura models add FILE --part "
        f"{plan.missing[0]}=PATH names a folder or .safetensors file for one, --like FOLDER a diffusers folder of the "
        f"family for all."
    )


def _as_wished(detected: Detected, wishes: Wishes, path: Path) -> Detected:
    """What was detected, with the prediction that was given. Raises: ModelError if the family hasn't that."""
    if wishes.prediction is None:
        return detected
    allowed = families.registry()[detected.family].prediction if detected.family in families.registry() else ()
    if wishes.prediction not in allowed:
        raise ModelError(
            f"--prediction is {wishes.prediction!r} for {path} ({detected.title}); allowed: {', '.join(allowed)}."
        )
    return replace(detected, prediction=wishes.prediction, why="what was said of it", certain=True)


def _like_parts(like: Path, detected: Detected) -> dict[str, Part]:
    """The parts that a diffusers folder of the same architecture names, with the file's prefixes."""
    # The folder, which must be of the file's family.
    try:
        index = foreign_json.table(like / "model_index.json")
    except (OSError, ValueError):
        raise ModelError(
            f"{str(like)!r}, which the file was said to be like, has no readable model_index.json; add the file again "
            f"with --like."
        ) from None
    family = families.registry().get(detected.family)
    if family is None or index.get("_class_name") != family.pipeline:
        kind = str(index.get("_class_name"))[:80]
        raise ModelError(
            f"--like is {str(like)!r}, a {kind}; the file is {detected.title}, so it must be a folder of the same "
            f"family."
        )
    # Its parts; an absent part is [None, None].
    parts = {}
    named = {name: value for name, value in index.items() if isinstance(value, list) and value[:1] != [None]}
    for name, value in named.items():
        if len(value) != 2 or not all(isinstance(text, str) for text in value):
            raise ModelError(
                f"{str(like)!r}, which the file was said to be like, has {name[:80]!r} in its model_index.json, which "
                f"names no class."
            )
        library, kind = value
        config = _like_config(like, name, detected)
        prefixes = (detected.prefix,) if name == family.denoiser else _prefixes(name, kind)
        parts[name] = Part(library, kind, config, prefixes)
    return parts


def _like_config(like: Path, name: str, detected: Detected) -> dict[str, Any]:
    """A part's config in the folder; the scheduler's with what is certain of the file. Raises: ModelError."""
    file = like / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
    try:
        config = foreign_json.table(file) if os.path.isfile(file) else {}
    except (OSError, ValueError):
        raise ModelError(
            f"{str(like)!r}, which the file was said to be like, has a {file.name} of {name} that can't be read."
        ) from None
    if name == "scheduler" and detected.prediction and detected.certain:
        config |= {"prediction_type": "v_prediction" if detected.prediction == "v" else "epsilon"}
        config |= {"rescale_betas_zero_snr": True} if detected.zero_snr else {}
    return config


def _prefixes(name: str, kind: str) -> tuple[str, ...]:
    """Where single files have a part that isn't the denoiser."""
    if name == "vae":
        return VAE_PREFIXES
    if kind.startswith("T5"):
        return ("text_encoders.t5xxl.transformer.",) if "Encoder" in kind else ()
    return _CLIP_PREFIXES.get(name, ())


def _source(name: str, part: Part, head: Head, wishes: Wishes) -> tuple[Head, str] | Path | None:
    """Where one part's weights or files come from; None if nowhere, or if it is built."""
    if named := wishes.parts.get(name):
        return _named_source(name, part, named)
    for prefix in part.prefixes:
        if head.under(prefix):
            return head, prefix
    if wishes.like and name != "scheduler" and (wishes.like / name).is_dir():
        return wishes.like / name
    return None


def _named_source(name: str, part: Part, path: Path) -> tuple[Head, str] | Path:
    """The source of a part that --part names: its folder, or a file that holds it alone. Raises: ModelError."""
    if path.is_dir():
        folder = path / name if (path / name).is_dir() else path
        if not any(folder.glob("*.json")) and not any(folder.glob("*.model")):
            raise ModelError(
                f"--part {name} is {str(path)!r}, a folder without config or tokenizer files; it must be a part of a "
                f"diffusers folder."
            )
        return folder
    if not part.prefixes and name != "vae":
        raise ModelError(
            f"--part {name} is {str(path)!r}, a file; {part.kind} is a folder, with tokenizer.json or spiece.model."
        )
    alone = read_head(path)
    prefixes = _ALONE.get(name, (*_ALONE_TEXT, *part.prefixes))
    common = (prefix for prefix in prefixes if all(tensor.startswith(prefix) for tensor in alone.shapes))
    return alone, next(common, "")


def _is_built(name: str, part: Part, wishes: Wishes) -> bool:
    """True for what needs no file: the scheduler, and CLIP's tokenizer."""
    return name == "scheduler" or part.kind == "CLIPTokenizer" and wishes.like is None
