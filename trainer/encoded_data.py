"""What a run trains on, encoded: latents by picture, bucket, cut and mirroring, masks, and conditioning by caption.

All of it is prepared before the first step (`fill`) and read back lazily, so that memory does not grow with the
dataset. Where the text encoder itself is trained, captions are encoded as they are needed and only latents come from
the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import bases, cache, choices, data, validation
from trainer.config import TrainConfig
from trainer.data import Dataset, Item, buckets, caption_variants
from trainer.data.order import Order, Sample
from trainer.errors import ConfigError, RunError
from trainer.families.contract import Family

Conditioning = dict[str, Tensor]
# Of how pictures and captions are read and encoded: with another number nothing old is found. 3: profiles are followed.
_VERSION = 3


@dataclass(frozen=True)
class Batch:
    """One batch, whole: what every process draws alike before it takes its rows."""

    number: int
    latents: Tensor  # (B, C, h, w) float32 on the CPU
    masks: Tensor | None  # (B, 1, h, w) in [0, 1]
    captions: list[str]
    class_captions: list[str]
    frames: Tensor  # (B, 6), see `families`
    weights: Tensor  # (B,)
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Part:
    """What a step predicts at once, on the device or on its way there: n pictures of one shape."""

    number: int  # of adapter dropout's draws
    noised: Tensor  # (n, C, h, w), in the base's dtype
    timesteps: Tensor  # (n,)
    target: Tensor  # (n, C, h, w), float32
    weights: Tensor  # (n,)
    masks: Tensor | None  # (n, 1, h, w)
    conditioning: Conditioning | None  # None where the text encoder learns too
    captions: list[str]
    class_captions: list[str]
    frames: Tensor  # (n, 6)
    names: list[str]


class EncodedData:
    """The encoded pictures and captions of a run.

    `pipe` encodes (None: only the plan is wanted); `folder` is the base's, whose weights are in every key.
    """

    def __init__(self, config: TrainConfig, family: Family, pipe: Any, folder: Path, store: Path) -> None:
        self.config, self.family, self.pipe, self.folder = config, family, pipe, folder
        self.store = cache.Store(store)
        self.multiple_px = max(family.multiple_px, bases.multiple_px(folder))
        self.chunks = 1
        # Asked once: diffusers walks the whole model for it, 2 ms of a 50 ms step.
        self.dtype = str(pipe.dtype) if pipe is not None else ""
        self.is_complete = False  # nothing is encoded any more: the encoders are gone
        # Brings the encoders to where they compute, for its body.
        self.encoders: Callable[[], AbstractContextManager[None]] = nullcontext
        # What the keys of latents and of embeddings are made with.
        self._vae = bases.digest(folder, "vae")
        text_parts = [*bases.parts(folder, "text_encoder"), *bases.parts(folder, "tokenizer")]
        self._text = "".join(bases.digest(folder, part) for part in text_parts)

    def lay_out(self, dataset: Dataset, heldout: Dataset | None) -> None:
        """Buckets, wordings and the order of steps; nothing is encoded yet."""
        self.dataset, self.heldout = dataset, heldout
        self.entries = buckets.plan(dataset.items, self.config, self.multiple_px)
        self.wordings = [
            caption_variants.variants(item.captions, self.config.captions, self.config.seed) for item in dataset.items
        ]
        self.order = Order(self.config, self.entries, dataset.items, [len(wordings) for wordings in self.wordings])
        # The longest caption decides for all, since a batch has one length.
        if self._chunks_captions and self.pipe is not None:
            num_chunks = self.family.num_chunks
            assert num_chunks, "captions.long = chunk is refused where captions can't be cut"
            self.chunks = max(num_chunks(self.pipe, caption) for caption in self.all_captions())

    @property
    def _chunks_captions(self) -> bool:
        """True if long captions are read in several windows rather than cut off."""
        match self.config.captions.long:
            case "cut":
                return False
            case "chunk":
                return True
            case other:
                choices.never(other)

    def all_captions(self) -> list[str]:
        """Every string that may be asked of the text encoder, sorted."""
        # Those of measuring, of training, and of preservation; and the empty string, for dropped captions.
        sets = [self.dataset.items, self.heldout.items if self.heldout else []]
        held = [self.measured_caption(item) for items in sets for item in items]
        own = [caption for wordings in self.wordings for caption in wordings]
        preserved = (
            [self._class_caption(caption) for caption in own] if self.config.objective.preservation_weight else []
        )
        return sorted({*own, *held, *preserved, ""})

    def measured_caption(self, item: Item) -> str:
        """The one string a picture is measured with, of the kind it is trained with."""
        return caption_variants.settled(item.captions, self.config.captions, self.config.seed)

    def long_captions(self) -> list[str]:
        """A sentence for each picture whose caption is cut off at the text encoder's window."""
        if self.chunks > 1 or self._chunks_captions:
            return []
        problems = []
        window = self.family.window(self.pipe)
        mend = "shorten it, or set captions.long=chunk" if self.family.num_chunks else "shorten it"
        for item, wordings in zip(self.dataset.items, self.wordings, strict=True):
            longest = max(self.family.count_tokens(self.pipe, caption) for caption in wordings)
            if longest > window:
                problems.append(f"{item.name}: {longest} tokens, of which the text encoder reads {window}; {mend}.")
        return problems

    def questions(self, dataset: Dataset | None, limit: int | None = None) -> validation.Questions | None:
        """What is asked of the first `limit` pictures of a set; None without a set."""
        items = [item for item in dataset.items if not item.regular][:limit] if dataset else []
        if not items:
            return None
        latents = [self.latents(item, self.own_bucket(item), 0, False) for item in items]
        frames = [torch.tensor(data.frame(item, self.own_bucket(item), 0, False)) for item in items]
        return validation.Questions(latents, [self.measured_caption(item) for item in items], frames)

    def fill(
        self, with_text: bool, stop: Callable[[], bool], tell: Callable[[int, int], None] = lambda done, total: None
    ) -> tuple[int, int]:
        """Encode what is not in the cache; (entries, computed). What is encoded stays when `stop` breaks it off.

        `tell` is told how many entries of all are done, before each.

        Raises: ConfigError if the autoencoder gives NaN, KeyboardInterrupt once `stop` says so.
        """
        # Pictures, in every form that steps will have.
        before, broken, count = self.store.num_computed, [], 0
        views, captions = list(self._views()), self.all_captions() if with_text else []
        total = len(views) + len(captions)
        for item, bucket, cut, mirrored in views:
            tell(count, total)
            count += 1
            _stop_if(stop)
            if not torch.isfinite(self.latents(item, bucket, cut, mirrored)).all():
                broken.append(item.name)
        if broken:
            raise ConfigError(f"the autoencoder gave NaN for {', '.join(broken[:5])}; set dtype=float32.")

        # Captions.
        for caption in captions:
            tell(count, total)
            count += 1
            _stop_if(stop)
            self.conditioning(caption)
        return count, self.store.num_computed - before

    def _views(self) -> Iterator[tuple[Item, buckets.Bucket, int, bool]]:
        """Every picture, bucket, cut and mirroring that is asked for: in training, and when measuring."""
        # Repeats have the same entry, and are encoded once.
        cuts = buckets.cuts(self.config.data.crop)
        for entry in dict.fromkeys(self.entries):
            for cut in cuts:
                for mirrored in (False, True) if self.config.data.flip else (False,):
                    yield self.dataset.items[entry.index], entry.bucket, cut, mirrored
        for item in self.heldout.items if self.heldout else ():
            yield item, self.own_bucket(item), 0, False

    def own_bucket(self, item: Item) -> buckets.Bucket:
        """The bucket of a held-out picture."""
        return buckets.assign(
            item.width_px, item.height_px, self.config.resolution_px, self.config.data, self.multiple_px
        )

    def latents(self, item: Item, bucket: buckets.Bucket, cut: int, mirrored: bool) -> Tensor:
        """(C, h, w), float32."""
        background = self.config.data.background
        # The key has all that the numbers depend on; the picture's own hash, so that it may be renamed.
        name = cache.key(
            "latents", _VERSION, self.family.name, self._vae, self.dtype, bucket, cut, mirrored, background, item.sha256
        )

        def encode() -> Conditioning:
            return {
                "latents": self.family.encode_image(
                    self.pipe, data.load_pixels(item, bucket, cut, mirrored, background)[None]
                )[0]
            }

        return self.store.get(name, self._while_here(encode))["latents"].float()

    def mask(self, item: Item, sample: Sample, size: tuple[int, int]) -> Tensor:
        """(1, h, w) in [0, 1] at the latents' size, the mean over each latent's pixels; all ones without a mask."""
        if item.mask is None:
            return torch.ones(1, *size)
        name = cache.key(
            "mask", _VERSION, sample.bucket, sample.cut, sample.mirrored, item.mask_sha256, item.sha256, size
        )

        def shrink() -> Conditioning:
            whole = data.load_mask(item, sample.bucket, sample.cut, sample.mirrored)
            return {"mask": torch.nn.functional.adaptive_avg_pool2d(whole[None], size)[0]}

        return self.store.get(name, shrink)["mask"]

    def conditioning(self, caption: str) -> Conditioning:
        """What the denoiser is given for this caption, from the cache.

        For an empty caption it is what guidance gives it where there is no negative prompt.
        """
        name = cache.key("text", _VERSION, self.family.name, self._text, self.dtype, self.chunks, caption)

        def encode() -> Conditioning:
            if not caption and self.family.encode_negative:
                return self.family.encode_negative(self.pipe, [caption])[0]
            return self.family.encode_text(self.pipe, [caption], self.chunks)[0]

        return self.store.get(name, self._while_here(encode))

    def _while_here(self, encode: Callable[[], Conditioning]) -> Callable[[], Conditioning]:
        """What computes an entry that the cache lacks: `encode` where the encoders compute, else a refusal."""

        def refuse() -> Conditioning:
            raise RunError(
                f"an entry of the cache in {self.store.folder} was removed or damaged while the run needed it; go on "
                f"with --resume."
            )

        def encode_there() -> Conditioning:
            with self.encoders():
                return encode()

        return refuse if self.is_complete else encode_there

    def caption(self, sample: Sample) -> str:
        """The exact string a sample is trained with."""
        return "" if sample.wording is None else self.wordings[sample.picture][sample.wording]

    def batches(self, step: int) -> list[Batch]:
        """The whole batches of a step."""
        return [self.batch(number, samples) for number, samples in self.order.step(step)]

    def batch(self, number: int, samples: list[Sample]) -> Batch:
        """The batch of these samples."""
        views = [(self.dataset.items[sample.picture], sample.bucket, sample.cut, sample.mirrored) for sample in samples]
        items = [item for item, *_ in views]
        latents = torch.stack([self.latents(*view) for view in views])  # (B, C, h, w)
        masks = None  # (B, 1, h, w)
        if self.config.data.mask != "off":
            size = latents.shape[-2], latents.shape[-1]
            masks = torch.stack([self.mask(item, sample, size) for item, sample in zip(items, samples, strict=True)])
        captions = [self.caption(sample) for sample in samples]
        return Batch(
            number=number,
            latents=latents,
            masks=masks,
            captions=captions,
            class_captions=[self._class_caption(caption) for caption in captions],
            frames=torch.tensor([data.frame(*view) for view in views]),
            weights=torch.tensor([item.weight for item in items]),
            names=[item.name for item in items],
        )

    def _class_caption(self, caption: str) -> str:
        """The caption with the class in the trigger's place: what the base knows of the same picture."""
        trigger, kind = self.config.data.trigger, self.config.data.class_caption
        if not caption:
            return ""
        return data.without_trigger(caption, trigger, kind) if trigger and data.has_trigger(caption, trigger) else kind


def _stop_if(stop: Callable[[], bool]) -> None:
    """Raises: KeyboardInterrupt once `stop` says so; what is encoded by then stays in the cache."""
    if stop():
        raise KeyboardInterrupt
