"""What a family says of itself: every fact and function, and what each means. A family sees `schema` and torch, never the loop, the config or another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

if TYPE_CHECKING:
    from torch import Generator, Tensor, dtype
    from torch.nn import Module

    from trainer.objective import Guidance, Schedule
else:  # the fields' kinds are read without torch
    Generator = Tensor = dtype = Module = Guidance = Schedule = Any

_SOME = Field(min_length=1)
Text = Annotated[str, _SOME]
Conditioning = dict[str, Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Family:
    """One architecture of models. A field with a default may be left out of the family's file; `pipe` is always the family's diffusers pipeline."""

    # What it is.
    name: Text  # the tag in `family`, the file's own name
    title: Text  # for people
    pipeline: Text  # name of the diffusers pipeline class
    prediction: Annotated[tuple[Literal["epsilon", "v", "flow"], ...], _SOME]  # what its models may predict: one architecture comes with several
    default_px: int  # of a picture's side
    multiple_px: int  # of which a picture's sides are multiples
    patch: int  # latents that the denoiser takes as one token, a side
    usual: tuple[int, float]  # sampling steps and guidance scale that pictures are drawn with where nobody says
    usual_of: Callable[[Path], tuple[int, float]] | None = None  # the same of the model in this folder, where its config tells a distilled one
    most_tokens: Callable[[Path], int] | None = None  # how many tokens a picture's side may have, where there are positions for so many

    # Its layers.
    components: Annotated[Mapping[str, str], _SOME]  # attribute of the pipeline -> prefix in a LoRA file: the denoiser, then text encoders that can be adapted
    targets: Annotated[Mapping[str, str], _SOME]  # setting of `adapter.targets` -> regular expression over the denoiser's module paths
    text_targets: str = ""  # regular expression over a text encoder's module paths, for `adapter.text_encoder`; empty where none is adapted
    convolved: tuple[str, ...] = ()  # settings of targets other than "all" that take in convolutions, which some methods can't

    # Its LoRA files.
    file_names: Literal["kohya", "peft"]  # whose names a LoRA file's tensors have; "peft" are diffusers' own (see `export`)
    architecture: Text  # `modelspec.architecture`
    base_version: Text  # `ss_base_model_version`
    words: Mapping[str, str]  # attribute of a text encoder -> key of a new word's vectors in a LoRA file; empty: new words are refused
    is_v2: Callable[[Any], bool]  # `ss_v2`
    file_keys: Callable[[Any], dict[str, str]]  # pipe -> {module path: key prefix in a LoRA file, spelled as `file_names` says}
    # (pipe, adapted modules) -> scheme and size by which plain LoRAs of these are written instead of "peft", empty where they aren't.
    named_as: Callable[[Any, set[str]], tuple[str, str]] | None = None

    # Opening it.
    load: Callable[[Path, str, dtype], Any]  # (folder, device, dtype) -> the diffusers pipeline, frozen, in eval mode
    prediction_of: Callable[[Path], str]  # which of `prediction` the model in this folder makes; its scheduler's config decides
    tiny: Callable[[Path], Path]  # a small random model of the same architecture, built offline in this folder

    # Text.
    encode_text: Callable[[Any, list[str], int], list[Conditioning]]  # (pipe, captions, chunks) -> one a caption, over that many windows
    encode_negative: Callable[[Any, list[str]], list[Conditioning]] | None = None  # the same of negative prompts, where they are read otherwise
    window: Callable[[Any], int]  # how many tokens a caption may have
    count_tokens: Callable[[Any, str], int]  # and how many it has
    caption_tokens: int | None = None  # how many it may have where no model is at hand, if the tokenizers' own limit is another
    # Where prompts can be cut into windows of a text encoder and their words weighted, both of: how many windows a caption fills, and what each
    # text encoder says to windows of token ids, [(k, L, D), ...], and what else conditions.
    num_chunks: Callable[[Any, str], int] | None = None
    encode_windows: Callable[[Any, list[list[int]]], tuple[list[Tensor], Conditioning]] | None = None

    # A training step.
    encode_image: Callable[[Any, Tensor], Tensor]  # images (B, 3, H, W) in [-1, 1] -> latents
    # Conditionings of one caption each -> one of a batch. Each has its picture's `frame` too, (6,) int64, in pixels: height and width of the picture
    # as it was, top and left of the cut in the picture as it was scaled, height and width of the cut. Integers stay integers on their way to `denoise`.
    prepare_batch: Callable[[list[Conditioning]], Conditioning]
    denoise: Callable[[Module, Tensor, Tensor, Conditioning], Tensor]  # (denoiser, noised, timesteps, conditioning) -> the model's prediction
    schedule: Callable[[Any], Schedule]  # the training noise

    # A picture.
    # "distilled" where the guidance scale is an input of the model and a negative prompt takes a second pass.
    guidance: Literal["classifier-free", "distilled"]
    call_settings: Callable[[Any, Conditioning, Conditioning | None, Guidance], dict[str, Any]]  # (pipe, prompts, negative ones, guidance)
    # (pipe, width_px, height_px, generators): tells the pipeline, before its call, what that has no argument for.
    ready: Callable[[Any, int, int, list[Generator]], None] | None = None
    negates: bool = True  # False where the pipeline takes no negative prompt; one is refused by name then
    rescales: bool = True  # False where the pipeline knows no rescaled guidance, though noise is predicted
    unfit_samplers: tuple[str, ...] = ()  # names in `render.samplers` that draw with what is predicted, but not with this pipeline
    comfyui_graph: bool = True  # False where our graph would be wrong: parts in several files, or a prompt read after others
    # Which rows of a call of the denoiser are without the prompt; "said, unsaid" where the two are two calls.
    halves: Literal["unsaid first", "said first", "said, unsaid"] = "unsaid first"

    # Where regions act: regular expressions searched for in the denoiser's module paths, empty where it has no such layers. They have no defaults: a layer
    # that is forgotten misses its region in silence.
    text_layers: str  # whose outputs are of the text where image and text meet: keys and values of cross-attention, the text's half of joint attention
    placeless_layers: str  # whose tokens are the text's alone, or no place's: there may be as many of them as a picture of some size has
    joined_layers: str  # whose tokens are text and image together
    image_first: bool = False  # in those
    # What `regions` reads: whole paths of cross-attention, of the first expression that some match; empty where that was not measured.
    cross_attention: tuple[str, ...] = ()
    # Why pictures of several prompts can't be one batch: "text" where the joined tokens are of as many as each prompt has, so that a region would miss
    # its place, "rows" where not even weights by picture are told apart.
    ragged: Literal["", "text", "rows"] = ""

    @property
    def denoiser(self) -> str:
        """The pipeline's attribute that denoises."""
        return next(iter(self.components))
