"""Settings of learning: objective, optimizer, what is trained beside the adapter and what it is trained against."""

from __future__ import annotations

from typing import Literal

from trainer import methods
from trainer.schema import MOST_LINES, SET, Settings, setting

_DIFFUSION, _FLOW = {"prediction": ("epsilon", "v")}, {"prediction": ("flow",)}


class ObjectiveConfig(Settings):
    # How an error counts.
    loss: Literal["l2", "huber", "smooth_l1"] = setting(
        "l2",
        "Loss",
        "How an error counts: squared, or squared when small and linear when large (outliers count less).",
        advanced=True,
    )
    huber_delta: float = setting(
        0.1,
        "Huber delta",
        "Errors above it count linearly.",
        gt=0,
        le=10,
        advanced=True,
        only_with={"objective.loss": ("huber", "smooth_l1")},
    )
    weighting: Literal["none", "min-snr", "debiased", "snr"] = setting(
        "none",
        "Weighting",
        "How noise levels count: all alike, min-SNR (arXiv 2303.09556), debiased (arXiv 2310.08442), or by SNR "
        "(detail only).",
        advanced=True,
        only_with=_DIFFUSION,
    )
    min_snr_gamma: float = setting(
        5.0,
        "Min-SNR gamma",
        "Cap of the weight; 5.",
        gt=0,
        le=100,
        advanced=True,
        only_with={"objective.weighting": ("min-snr",)},
    )

    # Noise.
    noise_offset: float = setting(
        0.0,
        "Noise offset",
        "Noise with a mean of its own, for very dark and bright pictures; 0-0.1.",
        ge=0,
        le=1,
        advanced=True,
        only_with=_DIFFUSION,
    )
    multires_noise: int = setting(
        0,
        "Multires noise",
        "Levels of coarser noise mixed in; 0 is off, 6-10 is usual.",
        ge=0,
        le=16,
        advanced=True,
        only_with=_DIFFUSION,
    )
    multires_discount: float = setting(
        0.3,
        "Multires discount",
        "Share of each coarser level; 0.1-0.4.",
        gt=0,
        lt=1,
        advanced=True,
        only_with={"objective.multires_noise": SET},
    )
    input_perturbation: float = setting(
        0.0,
        "Input perturbation",
        "Extra noise on what the model sees but not on what it should say (arXiv 2301.11706); 0-0.1.",
        ge=0,
        le=1,
        advanced=True,
    )

    # Which noise levels are trained.
    timesteps: Literal["uniform", "logit-normal", "sigmoid", "mode"] = setting(
        "uniform",
        "Timesteps",
        "Which noise levels are trained: all alike, or mostly the middle ones (arXiv 2403.03206, section 3.1).",
        advanced=True,
    )
    timesteps_mean: float = setting(
        0.0,
        "Timestep mean",
        "Below 0 trains detail more, above 0 composition.",
        ge=-4,
        le=4,
        advanced=True,
        only_with={"objective.timesteps": ("logit-normal",)},
    )
    timesteps_std: float = setting(
        1.0,
        "Timestep spread",
        "Width of the logit-normal.",
        gt=0,
        le=4,
        advanced=True,
        only_with={"objective.timesteps": ("logit-normal",)},
    )
    timesteps_mode_scale: float = setting(
        1.29,
        "Mode scale",
        "How strongly the middle is preferred.",
        ge=-1,
        le=1.75,
        advanced=True,
        only_with={"objective.timesteps": ("mode",)},
    )
    timesteps_low: float = setting(
        0.0, "Lowest timestep", "Share of the schedule below which nothing is trained.", ge=0, lt=1, advanced=True
    )
    timesteps_high: float = setting(
        1.0, "Highest timestep", "Share of the schedule above which nothing is trained.", gt=0, le=1, advanced=True
    )
    shift: Literal["none", "fixed", "resolution"] = setting(
        "none",
        "Shift",
        "Move flow timesteps towards noise by a factor, or by the factor the base uses at the bucket's size.",
        advanced=True,
        only_with=_FLOW,
    )
    shift_factor: float = setting(
        3.0,
        "Shift factor",
        "1 is none; 3 is usual at 1024 px.",
        gt=0,
        le=20,
        advanced=True,
        only_with={"objective.shift": ("fixed",)},
    )

    # What counts beside the pictures' own error.
    unmasked_weight: float = setting(
        0.1,
        "Unmasked weight",
        "How much the part outside a mask counts.",
        ge=0,
        le=1,
        advanced=True,
        only_with={"data.mask": ("file", "alpha")},
    )
    preservation_weight: float = setting(
        0.0,
        "Preservation",
        "Pull towards what the base says to the class caption, without any pictures; 0.5-1, costs a step and a half.",
        ge=0,
        le=10,
        advanced=True,
    )


class OptimizerConfig(Settings):
    # The optimizer.
    name: Literal["adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule-free", "other"] = setting(
        "adamw",
        "Optimizer",
        "adamw is the usual; adamw8bit saves memory; lion wants a third of adamw's rate; prodigy finds it (set 1); "
        "schedule-free needs no schedule.",
        advanced=True,
    )
    other: str = setting(
        "",
        "Other optimizer",
        "Name of a class of the pytorch-optimizer package.",
        pattern=r"^[A-Za-z0-9_]*$",
        max_length=60,
        advanced=True,
        only_with={"optimizer.name": ("other",)},
    )
    options: tuple[str, ...] = setting(
        (),
        "Options",
        "key=value, one a line, handed to the optimizer, such as betas=(0.9, 0.99) or d_coef=2.",
        max_length=16,
        advanced=True,
    )

    # The schedule.
    schedule: Literal["constant", "linear", "cosine", "restarts", "rex"] = setting(
        "cosine", "Schedule", "How the learning rate falls after warm-up.", advanced=True
    )
    cycles: int = setting(
        3,
        "Cycles",
        "How often the cosine starts again.",
        ge=1,
        le=100,
        advanced=True,
        only_with={"optimizer.schedule": ("restarts",)},
    )
    warmup_steps: int = setting(
        0, "Warm-up", "Steps over which the learning rate rises from zero.", ge=0, advanced=True
    )
    extended: tuple[str, ...] = setting(
        (),
        "Extended at",
        "STEP=STEPS, one a line: up to that step the schedule is that of a run of so many steps; written when a run is "
        "extended.",
        max_length=64,
        advanced=True,
    )

    # What holds weights and gradients, and their mean.
    weight_decay: float = setting(
        0.01, "Weight decay", "Pull of the adapter towards zero; 0-0.1.", ge=0, le=1, advanced=True
    )
    max_grad_norm: float = setting(1.0, "Gradient clip", "Longest gradient that is used whole.", gt=0, advanced=True)
    ema_decay: float = setting(
        0.0,
        "EMA",
        "Keep a running mean of the adapter and use it for previews and the file; 0 is off, 0.99 is usual.",
        ge=0,
        lt=1,
        advanced=True,
    )

    # Rates by part.
    loraplus_ratio: float = setting(
        1.0,
        "LoRA+ ratio",
        "Learning rate of up over that of down (arXiv 2402.12354); 1 is off, 4-16 learns faster.",
        ge=0.01,
        le=64,
        advanced=True,
        only_with={"adapter.method": methods.allowing(lambda method: method.loraplus)},
    )
    block_rates: tuple[str, ...] = setting(
        (),
        "Block rates",
        "up_blocks.1=0.5 halves the learning rate of layers whose path has that text; * is any text; one a line, the "
        "first that fits counts, 0 freezes.",
        max_length=MOST_LINES,
        advanced=True,
    )
    max_weight_norm: float = setting(
        0.0,
        "Weight-norm limit",
        "A layer's update is scaled back to this length; 0 is off, 1 is usual.",
        ge=0,
        le=1000,
        advanced=True,
        only_with={"adapter.method": methods.allowing(lambda method: method.norm_limit)},
    )


class AgainstConfig(Settings):
    """Adapters that lie on the base while the new adapter is trained: it learns to live with them."""

    adapters: tuple[str, ...] = setting(
        (),
        "Train against",
        "LoRA files already on the base while this one learns, FILE:WEIGHT, one a line.",
        max_length=8,
        advanced=True,
        path="loras",
    )
    overlap_penalty: float = setting(
        0.0,
        "Overlap penalty",
        "Pushes the update into directions those leave free; 0 is off, 0.1-1.",
        ge=0,
        le=100,
        advanced=True,
        only_with={"against.adapters": SET},
    )


class InversionConfig(Settings):
    """A new word for the text encoder, learned with the adapter and carried in its file."""

    token: str = setting(
        "",
        "New word",
        "A word whose embedding is trained too (textual inversion, arXiv 2208.01618); write it in captions and "
        "prompts. Empty is off.",
        pattern=r"^[A-Za-z0-9_-]*$",
        max_length=40,
        advanced=True,
    )
    vectors: int = setting(
        1,
        "Vectors",
        "How many embedding vectors the word has; 1-4.",
        ge=1,
        le=16,
        advanced=True,
        only_with={"inversion.token": SET},
    )
    start_from: str = setting(
        "",
        "Start from",
        "An everyday word to start from, such as cat.",
        max_length=80,
        advanced=True,
        only_with={"inversion.token": SET},
    )
    learning_rate: float = setting(
        5e-3,
        "Word's rate",
        "Learning rate of the new word; 1e-3 to 1e-2.",
        gt=0,
        le=1,
        advanced=True,
        only_with={"inversion.token": SET},
    )
