"""The Stack tab for programs: pictures and sheets, how the LoRAs meet, one LoRA of all, and saved stacks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from app import grids, path_gate, recipes, saved_stacks, sheets, stack_analysis
from app.context import Context
from app.endpoints.asking import File, Name, Settings, uploads
from app.endpoints.rows import address, lora_row
from app.render_requests import Rendering
from app.stack_pictures import Make
from app.texts import say
from trainer.config import StackConfig, parse
from trainer.errors import ConfigError
from trainer.printing import some

Rank = Annotated[int, Field(ge=0, le=stack_analysis.MAX_RANK)]
Axes = Annotated[list[Annotated[list[str], Field(min_length=2, max_length=2)]], Field(min_length=1, max_length=3)]


class StackEndpoints:
    """What can be asked of stacks; every public method is an endpoint.

    `stack` is what a stack's file says; a LoRA is named by `file`, its name in the library, or by `sha256`.
    """

    def __init__(self, context: Context) -> None:
        self.context = context

    def loras(self) -> list[dict[str, Any]]:
        """The LoRAs: name, sha256, trigger, family, method and rank of each."""
        return [lora_row(info) for info in self.context.find_loras().values()]

    # Pictures.

    def render(self, stack: Settings) -> dict[str, Any]:
        """A picture of a stack: its name, address, A1111 text and seed, and what its LoRAs say of another base."""
        from trainer.render.picture_metadata import save  # loads torch

        config = self._stack(stack)
        with self.context.engine(config) as engine:
            picture = engine.render(config)
            warnings = engine.warnings(picture.stack)
        # Written once the engine is free for whoever waits.
        path = save(picture, self.context.renders)
        return {
            "name": path.name, "address": address(self.context, path), "text": picture.infotext,
            "seed": picture.stack.seed, "warnings": warnings,
        }  # fmt: skip

    def sheet(self, stack: Settings, axes: Axes) -> dict[str, Any]:
        """A sheet of a stack over one to three settings, columns first: its address, and each cell's label and address.

        An axis is a setting and its values as typed: ["weight 1", "0, 0.5, 1"], ["seed", "1, 2"], ["prompt", "a | b"],
        ["checkpoint", RUN].
        """
        config = self._stack(stack)
        # Columns come first here, and last in what draws.
        typed = [(setting, values) for setting, values in axes[::-1]]
        # On the page a number is that of a row, which may be empty or muted; here it is the place in the stack.
        places = {number: number - 1 for number in range(1, len(config.adapters) + 1)}
        return self._drawn(config, grids.grid_of(self.context, config, typed, places), grids.GRID)

    def sheet_of_each(self, stack: Settings) -> dict[str, Any]:
        """The base, each LoRA alone, all but each, and all together, as a sheet."""
        config = self._stack(stack)
        return self._drawn(config, lambda engine, rendering: sheets.of_each(engine, config, rendering), sheets.STRIP)

    def sheet_of_modes(self, stack: Settings) -> dict[str, Any]:
        """The stack in every mode that it can be drawn in, as a sheet."""
        config = self._stack(stack)
        return self._drawn(
            config, lambda engine, rendering: sheets.of_modes(engine, config, rendering), stack_analysis.MODES
        )

    # How the LoRAs meet.

    def analyse_stack(self, stack: Settings) -> dict[str, Any]:
        """How a stack's LoRAs meet: the conflict map as numbers.

        Of each LoRA its strength by block; of each pair cosine, overlap and interference by block; of the sum its
        strength against the strongest LoRA. `unseen` are settings that were left out of account.
        """
        config = self._stack(stack)
        report = self.context.analyse(config)
        return {
            "verdict": report.verdict, "warnings": report.warnings, "not_analysed": report.not_analysed,
            "unseen": stack_analysis.unseen(config),
            "loras": [
                {"name": lora.name, "sha256": lora.sha256, "weight": lora.weight, "energy": lora.total.energy,
                 "relative": lora.total.relative, "ranks": list(lora.ranks),
                 "blocks": {name: strength.energy for name, strength in lora.blocks.items()}}
                for lora in report.adapters
            ],
            "pairs": [
                {"names": list(pair.names), "cosine": pair.total.cosine, "overlap": pair.total.overlap,
                 "chance": pair.total.chance, "interference": pair.total.interference,
                 "blocks": {name: meeting.interference for name, meeting in pair.blocks.items()}}
                for pair in report.pairs
            ],
            "sum": {"energy": report.total.energy, "ratio": report.total.ratio, "relative": report.total.relative,
                    "strongest": report.total.strongest_name},
        }  # fmt: skip

    def balance_stack(self, stack: Settings) -> dict[str, Any]:
        """The weights at which the stack is as strong as its strongest LoRA alone, in its order, and why."""
        from trainer.render import analysis  # loads torch

        balance = analysis.balance(self.context.analyse(self._stack(stack)))
        return {"weights": balance.weights, "text_weights": balance.text_weights, "reason": balance.reason}

    def bake_stack(self, stack: Settings, name: Name, rank: Rank = 0) -> dict[str, Any]:
        """One LoRA of the whole stack, in the library; exact for rank 0. Its row, address, and what share is lost."""
        if not name.strip():
            raise ConfigError(say("analysis.no_name"))
        baked = self.context.bake(self._stack(stack), name.strip(), rank)
        info = path_gate.named(self.context, str(baked.path), say("word.lora"))
        told = {"rank": baked.rank, "lost": baked.residual, "address": address(self.context, baked.path)}
        return lora_row(info) | told

    # Saved stacks.

    def stacks(self) -> list[str]:
        """Names of the saved stacks, the newest first."""
        return [path.stem for path in saved_stacks.every(self.context)]

    def stack(self, stack: Name) -> dict[str, Any]:
        """A saved stack as its file says it, its LoRAs by hash; `render` takes it as it is."""
        return _plain(saved_stacks.settings(self._saved(stack)))

    def save_stack(self, stack: Settings, name: Name) -> str:
        """Save a stack under a name; as it is called, with a number behind it where the name is taken."""
        if not name.strip():
            raise ConfigError(say("stack.no_name"))
        return saved_stacks.save(self.context, self._stack(stack), name.strip()).stem

    def read_picture(self, file: File) -> dict[str, Any]:
        """The stack that an uploaded picture was made with, ours or another tool's, and what of it can't be used."""
        with uploads(self.context, [file]) as paths:
            stack, notes = recipes.read_picture(self.context, paths[0])
        return {"stack": _plain(stack), "notes": notes}

    def read_text(self, text: str) -> dict[str, Any]:
        """The stack that a text tells of, as the page opens it, and what of it can't be used.

        A picture's text as A1111 and others write it, a ComfyUI graph as JSON, or a stack of ours as JSON or TOML.
        """
        stack, notes = recipes.read_text(self.context, text)
        return {"stack": _plain(stack), "notes": notes}

    def _stack(self, stack: Settings) -> StackConfig:
        """The stack with what it names found here. Raises: ConfigError, AdapterError."""
        return path_gate.checked(self.context, parse(StackConfig, stack, say("where.stack")))

    def _saved(self, name: str) -> Path:
        """The file of a saved stack. Raises: ConfigError."""
        every = {path.stem: path for path in saved_stacks.every(self.context)}
        if name not in every:
            allowed = some(list(every)) or say("word.none_yet")
            raise ConfigError(say("api.no_stack", name=name[:80], allowed=allowed))
        return every[name]

    def _drawn(self, stack: StackConfig, make: Make, name: str) -> dict[str, Any]:
        """A sheet as it is answered."""
        rendering = Rendering()
        with self.context.engine(stack, rendering) as engine:
            sheet = make(engine, rendering)
        path = sheets.save(sheet, self.context.renders, f"{name}{stack.seed}")
        cells = sheets.cells_of(path)
        places = zip(cells.labels, cells.paths, strict=True) if cells else []
        return {
            "name": path.name, "address": address(self.context, path),
            "cells": [{"label": label, "address": address(self.context, cell)} for label, cell in places],
        }  # fmt: skip


def _plain(stack: StackConfig) -> dict[str, Any]:
    """What a stack's file says, without a place of this machine."""
    from trainer.render.picture_metadata import travelling  # loads torch

    return {key: value for key, value in travelling(stack).items() if value is not None}
