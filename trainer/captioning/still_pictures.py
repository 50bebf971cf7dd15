"""A processor of a model that can see videos too, for pictures alone.

transformers prepares videos with torchvision, which Velatura does without, and opens no processor of such a model
(Qwen-VL, SmolVLM, ...) where it is missing. Its parts for pictures and text need only Pillow: they are put together
here, and the part for videos stays empty. Tried with transformers 5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name

_VIDEO = "video_processor"
_PARTS = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}


def processor(folder: Path, model_type: str) -> Any:
    """The processor in a folder, without its part for videos.

    Raises: ImportError if it has none, so that something else is missing; for damage, what transformers raises.
    """
    whole = processor_class_from_name(PROCESSOR_MAPPING_NAMES.get(model_type, ""))
    if whole is None or _VIDEO not in whole.get_attributes() or {*whole.get_attributes()} - {_VIDEO, *_PARTS}:
        raise ImportError("torchvision")

    def parts(cls: Any, place: Any, *_: Any, **__: Any) -> list[Any]:
        local = {"local_files_only": True, "trust_remote_code": False}
        return [
            _PARTS[name].from_pretrained(place, **local) if name in _PARTS else None for name in cls.get_attributes()
        ]

    def check(self: Any, name: str, part: Any) -> Any:
        return None if name == _VIDEO else whole.check_argument_for_proper_class(self, name, part)

    # The same class but for these two: which parts it is made of, and that the part for videos may be missing.
    changed = {"_get_arguments_from_pretrained": classmethod(parts), "check_argument_for_proper_class": check}
    stills: Any = type(whole.__name__, (whole,), changed)
    return stills.from_pretrained(folder, local_files_only=True)
