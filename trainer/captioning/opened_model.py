"""A folder with a model of transformers -> its processor and its model, ready to look at pictures.

Files that run code when they are read are refused before transformers is asked, which would take them where there is
nothing else; code that comes with a model is never run; nothing is looked for outside the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from trainer import bases, foreign_json
from trainer.errors import ModelError
from trainer.lazy import torch, transformers

_MAX_TOKENS = 300  # of an answer, unless the model's own settings say fewer
_INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# What transformers raises for a folder that is put together wrongly.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, AssertionError,
            SafetensorError)  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """A model on its device, and the processor that makes its inputs."""

    processor: Any
    model: Any
    name: str

    def generated(self, inputs: Any) -> Any:
        """The tokens it answers with, (1, T), the most likely at each place. Raises: ModelError."""
        with in_words(self.name, "can't look at a picture"), torch.inference_mode():
            moved = inputs.to(self.model.device, dtype=self.model.dtype)
            # The model's own limit where it is shorter.
            own = self.model.generation_config.max_new_tokens or _MAX_TOKENS
            return self.model.generate(**moved, max_new_tokens=min(own, _MAX_TOKENS), do_sample=False, num_beams=1)

    def text(self, tokens: Any, keep_marks: bool = False) -> str:
        """Tokens (T,) as text, with the model's own marks only if asked for. Raises: ModelError."""
        with in_words(self.name, "can't say what it sees"):
            return str(self.processor.decode(tokens, skip_special_tokens=not keep_marks))


def config_of(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises: ModelError."""
    path = folder / "config.json"
    try:
        return foreign_json.table(path)
    except FileNotFoundError:
        lacks = "has no config.json" if folder.is_dir() else "is no folder"
    except (OSError, ValueError) as error:
        lacks = f"has a config.json that can't be read ({str(error)[:200]})"
    raise ModelError(
        f"the captioning model {str(folder)[:400]!r} {lacks}; allowed: a folder with config.json and *.safetensors, as "
        f"it is downloaded from the hub."
    )


def check_weights(folder: Path, advice: str = "") -> None:
    """Raises: ModelError if the folder has no safetensors, or not all that its index names."""
    if (folder / _INDEX).is_file():
        with in_words(folder.name, f"has a {_INDEX} that can't be read"):
            # Files beside the index alone: a path could lead anywhere.
            names = {str(name) for name in foreign_json.table(folder / _INDEX)["weight_map"].values()}
            lost = sorted(name for name in names if "/" in name or "\\" in name or not (folder / name).is_file())
        if lost:
            raise ModelError(f"{folder.name} lacks {lost[0][:120]}, which its index names; download that file again.")
    elif not (folder / "model.safetensors").is_file():
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        found = f"only {pickles[0]}, which can run any code when it is read" if pickles else "no weights"
        raise ModelError(f"{folder.name} has {found}; allowed: model.safetensors.{advice}")


def opened(folder: Path) -> Opened:
    """The model in a folder whose weights were checked. Raises: ModelError."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device, dtype = bases.hardware("auto", "auto")
    local: dict[str, bool] = {"local_files_only": True}
    with in_words(folder.name, "can't be opened"):
        try:
            processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=False, **local)
        except ImportError:
            # Models that see videos too want torchvision, which may not be there.
            from trainer.captioning import still_pictures

            processor = still_pictures.processor(folder, str(config_of(folder).get("model_type")))
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, trust_remote_code=False, use_safetensors=True, dtype=dtype, **local
        )
        return Opened(processor, model.to(device).eval(), folder.name)


@contextmanager
def in_words(name: str, what: str) -> Iterator[None]:
    """What transformers says of a model that doesn't fit together, in a sentence. Raises: ModelError."""
    try:
        yield
    except ImportError as error:
        library = "torchvision" if "orchvision" in str(error) else " ".join(str(error).split())[:200]
        raise ModelError(f"{name} needs {library}, which is not installed; install it (pip install ...).") from None
    except torch.OutOfMemoryError:
        raise ModelError(f"{name} doesn't fit into this machine's memory; use a smaller model.") from None
    except _DAMAGED as error:
        raise ModelError(f"{name} {what} ({type(error).__name__}: {' '.join(str(error).split())[:300]}).") from None
