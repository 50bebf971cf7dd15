"""One loop of `velatura bench gpu`, measured in this process, on a random base of full size (see `full_size`).

"ours" is a run as `session.start` makes it, from pictures on disk to steps; only how the base is opened is replaced.
"plain" is what diffusers' example scripts for LoRA do with their best flags: a base in bf16, the adapter in float32 on
the same layers, autocast, fused AdamW, latents and embeddings on the device beforehand. "plain-compiled" is that with
the denoiser's repeated blocks compiled, as diffusers' documentation shows.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import peft
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import cast_training_params
from filelock import FileLock
from peft import LoraConfig
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trainer import bases, families, session, system
from trainer.bench import full_size, profile, training
from trainer.events import Adjusted, Step
from trainer.memory import mechanics

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trainer.config import TrainConfig
    from trainer.families.contract import Family

LOOPS = ("plain", "plain-compiled", "ours")
RANK = 16
# 120 bytes
_CAPTION = (
    "number {}: a red dot on a white page, seen from above, with a thin black line around it and a soft grey "
    "shadow on its left"
)
_SIDE = {"cuda": 8192}  # of the products by which the device's peak is measured; elsewhere smaller


@dataclass(frozen=True)
class Job:
    """What one process is to measure; `base` and `pictures` are made there if they aren't yet."""

    model: str
    loop: str
    options: tuple[str, ...]  # settings of ours, KEY=VALUE
    batch: int
    warm: int
    steps: int
    size_px: int
    depth: int | None
    scratch: str

    @classmethod
    def read(cls, text: str) -> Job:
        values = json.loads(text)
        return cls(**{**values, "options": tuple(values["options"])})

    def written(self) -> str:
        return json.dumps(asdict(self))

    @property
    def base(self) -> Path:
        return Path(self.scratch) / f"base-{self.model}"

    @property
    def pictures(self) -> Path:
        return Path(self.scratch) / f"pictures-{self.batch}"


@dataclass(frozen=True)
class Measured:
    """What was found; seconds of each step after warm-up, bytes that were held meanwhile."""

    step_s: list[float]
    peak_bytes: int
    reserved_bytes: int  # by the allocator of a GPU, which keeps what CUDA graphs need out of the peak
    base_s: float  # to make the base
    first_step_s: float  # from there to the end of the first step: adapter, optimizer, compiling
    flop: int  # of a step of the plain loop; 0 where it isn't that loop
    peak_flop_per_s: float  # of large products, in this process
    device: dict[str, str]
    notes: list[str]

    @property
    def seconds(self) -> float:
        return statistics.median(self.step_s)


def config(job: Job) -> TrainConfig:
    """Our settings for a job: rank 16 on attention, no previews, and so many steps that `memory.compile=auto` compiles.
    Raises: ConfigError.
    """
    family = full_size.FAMILIES[job.model]
    overrides = [
        f"family={family}", f"base={job.base}", f"resolution_px={job.size_px}", f"batch_size={job.batch}",
        "max_steps=100000", f"adapter.rank={RANK}",
        f"adapter.alpha={RANK}", "learning_rate=1e-4", "preview_every_steps=0", "checkpoint_every_steps=100000",
        "data.caption_dropout=0", *job.options,
    ]  # fmt: skip
    return session.preset_config(training.PLAIN, str(job.pictures), None, overrides)


def measure(job: Job, gate: Callable[[], None]) -> Measured:
    """What a job takes, measured in this process, which is there for nothing else: how bases are opened is replaced.

    `gate` is called before the device is touched and again before the measured steps (see `side_by_side`).
    """
    # Imports are not the base's time.
    getattr(diffusers, families.registry()[full_size.FAMILIES[job.model]].pipeline)
    gate()
    device, dtype = bases.hardware("auto", "auto")
    about = _device(device, dtype)
    rate = profile.peak_rate(dtype, device, _SIDE.get(device, 1024))
    if device == "cuda":
        torch.cuda.empty_cache()  # of the products, which would count as reserved
    prepare(job)
    stood: list[float] = []  # when making the base began, and when it was there
    notes: list[str] = []

    def opened(family: Family, folder: Path, device: str, dtype: torch.dtype) -> Any:
        began = time.perf_counter()
        pipe = full_size.open_pipeline(family, folder, device, dtype)
        training.synchronize()
        stood[:] = [began, time.perf_counter()]
        return pipe

    bases.open_pipeline = opened
    step = _ours(job, notes) if job.loop == "ours" else _plain(job, device, dtype)

    # Warm-up, then the steps that count.
    seconds = []
    for number in range(job.warm + job.steps):
        if number == job.warm:
            gate()
            mechanics.reset_peak()
        began = time.perf_counter()
        step()
        training.synchronize()
        seconds.append(time.perf_counter() - began)
        if not number:
            first = time.perf_counter() - stood[1]

    # What was held, and one more step whose operations are counted.
    on_gpu = device == "cuda"
    peak, reserved = (
        (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if on_gpu else (mechanics.peak_bytes(), 0)
    )
    flop = _count(step, device) if job.loop == "plain" else 0
    return Measured(seconds[job.warm :], peak, reserved, stood[1] - stood[0], first, flop, rate, about, notes)


def prepare(job: Job) -> None:
    """Make the job's base and pictures, once of all processes that get ready side by side."""
    Path(job.scratch).mkdir(parents=True, exist_ok=True)
    with FileLock(str(Path(job.scratch) / "lock")):
        if not (job.base / "model_index.json").is_file():  # which is written last
            full_size.write(job.model, job.depth, job.base)
        # Never drawn anew: another process may be reading them.
        if len([*job.pictures.glob("*.txt")]) < job.batch:
            training.draw_pictures(job.pictures, job.size_px, [_CAPTION.format(number) for number in range(job.batch)])


def _count(step: Callable[[], None], device: str) -> int:
    """Floating-point operations of one more step: products, convolutions and attention. Attention's own kernel for CPUs
    has no count, plain products have.
    """
    kernel: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()
    with kernel, FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def _device(device: str, dtype: torch.dtype) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device == "cuda" else system.processor()
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "peft": peft.__version__}
    return {"device": device, "name": name, "dtype": str(dtype).removeprefix("torch."), **versions}


# Ours.


def _ours(job: Job, notes: list[str]) -> Callable[[], None]:
    """Takes a step of a run; the first call starts it. What the run had to change for lack of memory is noted."""
    _, stream = session.start(config(job), Path(job.scratch) / "runs", None, None)

    def step() -> None:
        for event in stream:
            if isinstance(event, Adjusted):
                notes.append(f"memory ran out: {event.message}")
            elif isinstance(event, Step):
                return

    return step


# Plain.


def _plain(job: Job, device: str, dtype: torch.dtype) -> Callable[[], None]:
    """Takes a step of the plain loop on a base with its adapter."""

    family = families.registry()[full_size.FAMILIES[job.model]]
    pipe = bases.open_pipeline(family, job.base, device, dtype)
    if job.model == "flux":
        # torch 2.11 on Hopper takes cuDNN's attention, whose backward of FLUX.1's shapes (24 heads of 128, 4,608
        # tokens, bf16) is an illegal memory access (measured on an H100). Flash attention works.
        torch.backends.cuda.enable_cudnn_sdp(False)
    denoiser = getattr(pipe, full_size.component(job.model))
    latents, conditionings = _cached(job, pipe, family)
    denoiser.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=family.targets["attention"])
    )
    cast_training_params(denoiser, dtype=torch.float32)
    denoiser.train()
    if job.loop == "plain-compiled":
        _compile(denoiser)
    parameters = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8, fused=True)
    noising = _epsilon(pipe) if "epsilon" in family.prediction else _flow

    def step() -> None:
        noise = torch.randn_like(latents)
        noised, timesteps, target = noising(latents, noise)
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            prediction = family.denoise(denoiser, noised, timesteps, family.prepare_batch(conditionings))
        loss = torch.nn.functional.mse_loss(prediction.float(), target.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.detach().item()

    return step


def _cached(job: Job, pipe: Any, family: Family) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Latents (B, C, h, w) of noise and the same captions as ours are told, on the device; the encoders are let go."""
    size = [job.size_px, job.size_px]
    with torch.no_grad():
        images = torch.rand(job.batch, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        latents = torch.cat([family.encode_image(pipe, image[None]) for image in images])
        encoded = family.encode_text(pipe, [_CAPTION.format(number) for number in range(job.batch)], 1)
    frame = torch.tensor([*size, 0, 0, *size], device=latents.device)
    for name in [name for name, part in pipe.components.items() if name == "vae" or name.startswith("text_encoder")]:
        setattr(pipe, name, None)
    return latents, [{**row, "frame": frame} for row in encoded]


def _epsilon(pipe: Any) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Noised latents, timesteps and target of a model that predicts noise."""
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)

    def noised(latents: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
        return scheduler.add_noise(latents, noise, timesteps), timesteps, noise

    return noised


def _flow(latents: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noised latents, timesteps and target of a model that predicts flow; times are logit-normal."""
    sigmas = torch.randn(len(latents), device=latents.device).sigmoid()
    wide = sigmas.view(-1, 1, 1, 1).to(latents.dtype)
    return (1 - wide) * latents + wide * noise, sigmas * 1000, noise - latents


def _compile(denoiser: nn.Module) -> None:
    """Compile the repeated blocks, or all in lists of blocks where diffusers names none (0.42: SD3)."""
    try:
        denoiser.compile_repeated_blocks()  # type: ignore[operator]
    except ValueError:
        for block in (block for part in denoiser.children() if isinstance(part, nn.ModuleList) for block in part):
            block.compile()
