"""What every tab shares: the workspace's folders, the job runner, the LoRAs there are, and one warm render engine.

The browser never names a path: datasets, pictures and LoRAs are chosen from what is here, by name or hash. Only
pictures that we encoded reach the browser, through Gradio's cache folder; nothing else is ever served.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.jobs import JobRunner
from app.logs import EventLogs
from trainer import files, system, unique_names
from trainer.config import StackConfig
from trainer.data import open_image
from trainer.data.opening import open_mask
from trainer.data.sources import mask_beside, pictures_below
from trainer.data.uploads import safe_stem
from trainer.errors import AdapterError, ConfigError, DataError
from trainer.printing import plain, some, whole

if TYPE_CHECKING:
    from PIL.Image import Image

    from trainer.lora_file import LoraInfo
    from trainer.render.analysis import Analysis
    from trainer.render.axes import Axis
    from trainer.render.baking import Baked
    from trainer.render.engine import Engine
    from trainer.render.image import Picture

OWN_BASE = "imprimatura"
EXAMPLES = Path(__file__).parent / "examples"
BEST = "best.safetensors"  # in a run's folder, beside its last step
THUMBNAIL_PX = 320
_TINT = "#a04e2b"


@dataclass(frozen=True)
class Refresh:
    """What a tab shows anew when it is opened, and with `on_load` also when the page is."""

    handler: Callable[..., Any]
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    on_load: bool = True


@dataclass
class Context:
    """Made once a server; safe to use from many requests at once."""

    workspace: Path
    runner: JobRunner
    bases: tuple[str, ...] = (OWN_BASE,)  # folders and hub ids that the page may name
    logs: EventLogs = field(default_factory=EventLogs)
    _engine: Engine | None = None
    _engine_lock: threading.Lock = field(default_factory=threading.Lock)
    _loras: dict[tuple[Path, int, int], LoraInfo | None] = field(default_factory=dict)
    _loras_lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def datasets(self) -> Path:
        return self.workspace / "datasets"

    @property
    def runs(self) -> Path:
        return self.workspace / "runs"

    @property
    def loras(self) -> Path:
        return self.workspace / "loras"

    @property
    def renders(self) -> Path:
        return self.workspace / "renders"

    @property
    def batches(self) -> Path:
        return self.workspace / "batches"

    @property
    def cache(self) -> Path:
        """Gradio's own folder: what lies here, and only that, can be fetched by the browser."""
        return self.workspace / "cache" / "gradio"

    # Datasets.

    def dataset_names(self) -> list[str]:
        """Datasets of the workspace, sorted; a link that leads out of it is none."""
        here = self.workspace.resolve()
        folders = [path for path in self.datasets.glob("*") if path.is_dir() and not path.name.startswith(".")]
        return sorted(path.name for path in folders if not path.is_symlink() or path.resolve().is_relative_to(here))

    def dataset_choices(self) -> list[tuple[str, str]]:
        """The same to choose from, as (label, name)."""
        return [(plain(name), name) for name in self.dataset_names()]

    def dataset(self, name: str | None) -> Path:
        """The folder of a dataset. Raises: DataError if there is none of that name."""
        if not name:
            raise DataError("no dataset is chosen; make one or copy a sample set in the Dataset tab.")
        if name not in self.dataset_names():
            raise DataError(f"dataset {name!r} is not here; reload the page to see what is.")
        return self.datasets / name

    def pictures(self, folder: Path) -> list[Path]:
        """The pictures of a dataset, sorted by name; masks, conditions, thumbnails and waste are none."""
        return pictures_below(folder)

    def mask(self, picture: Path) -> Path | None:
        """The mask that lies beside a picture."""
        return mask_beside(picture)

    # What the browser may fetch.

    def thumbnail(self, path: Path) -> Path:
        """A small WebP of a picture, made once. Raises: DataError if it doesn't open."""
        try:
            made = self.cache / "thumbs" / f"{_fingerprint(path)}.webp"
            if not made.is_file():
                image = open_image(path)
                image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
                _write_webp(image, made)
        except OSError as error:
            raise DataError(f"can't be shown: {error.strerror or error}") from None
        return made

    def thumbnails(self, paths: Sequence[Path]) -> list[tuple[Path, Path]]:
        """Each picture that opens, with its thumbnail; one that doesn't hides no other."""
        found = []
        for path in paths:
            with suppress(DataError):
                found.append((path, self.thumbnail(path)))
        return found

    def masked_thumbnail(self, path: Path, mask: Path) -> Path:
        """A small WebP of a picture, tinted where its mask is dark. Raises: DataError if either doesn't open."""
        from PIL import Image

        made = self.cache / "thumbs" / f"{_fingerprint(path)}-{_fingerprint(mask)}.webp"
        if not made.is_file():
            image = open_image(path)
            inside = open_mask(mask).resize(image.size)
            outside = Image.blend(image, Image.new("RGB", image.size, _TINT), 0.65)
            image = Image.composite(image, outside, inside)
            image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            _write_webp(image, made)
        return made

    def published(self, path: Path) -> Path:
        """A file of ours where the browser can fetch it byte for byte, under its own name; a run's best with the run's before it."""
        made = self.cache / "files" / _fingerprint(path) / whole(f"{self.lora_name(path)}{path.suffix}")
        if not made.is_file():
            with files.replacing(made) as unnamed:
                system.link_or_copy(path, unnamed)  # our files are replaced whole, never written into
        return made

    def published_of(self, paths: Sequence[Path]) -> list[tuple[Path, str]]:
        """Each file that can be read, with where the browser can fetch it."""
        found = []
        for path in paths:
            with suppress(OSError, ValueError):
                found.append((path, str(self.published(path))))
        return found

    # Bases.

    def base_choices(self) -> list[tuple[str, str]]:
        """The bases to choose from, as (label, base)."""
        names = [Path(base).name if Path(base).is_absolute() else base for base in self.bases]
        return [(name if names.count(name) == 1 else base, base) for name, base in zip(names, self.bases, strict=True)]

    def base(self, wanted: str) -> str:
        """The base of that name, or of that folder name, as recipes carry it. Raises: ConfigError if the server doesn't offer it."""
        named = [base for label, base in self.base_choices() if wanted in (label, base)]
        if not named:
            allowed = some([label for label, _ in self.base_choices()])
            raise ConfigError(f"base is {wanted[:200]!r}, which this server does not offer; allowed: {allowed}. Start it with --base to offer another.")
        return named[0]

    # LoRAs.

    def known_loras(self) -> dict[str, LoraInfo]:
        """LoRAs by hash as last looked for; answers at once. A run's best that is also its last goes by the run's name."""
        found = [info for info in list(self._loras.values()) if info is not None and info.path.is_file()]
        known = {info.sha256: info for info in found} | {info.sha256: info for info in found if info.path.name != BEST}
        others: dict[str, list[Path]] = {}
        for info in found:
            if info.path != known[info.sha256].path:
                others.setdefault(info.sha256, []).append(info.path)
        return {sha256: dataclasses.replace(info, copies=tuple(others[sha256])) if sha256 in others else info for sha256, info in known.items()}

    def lora_name(self, path: Path) -> str:
        """What a LoRA file is called: by its file, and a run's best by its run."""
        from trainer import lora_file

        return f"{path.parent.name}-best" if path.name == BEST and path.parent.parent == self.runs else lora_file.name_of(path)

    def find_loras(self) -> dict[str, LoraInfo]:
        """LoRAs by hash, runs' and uploaded; files that are new or changed are read, what can't be read is passed over."""
        from trainer import lora_file

        with self._loras_lock:
            found: dict[tuple[Path, int, int], LoraInfo | None] = {}
            for path, status in self._lora_files():
                key = (path, status.st_mtime_ns, status.st_size)
                if key in self._loras:
                    found[key] = self._loras[key]
                    continue
                try:
                    found[key] = dataclasses.replace(lora_file.inspect(path), name=self.lora_name(path))
                except (AdapterError, OSError):
                    found[key] = None
            self._loras = found
        return self.known_loras()

    def _lora_files(self) -> list[tuple[Path, os.stat_result]]:
        finished = [path for path in self.runs.glob("*/*.safetensors") if not path.parent.name.startswith(".")]
        own = [path for path in self.loras.rglob("*.safetensors") if not path.name.startswith(".")]
        return sorted(with_status(finished + own), key=lambda one: one[1].st_mtime)

    def lora(self, sha256: str) -> LoraInfo:
        """The LoRA of that hash. Raises: AdapterError if it isn't here."""
        info = self.known_loras().get(sha256) or self.find_loras().get(sha256)
        if info is None:
            raise AdapterError("that LoRA is not here any more; reload the page to see what is.")
        return info

    # Rendering.

    def render(self, stack: StackConfig) -> Picture:
        """The stack's picture from the warm engine; requests wait for each other."""
        with self._engine_lock:
            return self._warm(stack).render(stack)

    def warnings(self, stack: StackConfig) -> list[str]:
        """A sentence for each LoRA of the stack that says that it is for another base."""
        with self._engine_lock:
            engine = self._warm(stack)
            return engine.warnings(engine.resolve(stack))

    def render_grid(self, stack: StackConfig, weights: list[list[float]]) -> Image:
        """The stack's first one or two LoRAs at every weight, as one sheet."""
        from trainer.render.grid import weight_grid

        with self._engine_lock:
            return weight_grid(self._warm(stack), stack, weights)

    def render_strip(self, stack: StackConfig) -> Image:
        """The base, each LoRA alone, all but each, and all, as one sheet."""
        from trainer.render.grid import attribution

        with self._engine_lock:
            return attribution(self._warm(stack), stack)

    def render_modes(self, stack: StackConfig) -> Image:
        """The stack in every mode that it can be drawn in, as one sheet."""
        from trainer.render.grid import of_modes

        with self._engine_lock:
            return of_modes(self._warm(stack), stack)[0]

    def render_axes(self, stack: StackConfig, axes: list[Axis]) -> Image:
        """The stack at every value of one to three settings, as one sheet."""
        from trainer.render import axes as grids
        from trainer.render import checkpoints

        with self._engine_lock:
            engine = self._warm(stack)
            return grids.draw(engine, *checkpoints.spelled_out(engine, stack, axes))[0]

    def analyse(self, stack: StackConfig) -> Analysis:
        """How the stack's LoRAs meet. Raises: AdapterError, ConfigError."""
        from trainer.render import analysis, overlap

        with self._engine_lock:
            engine = self._warm(stack)
            stack = engine.resolve(stack)
            chosen = [one for one in stack.adapters if one.enabled]
            if not chosen:
                raise ConfigError("no LoRA is on; choose one, or several to see how they meet.")
            together = overlap.acting(chosen, stack.mode, stack.steps, engine.latents(stack))
            engine.restore()
            found = analysis.analyse([overlap.load(one, engine.file_keys, engine.shapes) for one in chosen], engine.weights, together)
            return dataclasses.replace(found, warnings=engine.warnings(stack))

    def bake(self, stack: StackConfig, name: str, rank: int) -> Baked:
        """The stack as one LoRA of the library, exact for rank 0. Raises: ConfigError, RunError."""
        from trainer.render import baking

        with self._engine_lock, unique_names.temporary(self.loras, ".baking") as unnamed:
            made = baking.lora(self._warm(stack), stack, unnamed, rank)
            path = unique_names.put(unnamed, unique_names.numbered(self.loras, safe_stem(f"{name}.x"), ".safetensors"))
        self.find_loras()
        return dataclasses.replace(made, path=path)

    def _warm(self, stack: StackConfig) -> Engine:
        """The engine of the stack's base; another base replaces the one that is loaded."""
        from trainer.render.engine import Engine

        if self._engine is None or self._engine.base != stack.base or self._engine.family.name != stack.family:
            self._engine = None
            self._engine = Engine(stack.base, stack.family, library=self.find_loras)
        return self._engine

    def warm_up(self) -> None:
        """Import what rendering needs and read the LoRAs, in the background after the page is up."""

        def warm() -> None:
            self.find_loras()
            from trainer.render import engine, grid  # noqa: F401

        threading.Thread(target=warm, name="warm-up", daemon=True).start()


def with_status(paths: Sequence[Path]) -> list[tuple[Path, os.stat_result]]:
    """The plain files among these that are there and can be looked at: no folders, pipes or links to nothing."""
    found = []
    for path in paths:
        with suppress(OSError, ValueError):
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                found.append((path, status))
    return found


def newest_first(paths: Sequence[Path]) -> list[Path]:
    """The plain files among these, the newest first."""
    return [path for path, _ in sorted(with_status(paths), key=lambda one: -one[1].st_mtime_ns)]


def _fingerprint(path: Path) -> str:
    status = path.stat()
    return hashlib.sha256(f"{path}\0{status.st_mtime_ns}\0{status.st_size}".encode()).hexdigest()[:32]


def _write_webp(image: Image, path: Path) -> None:
    with files.replacing(path) as made:
        image.save(made, "WEBP", quality=82)
