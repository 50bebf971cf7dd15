"""How several adapters make one prediction, a file each: `name`, `title`, `is_guided`, `fewest` (and `most`) adapters, and `predict`;
`splits_guidance` if it does something else with the unconditional half of guidance, which not every family has: `predict` is then told which of
so many rows are of it, `unsaid(rows)`. A mode whose adapters take turns or wait says so in `acting(num, step, num_steps)`, each adapter's factor at a step,
which its `predict` goes by and the conflict map asks.

`predict(call, num, step, num_steps)` gives the denoiser's output at a step. `call(factors)` runs the denoiser with each of `num`
adapters' weights times its factor and may be called as often as it takes; `call(factors, only)` lets in each layer named in `only` one
adapter act. A mode with `prepare(updates, base)` gets what that made of the stack as `predict`'s last argument. A mode with `watched(num_steps)` and
`place(seen, size)` has adapters with trigger words in the prompt: after that many steps `place` makes of the attention to the words of each adapter
in each image (A, B, rows, columns) the masks (A, B, h, w) in the latents' size that the adapters act in from then on. Nothing here knows a family.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType

from trainer.errors import ConfigError


@cache
def registry() -> dict[str, ModuleType]:
    """Every mode by name."""
    found = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {module.name: module for module in sorted(found, key=lambda module: module.name)}


def chosen(name: str, num: int, guidance_scale: float) -> ModuleType:
    """The mode of this name, for so many adapters. Raises: ConfigError if there is none or it can't be used."""
    modes = registry()
    if name not in modes:
        raise ConfigError(f"mode is {name!r}; allowed: {', '.join(modes)}.")
    mode = modes[name]
    if mode.is_guided and guidance_scale <= 1:
        raise ConfigError(f"mode is {name!r}, which mixes guided predictions, but guidance_scale is {guidance_scale:g}; allowed with it: above 1.")
    if not mode.fewest <= num <= getattr(mode, "most", num):
        allowed = f"exactly {mode.fewest}" if hasattr(mode, "most") else f"at least {mode.fewest}"
        raise ConfigError(f"mode is {name!r}, which is for {allowed} LoRAs that are on; found: {num}.")
    return mode
