"""`velatura bench stack`: our engine against diffusers' own adapters, on the same files, in one run.

A step is one call of the denoiser on both halves of guidance. Ours has its adapters folded in; diffusers has them
loaded and set with `set_adapters`, as its documentation shows. All LoRAs are random, of rank 16 on attention. Times are
medians.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from trainer import lora_file
from trainer.bench import training
from trainer.config import AdapterChoice, StackConfig
from trainer.render import grid, pipeline_call
from trainer.render.engine import Engine

MODELS = ("imprimatura", "sd15", "sdxl-blocks")
_RESIDENT, _RANK, _COUNTS = 16, 16, (1, 2, 4, 8)
_SIDE_PX = {"imprimatura": 128, "sd15": 512, "sdxl-blocks": 512}
_TIMES = {"imprimatura": 30, "sd15": 3, "sdxl-blocks": 3}
_GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Row:
    """One thing measured: our seconds (or bytes), theirs, and theirs over ours: above 1 we are faster."""

    model: str
    what: str
    ours: float
    theirs: float | None
    unit: str = "s"

    @property
    def ratio(self) -> float | None:
        return self.theirs / self.ours if self.theirs and self.ours else None

    def written(self) -> str:
        """A line of JSON, which is what passes between processes."""
        return json.dumps(asdict(self))


def run(models: list[str]) -> Iterator[Row]:
    """The table, row by row."""
    for model in models:
        with tempfile.TemporaryDirectory(prefix="velatura-bench-") as scratch:
            yield from _model(model, Path(scratch))


def _model(model: str, scratch: Path) -> Iterator[Row]:
    base = _base(model, scratch)
    engine = Engine(base)
    files = [random_lora(engine, scratch / f"lora{number}.safetensors", number) for number in range(_RESIDENT)]
    pipe = engine.family.load(engine.folder, str(engine.pipe.device), engine.pipe.dtype)

    # Theirs, all loaded.
    for number, file in enumerate(files):
        pipe.load_lora_weights(
            str(file.parent), weight_name=file.name, adapter_name=f"a{number}", low_cpu_mem_usage=False
        )

    # A step, by the number of adapters.
    step, times = _step(engine, model), _TIMES[model]
    for count in _COUNTS:
        folded = engine.resolve(stack_of(base, files[:count]))
        pipe.set_adapters([f"a{number}" for number in range(count)], [1.0] * count)
        alone, ours, theirs = in_turn(
            [
                (engine.restore, lambda: step(engine.pipe)),
                (partial(engine.fold, folded), lambda: step(engine.pipe)),
                (nothing, lambda: step(pipe)),
            ],
            times,
        )
        yield Row(
            model,
            f"step, {count} adapter{'s' if count > 1 else ''} (base alone {alone:.4f} s, x {ours / alone:.2f})",
            ours,
            theirs,
        )

    # Changes, and on the small model a grid.
    yield from _changes(model, engine, pipe, files, step)
    if model == "imprimatura":
        yield _grid(engine, pipe, files[:2])


def _changes(model: str, engine: Engine, pipe: Any, files: list[Path], step: Callable[[Any], None]) -> Iterator[Row]:
    """Weights changed and an adapter swapped, every adapter read before."""
    # Everything is read once before.
    for file in files:
        engine.fold(engine.resolve(stack_of(engine.base, [file])))
    # Another weight each time, or there would be nothing to change.
    turn = iter(range(10_000))

    def weigh() -> None:
        engine.fold(engine.resolve(stack_of(engine.base, files[:2], [0.5 + next(turn) % 7 / 10, 1.0])))

    def weigh_theirs() -> None:
        pipe.set_adapters(["a0", "a1"], [0.5 + next(turn) % 7 / 10, 1.0])

    weigh()
    yield compared(model, f"change a weight of two, {_RESIDENT} resident", weigh, weigh_theirs, 7)

    def weigh_and_step() -> None:
        weigh()
        step(engine.pipe)

    def weigh_and_step_theirs() -> None:
        weigh_theirs()
        step(pipe)

    yield compared(
        model, "change a weight of two and take a step", weigh_and_step, weigh_and_step_theirs, _TIMES[model]
    )

    def swap() -> None:
        engine.fold(engine.resolve(stack_of(engine.base, [files[next(turn) % _RESIDENT]])))

    def swap_theirs() -> None:
        pipe.delete_adapters("a0")
        pipe.load_lora_weights(
            str(files[0].parent), weight_name=files[0].name, adapter_name="a0", low_cpu_mem_usage=False
        )
        pipe.set_adapters(["a0"], [1.0])

    yield compared(model, "swap the adapter", swap, swap_theirs, 5)
    yield Row(model, "memory of a resident adapter", engine.shelf.num_bytes / _RESIDENT / 2**20, None, "MiB")
    engine.restore()


def _grid(engine: Engine, pipe: Any, files: list[Path]) -> Row:
    """A sheet of 5 x 5 weights of two adapters."""
    stack = stack_of(engine.base, files).model_copy(update={"steps": 20})

    def theirs() -> None:
        for row in _GRID:
            for column in _GRID:
                pipe.set_adapters(["a0", "a1"], [row, column])
                pipeline_call.draw(pipe, stack)

    began = time.perf_counter()
    grid.weight_grid(engine, stack, [list(_GRID), list(_GRID)])
    between = time.perf_counter()
    theirs()
    return Row("imprimatura", "grid of 5 x 5 weights, 20 steps", between - began, time.perf_counter() - between)


def _base(model: str, scratch: Path) -> str:
    if model == "sdxl-blocks":
        return str(_sdxl_blocks(scratch / "sdxl"))
    return training.prepare(model, scratch)


def _sdxl_blocks(folder: Path) -> Path:
    """A random UNet with blocks of SDXL's own widths and depths (320, 640, 1280; 2 and 10 transformer layers), one of
    each kind, in bfloat16.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        str(Path(__file__).parents[1] / "imprimatura" / "tokenizer"), local_files_only=True, model_max_length=77
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
            block_out_channels=(320, 640, 1280), layers_per_block=1,
            transformer_layers_per_block=(1, 2, 10),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        )  # fmt: skip
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        vae = AutoencoderKL(block_out_channels=(32, 64, 64, 64), latent_channels=4, norm_num_groups=8, **kinds)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=2048, intermediate_size=4096, num_hidden_layers=2,
            num_attention_heads=16, max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        encoder = CLIPTextModel(text)
    finally:
        torch.set_default_dtype(before)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae, encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(str(folder))
    return folder


def random_lora(engine: Engine, path: Path, seed: int) -> Path:
    """A file of a random LoRA on the denoiser's attention, in its family's own names."""

    rng, parts, start = torch.Generator().manual_seed(seed), {}, f"{engine.component}."
    pattern = re.compile(engine.family.targets["attention"])
    for name, (out, into, *_) in engine.shapes.items():
        if not name.startswith(start) or not pattern.fullmatch(name.removeprefix(start)):
            continue
        down, up = torch.randn(_RANK, into, generator=rng) / into**0.5, torch.randn(out, _RANK, generator=rng) * 0.01
        kohya = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(float(_RANK))}
        parts[engine.file_keys[name]] = (
            kohya if engine.family.file_names == "kohya" else {"lora_A.weight": down, "lora_B.weight": up}
        )
    lora_file.save(path, parts, {}, torch.float16)
    return path


def stack_of(base: str, files: list[Path], weights: list[float] | None = None, family: str = "sd") -> StackConfig:
    """A stack of these files on a base, at weight 1 if none are given."""
    chosen = zip(files, weights or [1.0] * len(files), strict=True)
    return StackConfig(
        base=base,
        family=family,
        prompt="a fox",
        adapters=tuple(AdapterChoice(file=str(file), weight=weight) for file, weight in chosen),
    )


def _step(engine: Engine, model: str) -> Callable[[Any], None]:
    """One call of a pipeline's denoiser on the same random latents, both halves of guidance."""
    side = _SIDE_PX[model] // engine.pipe.vae_scale_factor
    config, rng = engine.pipe.unet.config, torch.Generator().manual_seed(0)
    kind: torch.dtype = engine.pipe.unet.dtype
    latents = torch.randn(2, config.in_channels, side, side, generator=rng).to(engine.pipe.device, kind)
    hidden = torch.randn(2, 77, config.cross_attention_dim, generator=rng).to(engine.pipe.device, kind)

    def call(pipe: Any) -> None:
        with torch.no_grad():
            float(pipe.unet(latents, 500, hidden).sample.float().sum())

    return call


def compared(model: str, what: str, ours: Callable[[], None], theirs: Callable[[], None], times: int) -> Row:
    our_seconds, their_seconds = in_turn([(nothing, ours), (nothing, theirs)], times)
    return Row(model, what, our_seconds, their_seconds)


def nothing() -> None:
    """Nothing to be done before."""


def in_turn(calls: list[tuple[Callable[[], None], Callable[[], None]]], times: int) -> list[float]:
    """Median seconds of the second of each pair, the first done before it; called in turn, the first round not
    counted.
    """
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(times + 1):
        for (before, call), seconds in zip(calls, found, strict=True):
            before()
            training.synchronize()
            began = time.perf_counter()
            call()
            training.synchronize()
            seconds.append(time.perf_counter() - began)
    return [statistics.median(seconds[1:]) for seconds in found]


def describe(rows: list[Row]) -> str:
    """The table for people."""
    return "\n".join([f"{'model':<13}{'what':<56}{'Velatura':>12}{'diffusers':>12}{'ratio':>8}", *map(line, rows)])


def line(row: Row) -> str:
    """A row of the table."""
    theirs = f"{row.theirs:.4f}" if row.theirs is not None else ""
    ratio = f"{row.ratio:.2f}" if row.ratio else ""
    return f"{row.model:<13}{row.what:<56}{row.ours:>10.4f} {row.unit:<3}{theirs:>10}{ratio:>8}"
