"""A model's weights by `component.module.path`, read one at a time from a diffusers folder; nothing of it is built.

A component is a folder of one or several safetensors files. Text encoders of transformers >= 5.6 have no `text_model.`
in their paths, older files have; both are found.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from trainer import bases, foreign_json
from trainer.errors import AdapterError, ModelError
from trainer.lora_file.header import read_header

if TYPE_CHECKING:
    from torch import Tensor

COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")
_END = ".weight"


@dataclass(frozen=True)
class Weights:
    """Where each weight of a model's denoiser and text encoders lies."""

    folder: Path
    files: dict[str, tuple[Path, str]]  # path without `text_model.` -> file, name in it
    shapes: dict[str, tuple[int, ...]]

    def get(self, path: str) -> Tensor:
        """A weight by `component.module.path`. Raises: ModelError if there is none."""
        plain = path.replace(".text_model.", ".")
        if plain not in self.files:
            raise ModelError(f"base {str(self.folder)!r} has no weight {path}; it is another model than the LoRA's.")
        file, name = self.files[plain]
        try:
            with safe_open(file, "pt") as opened:
                weight: Tensor = opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file.name} of base {str(self.folder)!r} can't be read: {error}") from None
        return weight


def open_weights(folder: Path) -> Weights:
    """The weights of a diffusers folder, or of any base that is laid out as such a folder; only shapes are read.

    Raises: ModelError.
    """
    folder = bases.folder_of(str(folder))
    if not (folder / "model_index.json").is_file():
        raise ModelError(f"{str(folder)!r} is no diffusers pipeline folder: it has no model_index.json.")
    # Only headers are read here; `Weights.get` reads the tensors one by one.
    files: dict[str, tuple[Path, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for component in COMPONENTS:
        for file in _files(folder / component):
            with _as_model(folder):
                header = read_header(file)
            for name, shape in header.shapes.items():
                if name.endswith(_END):
                    plain = f"{component}.{name.removesuffix(_END)}".replace(".text_model.", ".")
                    files[plain], shapes[plain] = (file, name), shape
    if not files:
        raise ModelError(
            f"{str(folder)!r} has no safetensors weights in {', '.join(COMPONENTS)}; pickled ones (.bin, .ckpt) are "
            f"not opened."
        )
    return Weights(folder, files, shapes)


def _files(folder: Path) -> Iterator[Path]:
    """The safetensors files of a component: those its index names, or the only file.

    Where a full-precision and a float16 file lie side by side, it is the full-precision one.
    """
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            names = sorted(set(foreign_json.table(index)["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise ModelError(f"{str(index)!r} can't be read; it must name the files of the weights.") from None
        if any(Path(name).name != name for name in names):
            raise ModelError(f"{str(index)!r} names files outside its folder.")
        yield from (folder / name for name in names)
        return
    files = sorted(folder.glob("*.safetensors"), key=lambda path: (".fp16." in path.name, path.name))
    yield from files[:1]


@contextmanager
def _as_model(folder: Path) -> Iterator[None]:
    """Make what is said of a LoRA file, for the body, a ModelError of the base."""
    try:
        yield
    except AdapterError as error:
        raise ModelError(f"base {str(folder)!r}: {error}") from None
