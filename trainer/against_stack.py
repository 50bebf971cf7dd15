"""Training against a stack: LoRAs that lie on the base while the new LoRA learns, and a penalty for doing what they do.

They are folded into the weights before anything else happens, so they cost nothing a step and the new adapter's zero is
the base with them. The overlap is the share of the new update that reads what theirs reads and writes where theirs
writes: with Q_out, Q_in orthonormal bases of the columns of their up and the rows of their down,
sum |Q_out^T dW Q_in|^2 over the layers, over sum |dW_theirs|^2. It needs r x r products only.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from torch import Tensor

from trainer import base_match, lora_file
from trainer.errors import ConfigError

Bases = dict[str, tuple[Tensor, Tensor]]  # module path -> Q_out (out, r), Q_in (in, r)


def parse(lines: tuple[str, ...]) -> list[tuple[Path, float]]:
    """Files and weights. Raises: ConfigError for a line that can't be read, or a file that isn't there."""
    stack = []
    for line in lines:
        file, weight = split(line)
        if not lora_file.is_there(Path(file)):
            raise ConfigError(
                f"against.adapters has {line!r}: no such file; write it as FILE:WEIGHT, such as fox.safetensors:0.8."
            )
        if not -2 <= float(weight) <= 2:
            raise ConfigError(f"against.adapters has {line!r}: weight is {weight}; allowed: -2 to 2.")
        # One of weight 0 is as if it were absent: no file is read, and no base is compared.
        if float(weight):
            stack.append((lora_file.located(Path(file)), float(weight)))
    return stack


def split(line: str) -> tuple[str, str]:
    """The file and the weight that a line FILE:WEIGHT names, "1" where it has none."""
    # A Windows path has a colon of its own, so the weight must read as a number, of bounded length.
    file, colon, weight = line.rpartition(":")
    return (file, weight) if colon and re.fullmatch(r"[-+]?(?:[0-9]{0,40}\.)?[0-9]{1,40}", weight) else (line, "1")


def digest(lines: tuple[str, ...]) -> str:
    """sha256 over the files of a stack, "" for none."""
    # With the configs beside them, which say what some of them mean.
    files = [file.read_bytes() + (lora_file.config_beside(file) or "").encode() for file, _ in parse(lines)]
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in files)).hexdigest() if files else ""


def strangers(lines: tuple[str, ...], base: base_match.Origin) -> list[str]:
    """A sentence for each LoRA of a stack that says that it is for another base."""
    return [warning for file, _ in parse(lines) if (warning := base_match.warning(file, base))]


@torch.no_grad()
def fold(lines: tuple[str, ...], weights: dict[str, Tensor], file_keys: dict[str, str]) -> tuple[Bases, float]:
    """Add the stack to the base's weights in place.

    Gives back the directions it uses by module path, and its squared norm at weight 1. Directions are those of low-rank
    updates; other methods' updates have all of them, and are left out.

    Raises: AdapterError if a file doesn't fit, before any weight is changed.
    """
    shapes = {path: tuple(weight.shape) for path, weight in weights.items()}
    loaded = [(factor, lora_file.read(file, file_keys, shapes)) for file, factor in parse(lines)]

    # One weight after the other: all LoRAs of the stack are added in float32, and rounded once.
    directions: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    energy = 0.0
    for path in {path for _, updates in loaded for path in updates}:
        base = weights[path]
        total = base.float()
        for factor, updates in loaded:
            if path not in updates:
                continue
            update = updates[path]
            change = update.dense(base, torch.float32).to(base.device)
            total = total + factor * change
            energy += float(change.square().sum())
            if isinstance(update, lora_file.Delta):
                outs, ins = directions.setdefault(path, ([], []))
                outs.append(update.up.flatten(1).float())  # (out, r)
                ins.append(update.down.flatten(1).float().T)  # (in, r)
        base.copy_(total)

    # Orthonormal bases of what all of them write and read together.
    spans = {
        path: (torch.linalg.qr(torch.cat(outs, 1))[0], torch.linalg.qr(torch.cat(ins, 1))[0])
        for path, (outs, ins) in directions.items()
    }
    return spans, energy


def overlap(bases: Bases, energy: float, pairs: dict[str, tuple[Tensor, Tensor, float]]) -> Tensor:
    """The overlap of the trained update, with its gradient; `pairs` has down, up and scale by module path.

    All of it lies on one device.
    """
    terms = []
    for path, (down, up, scale) in pairs.items():
        if path in bases:
            outs, ins = bases[path]
            # ||P_out (s U D) P_in||^2 with orthonormal bases: the part that writes and reads where the stack does.
            inside = scale * (outs.T @ up.flatten(1)) @ (down.flatten(1) @ ins)  # (r_out, r_in), never (out, in)
            terms.append(inside.square().sum())
    total: Tensor = sum(terms[1:], terms[0]) if terms else torch.zeros(())
    return total / max(energy, 1e-12)  # a share of the stack's own strength: the penalty means the same for every stack
