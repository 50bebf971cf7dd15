"""What a family's file says: every fact and function that it may have, and what each means.

A family sees `schema` and torch, never the loop, the config or another family.
"""

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
else:  # start-up reads these types without loading torch
    Generator = Tensor = dtype = Module = Guidance = Schedule = Any

_SOME = Field(min_length=1)  # not empty
Text = Annotated[str, _SOME]
Conditioning = dict[str, Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Family:
    """One architecture of models; a field with a default may be left out of the family's file.

    In the functions, `pipe` is the family's diffusers pipeline, `folder` a model in diffusers' layout, and a
    conditioning what the text encoders make of captions: tensors by name, without a batch axis for one caption, with
    one for a batch.
    """

    # What it is.

    # The value of the setting `family`, which is the file's own name.
    name: Text
    # What people read.
    title: Text
    # The name of the diffusers pipeline class.
    pipeline: Text
    # What its models may predict; one architecture comes with several kinds.
    prediction: Annotated[tuple[Literal["epsilon", "v", "flow"], ...], _SOME]
    # The side of a picture that the models are made for.
    default_px: int
    # Both sides of a picture are multiples of this.
    multiple_px: int
    # A token of the denoiser is this many latents wide and high; 1 where latents are tokens or there are none.
    patch: int
    # (sampling steps, guidance scale) of pictures for which neither is set.
    usual: tuple[int, float]
    # folder -> the same for one model, where its config tells a distilled one.
    usual_of: Callable[[Path], tuple[int, float]] | None = None
    # folder -> how many tokens a picture's side may have; None where positions have no end.
    max_side_tokens: Callable[[Path], int] | None = None

    # Its layers.

    # Attribute of the pipeline -> prefix in a LoRA file: the denoiser first, then the text encoders that can be
    # adapted.
    components: Annotated[Mapping[str, str], _SOME]
    # Value of `adapter.targets` -> regular expression that matches the whole of a module's path in the denoiser.
    targets: Annotated[Mapping[str, str], _SOME]
    # The same over a text encoder's paths, for `adapter.text_encoder`; empty where no text encoder is adapted.
    text_targets: str = ""
    # Values of `adapter.targets`, besides "all", that include convolutions; some methods can't adapt those.
    convolution_targets: tuple[str, ...] = ()

    # Its LoRA files.

    # Whose names the tensors have: kohya's, or "peft", which are diffusers' own (see `export`).
    file_names: Literal["kohya", "peft"]
    # The header's `modelspec.architecture`.
    architecture: Text
    # The header's `ss_base_model_version`.
    base_version: Text
    # Attribute of a text encoder -> key of a new word's vectors in the file; empty where new words are refused.
    words: Mapping[str, str]
    # pipe -> the header's `ss_v2`.
    is_v2: Callable[[Any], bool]
    # pipe -> {component.module.path: the module's name in the file}, spelled as `file_names` says.
    file_keys: Callable[[Any], dict[str, str]]
    # (pipe, adapted modules) -> (scheme, published size) that plain LoRAs are written in instead of "peft"; both are
    # empty where "peft" stays.
    named_as: Callable[[Any, set[str]], tuple[str, str]] | None = None

    # Opening it.

    # (folder, device, dtype) -> the pipeline, frozen and in eval mode.
    load: Callable[[Path, str, dtype], Any]
    # folder -> which of `prediction` this model makes; its scheduler's config decides.
    prediction_of: Callable[[Path], str]
    # folder -> the same folder, with a small random model of this architecture in it, built without network.
    tiny: Callable[[Path], Path]

    # Text.

    # (pipe, captions, chunks) -> a conditioning a caption, each over that many windows of the text encoder.
    encode_text: Callable[[Any, list[str], int], list[Conditioning]]
    # (pipe, negative prompts) -> a conditioning a prompt, where they are encoded otherwise than captions.
    encode_negative: Callable[[Any, list[str]], list[Conditioning]] | None = None
    # pipe -> how many tokens of a caption are read in one window.
    window: Callable[[Any], int]
    # (pipe, caption) -> how many tokens it has.
    count_tokens: Callable[[Any, str], int]
    # How many tokens a caption may have where no model is at hand, if the tokenizers' own limit is another.
    caption_tokens: int | None = None
    # (pipe, caption) -> how many windows it fills. A family has this and `encode_windows`, or neither: with both, long
    # prompts are cut into windows and their words can be weighted.
    num_chunks: Callable[[Any, str], int] | None = None
    # (pipe, k windows of token ids) -> the hidden states (k, L, D) of each text encoder, and what else conditions.
    encode_windows: Callable[[Any, list[list[int]]], tuple[list[Tensor], Conditioning]] | None = None

    # A training step.

    # (pipe, images (B, 3, H, W) in [-1, 1]) -> latents (B, C, h, w), normalised as the denoiser takes them.
    encode_image: Callable[[Any, Tensor], Tensor]
    # Conditionings of B captions -> the conditioning of a batch, (B, ...) each. Every one has its picture's `frame`
    # too, (6,) int64 in pixels: height and width of the picture as it was, top and left of the crop in the scaled
    # picture, height and width of the crop. Integers stay integers on their way to `denoise`.
    prepare_batch: Callable[[list[Conditioning]], Conditioning]
    # (denoiser, noised (B, C, h, w), timesteps (B,), conditioning of the batch) -> the prediction (B, C, h, w).
    denoise: Callable[[Module, Tensor, Tensor, Conditioning], Tensor]
    # pipe -> the noise schedule to train with.
    schedule: Callable[[Any], Schedule]

    # A picture.

    # "distilled" where the guidance scale is an input of the model, and a negative prompt takes a second pass.
    guidance: Literal["classifier-free", "distilled"]
    # (pipe, positive, negative or None, guidance) -> arguments of the pipeline's call; conditionings are those of a
    # batch.
    call_settings: Callable[[Any, Conditioning, Conditioning | None, Guidance], dict[str, Any]]
    # (pipe, width_px, height_px, generators): sets on the pipeline, before its call, what the call has no argument for.
    prepare_call: Callable[[Any, int, int, list[Generator]], None] | None = None
    # False where the pipeline takes no negative prompt; a negative prompt is then refused by name.
    negates: bool = True
    # False where the pipeline can't rescale guidance, though the model predicts noise.
    rescales: bool = True
    # Names in `render.samplers` that suit the prediction, but not this pipeline.
    unfit_samplers: tuple[str, ...] = ()
    # False where our ComfyUI graph would be wrong: parts in several files, or a prompt that is read after another text.
    comfyui_graph: bool = True
    # Where the negative prompt stands when guidance takes two predictions: in the first or the second half of one batch
    # of 2B, or in a call of its own, which is the second.
    guidance_layout: Literal["negative first", "positive first", "separate calls"] = "negative first"

    # Where regions act: regular expressions that are searched for in the denoiser's module paths, empty where it has no
    # such layers. The first three have no default: a layer that is forgotten would silently ignore its region.

    # Layers whose outputs belong to the text where image and text meet: keys and values of cross-attention, the text's
    # side of joint attention.
    text_layers: str
    # Layers whose tokens have no place in the picture, as those of the text alone; by chance there may be as many of
    # them as a picture has.
    placeless_layers: str
    # Layers whose tokens are those of text and image, joined.
    joined_layers: str
    # True where the image's tokens come first in the joined tokens.
    image_first: bool = False
    # Whole paths of cross-attention whose maps `regions` reads: of the first expression that any layer matches. Empty
    # where no maps were measured.
    cross_attention: tuple[str, ...] = ()
    # Why pictures can't share a batch: "prompt lengths" where joined tokens are as many as each prompt has, so that a
    # region would miss its place; "weights" where layers mix a batch's pictures, so that all must have the same
    # weights.
    batch_limit: Literal["", "prompt lengths", "weights"] = ""

    @property
    def denoiser(self) -> str:
        """The pipeline's attribute that denoises."""
        return next(iter(self.components))
