"""In how many bits a base is kept for rendering: the kinds there are, and the help of the commands' option."""

from __future__ import annotations

from importlib.util import find_spec

from trainer.errors import ConfigError

KINDS = ("none", "int8", "nf4", "fp8")
HELP = (
    "Keep the denoiser's linear layers in fewer bits for less memory: int8, fp8 or nf4; pictures differ a little. "
    "No part of a picture's recipe."
)


def checked(kind: str) -> str:
    """The same kind. Raises: ConfigError if it is none of `KINDS`, or can't be had here."""
    if kind not in KINDS:
        raise ConfigError(f"quantise is {kind!r}; allowed: {', '.join(KINDS)}.")
    if kind == "nf4" and find_spec("bitsandbytes") is None:
        raise ConfigError("quantise is 'nf4', which needs bitsandbytes; install it with: pip install 'velatura[gpu]'.")
    return kind
