"""`velatura bench train`: our step against a plain diffusers + PEFT loop, at the same settings, in one run.

The plain loop is what diffusers' own `train_text_to_image_lora.py` does, written down here in its essentials: once with
that script's defaults (fp32, pictures and captions encoded anew at every step) and once with its best flags (bf16
autocast, latents and embeddings cached). Every measurement is a child process, ours and theirs in turn, so that a
machine whose speed drifts does it to both; what is compared is the median of the ratios. Peak memory is the
child's own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import families, system
from trainer.errors import ConfigError
from trainer.events import Step
from trainer.lazy import Image, diffusers, torch, transformers

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.config import TrainConfig

PLAIN = str(Path(__file__).with_name("plain.toml"))  # the preset that every bench trains with
MODELS = ("imprimatura", "sd15")
LOOPS = ("ours", "plain", "plain-best")
WITHOUT = ("fused", "channels-last", "products", "kept-memory")  # what can be left out of ours, to see what it brings
_SETTINGS: dict[str, dict[str, Any]] = {
    "imprimatura": {"resolution_px": 128, "steps": 60, "warm": 10},
    "sd15": {"resolution_px": 512, "steps": 4, "warm": 1},
}
_PICTURES = 4


@dataclass(frozen=True)
class Measured:
    """One loop on one model: steps a second after warm-up, and the process's peak memory."""

    model: str
    loop: str
    steps_per_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Row:
    """A loop's medians over the rounds, and ours over it: above 1 we are faster."""

    model: str
    loop: str
    steps_per_s: float
    peak_gib: float
    ours_over_it: float
    ratio_low: float
    ratio_high: float


def run(models: list[str], rounds: int, options: list[str], without: list[str]) -> Iterator[Row]:
    """The table, row by row.

    `options` are settings of ours (`memory.attention=plain`), `without` what else to leave out in a row of its own.
    """
    loops = [*LOOPS, *(f"without-{name}" for name in without)]
    with tempfile.TemporaryDirectory(prefix="velatura-bench-") as scratch:
        for model in models:
            base = prepare(model, Path(scratch))
            measured: dict[str, list[Measured]] = {loop: [] for loop in loops}
            # In turn, so that other work on the machine falls on every loop.
            for _ in range(rounds):
                for loop in loops:
                    measured[loop].append(_child(model, loop, base, Path(scratch), options))
            for loop in loops:
                # Round by round: only what was measured close together is compared.
                ratios = [
                    ours.steps_per_s / other.steps_per_s
                    for ours, other in zip(measured["ours"], measured[loop], strict=True)
                ]
                steps_per_s = statistics.median(round_.steps_per_s for round_ in measured[loop])
                peak_gib = statistics.median(round_.peak_bytes for round_ in measured[loop]) / 2**30
                yield Row(model, loop, steps_per_s, peak_gib, statistics.median(ratios), min(ratios), max(ratios))


def _child(model: str, loop: str, base: str, scratch: Path, options: list[str]) -> Measured:
    command = [
        sys.executable,
        "-m",
        "trainer",
        "bench",
        "one-loop",
        model,
        loop,
        "--base",
        base,
        "--scratch",
        str(scratch),
    ]
    done = subprocess.run([*command, *(f"--set={option}" for option in options)], capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"the {loop} loop on {model} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def prepare(model: str, scratch: Path) -> str:
    """A few pictures to train on, and the base: Imprimatura, or a random one of Stable Diffusion 1.5's size."""
    draw_pictures(
        scratch / f"pictures-{model}",
        _SETTINGS[model]["resolution_px"],
        [f"a dot, number {number}" for number in range(_PICTURES)],
    )
    return "imprimatura" if model == "imprimatura" else str(_full_size(scratch / "sd15"))


def draw_pictures(folder: Path, side: int, captions: list[str]) -> None:
    """A picture of a dot for each caption, and the caption beside it."""
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    for number, caption in enumerate(captions):
        image = Image.new("RGB", (side, side), "white")
        ImageDraw.Draw(image).ellipse(
            (side // 8, side // 8, side // 2, side // 3 * (1 + number % 2)),
            fill=(60 * (number % 4), 80, 200 - 40 * (number % 4)),
        )
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)


def synchronize() -> None:
    """Wait until a GPU has done what it was given; what stands on both sides of a time that is measured."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _full_size(folder: Path) -> Path:
    """A random model with Stable Diffusion 1.5's own sizes (860 million parameters in the UNet), in bfloat16."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(Path(__file__).parents[1] / "imprimatura" / "tokenizer"), local_files_only=True, model_max_length=77
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        vae = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, norm_num_groups=32, **kinds
        )
        text = transformers.CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
            num_attention_heads=12, max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        encoder = transformers.CLIPTextModel(text)
    finally:
        torch.set_default_dtype(before)
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    diffusers.StableDiffusionPipeline(
        vae, encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(str(folder))
    return folder


def measure(model: str, loop: str, base: str, scratch: Path, options: list[str]) -> Measured:
    """Measure one loop in this process."""
    from trainer.memory import mechanics

    settings = _SETTINGS[model]
    pictures = scratch / f"pictures-{model}"
    if loop.startswith("plain"):
        stream = _plain(model, base, pictures, loop == "plain-best")
    else:
        _leave_out(loop.removeprefix("without-"))
        stream = _ours(model, base, pictures, scratch, options)
    seconds, peak = [], 0
    for step_s in stream:
        seconds.append(step_s)
        peak = mechanics.peak_bytes()  # up to the last step: the plain loop doesn't export
    return Measured(model, loop, 1 / statistics.median(seconds[settings["warm"] :]), peak)


def _leave_out(name: str) -> None:
    """Take a speed choice out of this process's training model."""
    from trainer import attaching
    from trainer.memory import convolving

    if name == "fused":
        attaching.fuse = lambda model: False
    elif name == "channels-last":
        convolving.lay_out = lambda model: None
    elif name == "products":
        convolving.as_products = lambda model: None
    elif name == "kept-memory":
        system.keep_freed = lambda platform="": False


def config(model: str, base: str, pictures: Path, steps: int, options: list[str]) -> TrainConfig:
    """Our settings for these: batch 1, rank 16 on attention, no previews."""
    from trainer import session

    overrides = [
        f"base={base}", f"resolution_px={_SETTINGS[model]['resolution_px']}", f"max_steps={steps}", "batch_size=1",
        "adapter.rank=16", "adapter.alpha=16",
        "preview_every_steps=0", "checkpoint_every_steps=100000", "data.caption_dropout=0", *options,
    ]  # fmt: skip
    return session.preset_config(PLAIN, str(pictures), None, overrides)


def _ours(model: str, base: str, pictures: Path, scratch: Path, options: list[str]) -> Iterator[float]:
    from trainer import session

    settings = _SETTINGS[model]
    chosen = config(model, base, pictures, settings["warm"] + settings["steps"], options)
    _, stream = session.start(chosen, scratch / "runs", model, None)
    last = time.perf_counter()
    for event in stream:
        now = time.perf_counter()
        if isinstance(event, Step):
            yield now - last
        last = now


def _plain(model: str, base: str, pictures: Path, best: bool) -> Iterator[float]:
    """Seconds of each step of the plain loop."""
    from accelerate import Accelerator
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    from trainer import bases

    settings, kind = _SETTINGS[model], torch.bfloat16 if best else torch.float32
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16" if best else "no")
    bases.quiet_libraries()
    folder = bases.resolve(base, families.registry()["sd"])
    pipe = families.registry()["sd"].load(folder, str(accelerator.device), kind)
    scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    pipe.unet.add_adapter(
        LoraConfig(
            r=16, lora_alpha=16, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"]
        )
    )
    if best:
        cast_training_params(pipe.unet, dtype=torch.float32)
    layers = [parameter for parameter in pipe.unet.parameters() if parameter.requires_grad]

    # The optimizer, and what accelerate makes of it.
    optimizer = torch.optim.AdamW(layers, lr=1e-4, weight_decay=1e-2)
    schedule = get_scheduler("constant", optimizer=optimizer)
    pipe.unet.train()
    unet, optimizer, schedule = accelerator.prepare(pipe.unet, optimizer, schedule)

    # With its best flags, pictures and captions are encoded once.
    encode = partial(_encode, pipe, pictures, kind)
    with torch.no_grad():
        kept = [encode(number) for number in range(_PICTURES)] if best else []
    if best:
        pipe.vae = pipe.text_encoder = None

    for step in range(settings["warm"] + settings["steps"]):
        began = time.perf_counter()
        with torch.no_grad():
            latents, hidden = kept[step % _PICTURES] if best else encode(step % _PICTURES)
        # Noise and target.
        noise = torch.randn_like(latents)
        num_timesteps = scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, num_timesteps, (len(latents),), device=latents.device).long()
        predicts_v = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, timesteps) if predicts_v else noise
        # Prediction, loss, step.
        prediction = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, hidden, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(prediction.float(), target.float(), reduction="mean")
        accelerator.gather(loss.repeat(len(latents))).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(layers, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.detach().item()
        yield time.perf_counter() - began


def _encode(pipe: Any, pictures: Path, kind: torch.dtype, number: int) -> tuple[Tensor, Tensor]:
    """Latents and hidden states of a picture and its caption, as the example script encodes them."""
    with Image.open(pictures / f"{number}.png") as opened:
        pixels = pipe.image_processor.preprocess(opened.convert("RGB")).to(pipe.device, kind)
    encoded = pipe.vae.encode(pixels)
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.sample()
    window = pipe.tokenizer.model_max_length
    ids = pipe.tokenizer(
        f"a dot, number {number}", padding="max_length", truncation=True, max_length=window, return_tensors="pt"
    ).input_ids
    return latents * pipe.vae.config.scaling_factor, pipe.text_encoder(ids.to(pipe.device), return_dict=False)[0]


def describe(rows: list[Row]) -> str:
    """The table for people."""
    names = {
        "ours": "Velatura",
        "plain": "plain diffusers + PEFT, its defaults (fp32)",
        "plain-best": "plain diffusers + PEFT, bf16 and cached",
    }
    lines = [f"{'model':<13}{'loop':<46}{'steps/s':>9}{'peak GiB':>10}  ours over it (lowest to highest)"]
    for row in rows:
        name = names.get(row.loop, row.loop.replace("-", " ", 1))
        ratio = "" if row.loop == "ours" else f"{row.ours_over_it:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
        lines.append(f"{row.model:<13}{name:<46}{row.steps_per_s:>9.3f}{row.peak_gib:>10.2f}  {ratio}")
    return "\n".join(lines)


def to_json(rows: list[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=2)
