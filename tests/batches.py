"""Small batches: an engine that paints single colours, and files of rows and LoRAs to draw with it."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from trainer import lora_file
from trainer.config import StackConfig
from trainer.errors import AdapterError
from trainer.render import batch, batch_ledger, jobs_file, picture_metadata

if TYPE_CHECKING:
    from app.context import Context

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def context_with_a_fox(tmp_path: Path, tiny: Path) -> Context:
    """A workspace of the page with the tiny base and one LoRA."""
    from app import ui

    context = ui.open_workspace(tmp_path / "workspace", [str(tiny)])
    parts = {"lora_down.weight": torch.full((1, 32), 0.3), "lora_up.weight": torch.ones(32, 1)}
    lora_file.save(context.loras / "fox.safetensors", {LAYER: parts}, {}, torch.float32)
    context.find_loras()
    return context


class Painter:
    """An engine that draws its recipe's hash as one colour, and a batch's company as another: quick, and as exact as
    the real one.
    """

    def __init__(self) -> None:
        self.drawn: list[str] = []

    def resolve(self, stack: StackConfig) -> StackConfig:
        for adapter in stack.adapters:
            if not Path(adapter.file).is_file():
                raise AdapterError(f"LoRA file {adapter.file!r} can't be read.")
        return stack

    def render(self, stack: StackConfig) -> picture_metadata.Picture:
        return next(iter(self.render_all([stack])))

    def render_all(self, stacks: Iterable[StackConfig]) -> Iterator[picture_metadata.Picture]:
        company = list(stacks)
        recipes = [stack.model_dump_json() for stack in company]
        for stack, own in zip(company, recipes, strict=True):
            picture = Image.new("RGB", (8, 8), tuple(hashlib.sha256(own.encode()).digest()[:3]))
            picture.putpixel((0, 0), tuple(hashlib.sha256("".join(recipes).encode()).digest()[:3]))
            self.drawn.append(own)
            yield picture_metadata.Picture(picture, stack, "text")


def lora(path: Path, value: float) -> Path:
    parts = {"lora_down.weight": torch.full((1, 32), value), "lora_up.weight": torch.ones(32, 1)}
    lora_file.save(path, {LAYER: parts}, {}, torch.float32)
    return path


def jobs(path: Path, rows: Iterable[Iterable[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def defaults(tiny: Path, **options: object) -> jobs_file.Defaults:
    return jobs_file.Defaults(**{"base": str(tiny), "size": "32x32", "steps": 2, **options})  # type: ignore[arg-type]


def plan_of(path: Path, tiny: Path, **options: object) -> batch_ledger.Plan:
    return batch_ledger.make(jobs_file.read(path, defaults(tiny, **options)))


def draw(
    path: Path, tiny: Path, out: Path, painter: Painter | None = None, sheets: bool = False, **options: object
) -> batch.Ended:
    painter = painter or Painter()
    last = list(batch.run(plan_of(path, tiny, **options), out, lambda base, family: painter, sheets=sheets))[-1]
    assert isinstance(last, batch.Ended)
    return last


def files(out: Path) -> dict[str, bytes]:
    paths = [
        path
        for path in out.rglob("*.png")
        if not {batch_ledger.HIDDEN, "contact-sheets"} & set(path.relative_to(out).parts)
    ]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def manifest(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))
