"""The diffusers folder of a plan, written: each part copied, built, or made from the tensors of a single file.

Tensors are counted: a part's weights must be as many as the file had for it, so that a wrong architecture or a name
that nobody reads is an error, and not a blurred picture.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import families
from trainer.errors import ModelError
from trainer.lazy import diffusers, torch, transformers
from trainer.single_file import texts
from trainer.single_file.blueprints import Part, index_extras
from trainer.single_file.head import Head
from trainer.single_file.planning import Plan

if TYPE_CHECKING:
    from torch import Tensor

_IGNORED = ("position_ids", "logit_scale")  # of text encoders: derived, or never used
_MARKERS = ("v_pred", "ztsnr", "edm_mean", "edm_std")  # tensors that say how a model predicts, beside its weights
_TIED = ("encoder.embed_tokens.weight", "shared.weight")  # T5's table of tokens, of which files have one or both


def write(plan: Plan, folder: Path) -> None:
    """Write the folder of a plan, which is not there yet. Raises: ModelError if a part doesn't fit its architecture."""
    # Parts.
    for name, part in plan.parts.items():
        target, source = folder / name, plan.sources.get(name)
        target.mkdir(parents=True)
        if isinstance(source, Path):
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif name == "scheduler":
            _save_json(target / "scheduler_config.json", {**part.config, "_class_name": part.kind})
        elif source is None:
            texts.clip_tokenizer(part.config["pad_token"]).save_pretrained(str(target))
        else:
            _write_weights(name, part, *source, target)
    # The index of them; SD 3's pipeline wants to be told that T5 is absent.
    family = plan.detected.family
    optional = ("text_encoder_3", "tokenizer_3") if family == "sd3" else ()
    index = {"_class_name": families.registry()[family].pipeline, "_diffusers_version": diffusers.__version__}
    index |= index_extras(family)
    index |= {name: [None, None] for name in optional if name not in plan.parts}
    index |= {name: [part.library, part.kind] for name, part in plan.parts.items()}
    _save_json(folder / "model_index.json", index)


def _write_weights(name: str, part: Part, head: Head, prefix: str, target: Path) -> None:
    """One part's config and weights, from a file's tensors under a prefix.

    Raises: ModelError if they don't fit the architecture.
    """
    from safetensors.torch import save_file

    tensors = _tensors(head, prefix)
    kind = {"_class_name": part.kind} if part.library == "diffusers" else {"architectures": [part.kind]}
    _save_json(target / "config.json", {**kind, **part.config})
    try:
        if part.library == "diffusers":
            _write_model(part.kind, tensors, target)
            return
        if part.kind.startswith("CLIP"):
            layers = part.config.get("num_hidden_layers", 0)
            tensors = texts.clip_tensors(tensors, layers, part.kind.endswith("WithProjection"))
        _check_text(part, tensors)
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{head.path}: its {name} doesn't fit {part.kind} of the expected sizes: {str(error)[:300]}"
        ) from error
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(contiguous, target / "model.safetensors", metadata={"format": "pt"})


def _write_model(kind: str, tensors: dict[str, Tensor], target: Path) -> None:
    """A denoiser or autoencoder by diffusers' own reader of single files, saved as a folder's part."""
    dtype = Counter(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()).most_common(1)[0][0]
    num_given = sum(tensor.numel() for tensor in tensors.values())
    if "input_blocks.0.0.weight" in tensors:  # diffusers knows a UNet by this prefix
        tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
    model = getattr(diffusers, kind).from_single_file(
        tensors, config=str(target), subfolder="", local_files_only=True, torch_dtype=dtype
    )
    # Its reader passes over what it doesn't know, and leaves what is missing empty.
    state: dict[str, Any] = model.state_dict()
    if empty := [name for name, tensor in state.items() if tensor.is_meta]:
        raise ValueError(f"{len(empty)} tensors are missing, such as {empty[0]}")
    if (num_read := sum(tensor.numel() for tensor in state.values())) != num_given:
        raise ValueError(f"the file has {num_given} numbers for it, {num_read} were read")
    model.save_pretrained(str(target))


def _check_text(part: Part, tensors: dict[str, Tensor]) -> None:
    """Compare a text encoder's tensors with an empty text encoder of its class. Raises: ValueError."""
    with torch.device("meta"):  # has shapes and takes no memory
        config = getattr(transformers, "T5Config" if part.kind.startswith("T5") else "CLIPTextConfig")(**part.config)
        model = getattr(transformers, part.kind)(config)
    given = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    for name, wanted in model.state_dict().items():
        tensor = given.pop(name.removeprefix("text_model."), None)
        if tensor is None and name not in _TIED and not name.endswith(_IGNORED):
            raise ValueError(f"{name} is missing")
        if tensor is not None and tensor.shape != wanted.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, {tuple(wanted.shape)} is wanted")
    if unknown := [name for name in given if name not in _TIED]:
        raise ValueError(f"{len(unknown)} tensors are unknown, such as {unknown[0]}")


def _tensors(head: Head, prefix: str) -> dict[str, Tensor]:
    """A file's tensors under a prefix, without it; float8 widened to bfloat16, as nothing computes in float8."""
    from safetensors import safe_open

    tensors = {}
    with safe_open(str(head.path), framework="pt") as file:
        for name in head.under(prefix):
            tensor = file.get_tensor(name)
            if name.endswith(_IGNORED) or name in _MARKERS:
                continue
            is_float8 = tensor.element_size() == 1 and tensor.is_floating_point()
            tensors[name[len(prefix) :]] = tensor.to(torch.bfloat16) if is_float8 else tensor
    return tensors


def _save_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
