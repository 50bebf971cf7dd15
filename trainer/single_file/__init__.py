"""Checkpoints as one .safetensors file: which model it is, and the diffusers folder it is laid out as.

`head` reads a file's header, `detecting` tells the model, `blueprints` has the parts of each architecture, `planning`
finds where each part comes from, `converting` keeps the folders and `folder_writing`, with `texts`, writes one.
"""

from trainer.single_file.converting import convert, sha256, written_bytes
from trainer.single_file.detecting import Detected, detect, refuse_strangers, trained_here
from trainer.single_file.head import Head, read_head
from trainer.single_file.planning import Plan, Wishes, plan, refuse_missing

__all__ = [
    "Detected",
    "Head",
    "Plan",
    "Wishes",
    "convert",
    "detect",
    "plan",
    "read_head",
    "refuse_missing",
    "refuse_strangers",
    "sha256",
    "trained_here",
    "written_bytes",
]
