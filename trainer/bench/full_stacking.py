"""`velatura bench stack --size full`: the stacking bench on random denoisers of full size, in a process of its own for
each model.

A step is one call of the denoiser: both halves of guidance where it is classifier-free, one picture where it is
distilled. Theirs are loaded and set, not fused, as diffusers' documentation shows; files were written just before, so
reading them is reading the system's cache. Both denoisers and theirs' adapters are held at once: about three times the
base.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainer import bases
from trainer.bench import folding, full_size, stacking
from trainer.bench.stacking import Row
from trainer.errors import ConfigError
from trainer.render.engine import Engine

MODELS = ("sdxl", "flux")
_COUNTS = (1, 4, 8)  # of adapters on at once; the last are resident


def run(models: list[str], depth: int | None, size_px: int) -> Iterator[Row]:
    """The table, row by row. Raises: ConfigError."""
    if depth is None and bases.hardware("auto", "auto")[0] == "cpu":
        raise ConfigError("there is no GPU here, and whole models are for one; on a CPU add --depth 1.")
    for model in models:
        command = [sys.executable, "-m", "trainer", "bench", "one-stack", model, "--size-px", str(size_px)]
        if depth:
            command += ["--depth", str(depth)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:  # its errors are shown as they come
            assert child.stdout
            for line in child.stdout:
                if line.startswith("{"):
                    yield Row(**json.loads(line))
        if child.returncode:
            raise ConfigError(
                f"stacking on {model} ended with status {child.returncode}; what it died of stands above."
            )


def measure(model: str, depth: int | None, size_px: int) -> Iterator[Row]:
    """The rows of a model in this process, which is there for nothing else: how bases are opened is replaced in it."""
    bases.open_pipeline = full_size.open_pipeline
    with tempfile.TemporaryDirectory(prefix="velatura-bench-") as scratch:
        folder = full_size.write(model, depth, Path(scratch) / "base")
        yield from _Bench(model, Engine(str(folder), full_size.FAMILIES[model]), Path(scratch), size_px).rows()


class _Bench:
    """One model: our engine, and a pipeline with diffusers' adapters on the same weights."""

    def __init__(self, model: str, engine: Engine, scratch: Path, size_px: int) -> None:
        self.model, self.engine, self.family = model, engine, engine.family
        self.files = [
            stacking.random_lora(engine, scratch / f"lora{number}.safetensors", number)
            for number in range(sum(_COUNTS))
        ]
        device = str(engine.pipe.device)
        self.pipe = full_size.open_pipeline(self.family, engine.folder, device, engine.pipe.dtype)
        self.times = folding.times(engine)
        self.call = self._call(size_px)
        self._ours = folding.Changing(engine, self.files)

    def rows(self) -> Iterator[Row]:
        yield from self._first_folds()
        files = self.files[-_COUNTS[-1] :]  # the last of them, which are all read and loaded now
        yield from self._steps(files)
        yield from self._changes(files)

    def _call(self, size_px: int) -> Callable[[Any], None]:
        """One call of a pipeline's denoiser on the same random latents."""
        engine, rows = self.engine, 1 if self.family.guidance == "distilled" else 2
        device, kind = engine.pipe.device, engine.pipe.dtype
        with torch.no_grad():
            latents = self.family.encode_image(engine.pipe, torch.zeros(1, 3, size_px, size_px))
            (encoded,) = self.family.encode_text(engine.pipe, ["a fox"], 1)
        noised = torch.randn((rows, *latents.shape[1:]), generator=torch.Generator().manual_seed(0)).to(device, kind)
        frame = torch.tensor([size_px, size_px, 0, 0, size_px, size_px], device=device)
        conditioning = self.family.prepare_batch([{**encoded, "frame": frame}] * rows)
        timesteps = torch.full((rows,), 500, device=device)

        def call(pipe: Any) -> None:
            with torch.no_grad():
                self.family.denoise(getattr(pipe, engine.component), noised, timesteps, conditioning)

        return call

    def _first_folds(self) -> Iterator[Row]:
        """Files that nobody has read yet, so many at once, ours folded and theirs loaded and set."""
        start = 0
        for count in _COUNTS:
            files = self.files[start : start + count]
            start += count
            ours = folding.seconds(lambda files=files: self.engine.fold(self._ours.stack(files)))  # type: ignore[misc]
            theirs = folding.seconds(partial(self._load, files))
            yield Row(self.model, f"first fold of {count} from disk", ours, theirs)
            self.engine.restore()
            # The last of them stay loaded: they are resident in what follows.
            if count != _COUNTS[-1]:
                self.pipe.delete_adapters(_names(count))

    def _load(self, files: list[Path]) -> None:
        names = _names(len(files))
        for file, name in zip(files, names, strict=True):
            self.pipe.load_lora_weights(
                str(file.parent), weight_name=file.name, adapter_name=name, low_cpu_mem_usage=False
            )
        self.pipe.set_adapters(names, [1.0] * len(names))

    def _steps(self, files: list[Path]) -> Iterator[Row]:
        for count in _COUNTS:
            folded = self._ours.stack(files[:count])
            self.pipe.set_adapters(_names(count), [1.0] * count)
            alone, ours, theirs = stacking.in_turn(
                [
                    (self.engine.restore, lambda: self.call(self.engine.pipe)),
                    (partial(self.engine.fold, folded), lambda: self.call(self.engine.pipe)),
                    (stacking.nothing, lambda: self.call(self.pipe)),
                ],
                self.times,
            )
            yield Row(self.model, f"step, {count} on (base alone {alone:.4f} s, x {ours / alone:.2f})", ours, theirs)

    def _changes(self, files: list[Path]) -> Iterator[Row]:
        """Weights changed, an adapter swapped and the base put back, every adapter read before."""
        engine, pipe, ours = self.engine, self.pipe, folding.Changing(self.engine, files)

        def weigh_theirs() -> None:
            pipe.set_adapters(_names(2), [ours.weight(), 1.0])

        def swap_theirs() -> None:
            pipe.delete_adapters("a0")
            pipe.load_lora_weights(
                str(files[0].parent), weight_name=files[0].name, adapter_name="a0", low_cpu_mem_usage=False
            )
            pipe.set_adapters(["a0"], [1.0])

        # Once before it is measured.
        ours.weigh()
        yield stacking.compared(self.model, folding.CHANGE, ours.weigh, weigh_theirs, self.times)
        yield stacking.compared(self.model, f"swap among {len(files)} resident", ours.swap, swap_theirs, self.times)
        (back,) = stacking.in_turn([(ours.swap, engine.restore)], self.times)
        yield Row(self.model, "put back the base", back, None)
        yield Row(
            self.model, "memory of a resident adapter", engine.shelf.num_bytes / len(self.files) / 2**20, None, "MiB"
        )


def _names(count: int) -> list[str]:
    return [f"a{number}" for number in range(count)]
