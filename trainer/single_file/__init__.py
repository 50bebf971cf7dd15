"""Checkpoints as one .safetensors file: which model it is, and the diffusers folder it is laid out as."""

from trainer.single_file.converting import Plan, Wishes, convert, plan, refuse_missing, sha256, written_bytes
from trainer.single_file.detecting import Detected, detect, refuse_strangers, trained_here
from trainer.single_file.head import Head, read_head

__all__ = [
    "Detected", "Head", "Plan", "Wishes", "convert", "detect", "plan", "read_head", "refuse_missing", "refuse_strangers", "sha256", "trained_here",
    "written_bytes",
]  # fmt: skip
