"""Licences of bases, and what a LoRA made on one may be given.

The table is what diffusers' own training scripts write into the model cards of LoRAs of these families
(huggingface/diffusers, commit 58eb52c080 of 2026-08-23, examples/dreambooth); `other` there means a licence of the
base's own, to be read on its page. A base that is not in it is not guessed at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from trainer.errors import ConfigError

_OF_BASE = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "creativeml-openrail-m",
    "runwayml/stable-diffusion-v1-5": "creativeml-openrail-m",
    "CompVis/stable-diffusion-v1-4": "creativeml-openrail-m",
    "stabilityai/stable-diffusion-xl-base-1.0": "openrail++",
    "stabilityai/stable-diffusion-3-medium-diffusers": "other",
    "stabilityai/stable-diffusion-3.5-medium": "other",
    "stabilityai/stable-diffusion-3.5-large": "other",
    "black-forest-labs/FLUX.1-dev": "other",
    "black-forest-labs/FLUX.2-dev": "other",
    "HiDream-ai/HiDream-I1-Dev": "mit",
    "HiDream-ai/HiDream-I1-Full": "mit",
    "Alpha-VLLM/Lumina-Image-2.0": "apache-2.0",
    "Qwen/Qwen-Image": "apache-2.0",
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": "other",
    "Tongyi-MAI/Z-Image": "apache-2.0",
    "imprimatura": "apache-2.0",  # this project's own
}
_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")


@dataclass(frozen=True)
class Licence:
    """A licence by the hub's short name, and a sentence on where it comes from."""

    id: str
    why: str


def of(base: str, wanted: str = "") -> Licence:
    """The licence of what was trained on a base, unless another is wanted. Raises: ConfigError for no such name."""
    if wanted:
        if not _ID.fullmatch(wanted):
            raise ConfigError(
                f"licence is {wanted[:80]!r}; allowed: a short name in small letters as the hub has them, such as "
                f"apache-2.0, cc-by-4.0 or other."
            )
        return Licence(wanted, "Chosen by whoever published it. The base's own licence holds as well.")
    known = _OF_BASE.get(base)
    if known is None:
        return Licence("other", "The base's licence is not known to Velatura: read it on the base's own page.")
    if known == "other":
        return Licence(known, f"The base has a licence of its own, which holds for this too: read it at {base}.")
    return Licence(known, "The base's licence.")
