"""Model families, one a file: the module's name is the family's.

Contract of a family module (`tests/house.py` holds every one to it). Facts first:

    name, title        the tag in `family`; for people
    pipeline           name of the diffusers pipeline class
    prediction         what its models may predict, of "epsilon", "v", "flow"
    guidance           "classifier-free", or "distilled" where its scale is an input of the model and a negative prompt a second pass
    caption_tokens     how many a caption may have, where the tokenizers' own limit is another; may be left out
    negates            False where the pipeline takes no negative prompt, whose second pass is refused by name then; may be left out
    unfit_samplers     names in `render.samplers` that draw with what is predicted, but not with this pipeline; may be left out
    comfyui_graph      False where our graph would be wrong: parts in several files, or a prompt read after others; may be left out
    rescales           False where the pipeline knows no rescaled guidance, though noise is predicted; may be left out
    halves             which rows of a call of the denoiser are without the prompt: "unsaid first", as where it is left out, "said first", or
                       "said, unsaid" where they are two calls
    joined             what is in the path of layers whose tokens are text and image together, and whether the image comes first; FLUX's if left out
    ragged             why pictures of several prompts can't be one batch: "text" where those tokens are of as many as each prompt has and a region
                       would miss its place, "rows" where not even weights by picture are told apart; may be left out
    default_px, multiple_px, patch     of pictures; latents that the denoiser takes as one token, a side
    usual              sampling steps and guidance scale that pictures are drawn with where nobody says
    targets            setting of `adapter.targets` -> regular expression over the denoiser's module paths
    text_targets       regular expression over a text encoder's module paths, for `adapter.text_encoder`; left out where none is adapted
    convolved          settings of targets other than "all" that take in convolutions, which some methods can't; may be left out
    components         attribute of the pipeline -> prefix of its keys in a LoRA file: the denoiser, then the text encoders that can be adapted
    file_names         "kohya", or "peft" for diffusers' own: what a LoRA file calls its tensors (see `export`)
    words              attribute of a text encoder -> key of a new word's vectors in a LoRA file; empty: new words are refused
    architecture       `modelspec.architecture` and `base_version` (`ss_base_model_version`) of a LoRA file

then functions:

    load(folder, device, dtype)            the diffusers pipeline, frozen, in eval mode
    encode_text(pipe, captions, chunks)    conditioning, one dict of tensors a caption, over that many windows of the text encoders
    encode_negative(pipe, prompts)         the same of negative prompts, where they are read otherwise; may be left out
    usual_of(folder)                       `usual` of the model in this folder, where its config tells a distilled one; may be left out
    most_tokens(folder)                    how many tokens a picture's side may have, where there are positions for so many; may be left out
    window, count_tokens                   how long a caption may be, and is
    encode_image(pipe, images)             images (B, 3, H, W) in [-1, 1] -> latents
    prepare_batch(conditionings)           dicts of one caption each -> one of a batch; each has its picture's `frame` too (see below)
    denoise(denoiser, noised, timesteps, conditioning)    the model's prediction
    prediction_of(folder)                  which of `prediction` the model in this folder makes
    schedule(pipe)                         `objective.Schedule` of the training noise
    is_v2(pipe)                            `ss_v2` of a LoRA file
    call_settings(pipe, said, unsaid, guidance)    arguments of the pipeline's call: conditionings of the prompts, of the negative ones, `Guidance`
    ready(pipe, width_px, height_px, generators)    tells the pipeline, before its call, what that has no argument for; may be left out
    file_keys(pipe)                        module path -> key prefix in a LoRA file, spelled as `file_names` says
    named_as(pipe, modules)                scheme and size by which plain LoRAs of these modules are written instead of "peft"; may be left out
    tiny(folder)                           a small random model of the same architecture, built offline

and, where prompts can be cut into windows of a text encoder and their words weighted:

    num_chunks(pipe, caption)              how many windows a caption fills
    encode_windows(pipe, windows)          what each text encoder says to windows of token ids, [(k, L, D), ...], and what else conditions

`frame` is (6,) int64, in pixels: height and width of the picture as it was, top and left of the cut in the picture as it was scaled,
height and width of the cut. What the denoiser is told of sizes is told by it; integers stay integers on their way to `denoise`.

`prediction` is a tuple because one architecture comes with several (SD 2.x is v, SD 1.x epsilon): the scheduler's
config of the base at hand decides. A family sees `schema` and torch, never the loop, the config or another family.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any


@cache
def registry() -> dict[str, ModuleType]:
    """Every family module by name; a new file in this folder is a new family."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def known(name: str) -> str:
    """The name if there is such a family. Raises: ValueError, which names those there are."""
    if name not in registry():
        raise ValueError(f"family is {name[:80]!r}; allowed: {', '.join(registry())}.")
    return name


def of(pipe: Any) -> ModuleType:
    """The family of a pipeline."""
    return next(module for module in registry().values() if module.pipeline == type(pipe).__name__)
