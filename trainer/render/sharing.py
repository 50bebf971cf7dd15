"""Which settings the pictures of one batch share: all fields but those that are declared a picture's own.

A batch is one call of the denoiser. What it reads of its first picture alone must be the same in all of them, so the
key of a batch is every field but those named here, which are asked of each picture. Both kinds are written out, and a
test holds them against the models.
"""

from __future__ import annotations

from trainer.config import AdapterChoice, StackConfig
from trainer.render import strength

SHARED = (
    "version", "family", "base", "mode", "sampler", "steps", "guidance_scale", "guidance_rescale",
    "true_guidance_scale", "width_px", "height_px",
)  # fmt: skip
# Of adapters, `layer` says what is shared.
OWN = frozenset({"adapters", "prompt", "negative_prompt", "seed", "wide_weights"})
SHARED_OF_ADAPTER = ("file", "sha256", "blocks", "schedule", "region")
# The last three act before anything is drawn.
OWN_OF_ADAPTER = frozenset({"weight", "text_weight", "name", "trigger", "enabled"})


def key(stack: StackConfig) -> tuple[tuple[str, object], ...]:
    """The settings that pictures of one batch have in common."""
    return tuple((name, getattr(stack, name)) for name in type(stack).model_fields if name not in OWN)


def acts(adapter: AdapterChoice) -> bool:
    """Whether an adapter is there at all."""
    return adapter.enabled and bool(adapter.weight or adapter.text_weight)


def layer(adapter: AdapterChoice) -> AdapterChoice:
    """What pictures of one batch share of an adapter: all but its weights.

    A schedule that never changes is part of the weight.
    """
    defaults = {name: field.default for name, field in type(adapter).model_fields.items() if name in OWN_OF_ADAPTER}
    steady = {} if strength.schedule(adapter).constant is None else {"schedule": ""}
    return adapter.model_copy(update=defaults | steady)
