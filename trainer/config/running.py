"""Settings of how a run is watched and fitted into memory."""

from __future__ import annotations

from typing import Literal

from trainer.schema import SET, Settings, setting

_MEASURED = {"data.heldout": SET, "validation.leave_out": SET}


class PreviewConfig(Settings):
    prompts: tuple[str, ...] = setting(
        (), "Preview prompts", "One a line; each gives a picture at the start and at every preview.", max_length=16
    )
    seed: int = setting(
        1,
        "Preview seed",
        "The same noise for every preview, so that only training changes them.",
        ge=0,
        le=2**32 - 1,
        advanced=True,
    )
    steps: int = setting(20, "Preview steps", "Sampling steps of a preview.", ge=1, le=200, advanced=True)
    guidance_scale: float = setting(
        3.0, "Guidance", "How closely pictures follow the prompt; 1 is off.", ge=1, le=30, advanced=True
    )
    guidance_rescale: float = setting(
        0.0,
        "Guidance rescale",
        "Tames the contrast of guidance for zero-terminal-SNR bases; 0.7 there.",
        ge=0,
        le=1,
        advanced=True,
        only_with={"prediction": ("epsilon", "v")},
    )


class ValidationConfig(Settings):
    leave_out: int = setting(
        0,
        "Leave out",
        "Hold out this many of the training pictures to measure on, where there is no held-out set; about a fifth.",
        ge=0,
        le=1000,
        advanced=True,
    )
    folds: int = setting(
        0,
        "Folds",
        "Train this many times first, each without another part of the pictures, to find the best step; then on all. "
        "For small sets; 3-5.",
        ge=0,
        le=20,
        advanced=True,
    )
    neutral_prompts: tuple[str, ...] = setting(
        (),
        "Neutral prompts",
        "Prompts that have nothing to do with the dataset; each measurement says how far the adapter moves the base "
        "on them.",
        max_length=16,
        advanced=True,
        only_with=_MEASURED,
    )
    stop_when_overtrained: bool = setting(
        False,
        "Stop early",
        "End the run when the held-out loss has clearly risen above its best.",
        advanced=True,
        only_with=_MEASURED,
    )


class MemoryConfig(Settings):
    budget_gib: float = setting(
        0.0,
        "Memory budget",
        "Fit into this many GiB: the rehearsal chooses the settings below for it, and a GPU is held to it; 0 is "
        "whatever there is.",
        ge=0,
        le=1024,
        advanced=True,
    )

    # What the frozen base takes, and what a batch does.
    quantise: Literal["none", "int8", "nf4", "fp8"] = setting(
        "none",
        "Quantised base",
        "Frozen linear layers in 8 or 4 bits, for plain LoRA: a half or a quarter of their memory, a little slower; "
        "int8 rounds least, nf4 (QLoRA) saves most.",
        advanced=True,
    )
    gradient_checkpointing: bool = setting(
        False,
        "Checkpointing",
        "Compute activations twice instead of keeping them: about 40 % slower, much less memory, the same result.",
        advanced=True,
    )
    micro_batch: int = setting(
        0,
        "Micro-batch",
        "Pictures at once; the batch is made of several passes. 0: the whole batch.",
        ge=0,
        le=256,
        advanced=True,
    )

    # What waits on the CPU, and how the rest is computed.
    offload: Literal["none", "encoders", "blocks"] = setting(
        "none",
        "Offload",
        "Keep on the CPU what a step does not need: text encoder and autoencoder, or also the denoiser's blocks in "
        "turn (GPU only).",
        advanced=True,
    )
    attention: Literal["auto", "fused", "plain"] = setting(
        "auto",
        "Attention",
        "auto is the faster by shape and device, which the rehearsal checks; plain keeps every score in memory.",
        advanced=True,
    )
    compile: Literal["auto", "off", "blocks", "graphs"] = setting(
        "auto",
        "Compile",
        "Compile the denoiser's repeated blocks: half a minute at the start, faster steps on a GPU; graphs also "
        "spares the launches, for more memory. auto: on a GPU, where it was measured to pay, else in long runs.",
        advanced=True,
    )
    offload_activations: bool = setting(
        False,
        "Offload activations",
        "What is kept for backward waits on the CPU: the last resort, slower still (GPU only).",
        advanced=True,
    )
    shard: bool = setting(
        False,
        "Shard the base",
        "Spread the frozen base over the processes of a torchrun (FSDP2), each keeping its part.",
        advanced=True,
    )
