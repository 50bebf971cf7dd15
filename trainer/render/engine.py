"""A warm base and whatever stack is on it: the one door to drawing.

The truth is the base plus the sum of `weight_i * delta_i`. A stack goes one way: it is resolved, which tells what it
means on this base (`resolving`); put with others that can be drawn together (`batching`); and drawn, what is constant
folded into the base's weights, the rest live beside it (`batch_drawing`). An adapter at weight 0 is absent. New words
that a file brings are known to the text encoder while the file is in the stack at another weight than 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import base_match
from trainer.config import StackConfig
from trainer.errors import ConfigError
from trainer.memory import mechanics
from trainer.render import batching, picture_metadata, requantising
from trainer.render.adapter_cache import KEPT_BYTES, Shelf
from trainer.render.batch_drawing import Drawing, Watch, together
from trainer.render.effect import Effect, Weights
from trainer.render.folding import ByPath, Folding, Part
from trainer.render.new_words import Vocabulary, Words
from trainer.render.opened_base import open_base
from trainer.render.pipeline_call import Look
from trainer.render.resolving import Library, Resolved, Resolving
from trainer.render.sharing import acts

if TYPE_CHECKING:
    from torch import Tensor


class Engine:
    """One base, kept warm. Not for two threads at once."""

    def __init__(
        self, base: str = "imprimatura", family: str = "sd", device: str = "auto", dtype: str = "auto",
        quantise: str = "none",
        library: Library | None = None, wildcards: Path | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:  # fmt: skip
        """`quantise` keeps the denoiser's linear layers in fewer bits. Raises: ModelError, ConfigError."""
        self.opened = open_base(base, family, device, dtype, quantise)
        modules, self.pipe = self.opened.modules, self.opened.pipe
        narrow = requantising.narrow(modules, Path(self.opened.folder), self.pipe.dtype)
        wide = {path: module.weight.data for path, module in modules.items() if path not in narrow}
        self.vocabulary = Vocabulary(self.pipe, self.opened.family)
        self.shelf = Shelf(self.opened, self.vocabulary.check, kept_bytes)
        self.folding = Folding(wide, narrow, self.shelf.is_pinned)
        self.on_device = self.folding.on_device
        self._resolving = Resolving(self.opened, self.shelf, library or dict, wildcards)
        self._drawing = Drawing(self.opened, self.shelf, self.folding, self.vocabulary)

        # What others ask of the base.
        self.base, self.family, self.folder, self.quantise = base, self.opened.family, self.opened.folder, quantise
        self.component, self.origin = self.family.denoiser, self.opened.origin
        self.weights: Mapping[str, Tensor] = ByPath(modules.keys(), self.folding.weight) if narrow else wide

    @property
    def file_keys(self) -> dict[str, str]:
        """The name of each module in a LoRA file, by component.module.path."""
        return self.opened.file_keys

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights that an adapter can be on, by component.module.path."""
        return self.opened.shapes

    # What a stack means here.

    def resolve(self, stack: StackConfig) -> StackConfig:
        """The same stack spelled out, as a recipe has it.

        Hashes and names are the files' own, masks are in the text, trigger words in the prompt.
        Raises: AdapterError, ConfigError; nothing has been changed then.
        """
        return self._resolving.resolved(stack).stack

    def warnings(self, stack: StackConfig) -> list[str]:
        """A sentence for each LoRA of a resolved stack that acts and says that it is for another base than this."""
        files = dict.fromkeys(Path(adapter.file) for adapter in stack.adapters if acts(adapter))
        return [warning for file in files if (warning := base_match.warning(file, self.origin))]

    def latents(self, stack: StackConfig) -> tuple[int, int]:
        """Height and width of the picture's latents."""
        return self.opened.latents_size(stack)

    # Pictures.

    @contextmanager
    def watched(self, watch: Watch, look: Look | None = None) -> Iterator[None]:
        """For the body, `watch` is told after each sampling step: how many are over, of how many, of how many pictures.

        What it raises ends the drawing there; what is folded then stays so until the next picture or `restore`. `look`
        is given the latents as the pipeline has them.
        """
        self._drawing.watch, self._drawing.look = watch, look
        try:
            yield
        finally:
            self._drawing.watch = self._drawing.look = None

    def render(self, stack: StackConfig) -> picture_metadata.Picture:
        """The stack's picture.

        Raises: AdapterError, ConfigError before anything is changed; the stack that was on stays on.
        """
        return self.draw([self.resolved(stack)])[0]

    def render_all(self, stacks: Iterable[StackConfig]) -> Iterator[picture_metadata.Picture]:
        """The pictures of several stacks, in their order; neighbours that can be one batch are.

        Raises: as `render`, when it comes to that stack.
        """
        for group in batching.groups(map(self._resolving.resolved, stacks), self.opened):
            yield from self.draw(group)

    def resolved(self, stack: StackConfig) -> Resolved:
        """What a stack means here, for `kind` and `draw`. Raises: AdapterError, ConfigError."""
        return self._resolving.resolved(stack)

    def kind(self, picture: Resolved) -> tuple[Any, ...]:
        """Equal for pictures that can be drawn together."""
        return batching.kind(picture, self.opened)

    def draw(self, pictures: list[Resolved]) -> list[picture_metadata.Picture]:
        """Pictures of resolved stacks of one kind, in halves if memory runs out. Raises: AdapterError, ConfigError."""
        try:
            return self._drawing.draw(pictures)
        except (RuntimeError, MemoryError) as error:
            if len(pictures) == 1 or not mechanics.is_shortage(error):
                raise
        # After the `except`, whose error holds the tensors of the step that failed.
        half = len(pictures) // 2
        return self.draw(pictures[:half]) + self.draw(pictures[half:])

    # What is folded.

    def parts(self, stack: StackConfig) -> tuple[dict[str, list[Part]], Words]:
        """What a resolved stack adds to each weight, by path, and the words it brings.

        Raises: ConfigError for what isn't constant.
        """
        weights = self._constant(stack)
        return self.shelf.parts(weights), self.vocabulary.together(self.shelf.words(weights))

    def fold(self, stack: StackConfig) -> None:
        """Put a resolved stack's adapters on the base; a broken-off fold is made good by the next fold.

        Raises: ConfigError for what isn't constant.
        """
        assert all(adapter.sha256 for adapter in stack.adapters), "fold takes what `resolve` gave"
        self._drawing.fold(self._constant(stack))

    def restore(self) -> None:
        """The base as it was loaded, bit for bit."""
        self._drawing.fold({})

    @contextmanager
    def folded(self, stack: StackConfig) -> Iterator[None]:
        """The stack on the base for the body, the base restored after it, also when the body raises."""
        resolved = self.resolve(stack)
        try:
            self.fold(resolved)
            yield
        finally:
            self.restore()

    def _constant(self, stack: StackConfig) -> Mapping[Effect, Weights]:
        """The adapters of a stack and their weights. Raises: ConfigError for what isn't constant."""
        batch = together([self._resolving.resolved(stack)])
        if batch.live:
            raise ConfigError(
                f"{Path(batch.live[0].choice.file).name} has a schedule or a region, or the stack a mode, which can't "
                f"be folded; allowed: constant weights."
            )
        return batch.folded
