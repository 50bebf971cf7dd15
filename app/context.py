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
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from app import own_bases
from app.jobs import JobRunner
from app.logs import EventLogs
from app.render_requests import POLL_S, Desks, Rendering
from app.texts import say
from trainer import file_names, files, lora_file, system, unique_names
from trainer.config import StackConfig
from trainer.data import open_image
from trainer.data.opening import open_mask
from trainer.data.sources import mask_beside, pictures_below
from trainer.data.uploads import safe_stem
from trainer.errors import AdapterError, ConfigError, DataError
from trainer.printing import plain, some, whole

if TYPE_CHECKING:
    from trainer.lora_file import LoraInfo
    from trainer.render.analysis import Analysis
    from trainer.render.baking import Baked
    from trainer.render.engine import Engine
    from trainer.render.picture_metadata import Picture

OWN_BASE = "imprimatura"
EXAMPLES = Path(__file__).parent / "examples"
THUMBNAIL_PX = 320
_MOST_SHOWN = 20_000  # files that are remembered
_TINT = "#a04e2b"  # over what a mask leaves out


@dataclass(frozen=True)
class Refresh:
    """What a tab shows anew when it is opened, and with `on_load` also when the page is."""

    handler: Callable[..., Any]
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    on_load: bool = True
    forms: Sequence[Any] = ()  # the tab's `Form`s: what they show and hide is said anew with kept values
    opens: Sequence[tuple[Any, Any]] = ()  # a button, and the box that says what it opens in which tab (`open_in_tab`)
    tells: Sequence[Any] = ()  # HTML of ours whose event `open` says in `opens` what it opens in which tab
    edited: Refresh | None = None  # what it says anew when a field was changed (`page_values`)
    look: Refresh | None = None  # what it shows of jobs, whenever something about them is new (`change_polling`)
    in_turn: Mapping[str, Any] | None = None  # Gradio's lane (`concurrency_id`, `concurrency_limit`) for a look


@dataclass
class Context:
    """Made once a server; safe to use from many requests at once."""

    workspace: Path
    runner: JobRunner
    first_bases: tuple[str, ...] = (OWN_BASE,)  # that it was started with: folders, files and hub ids
    logs: EventLogs = field(default_factory=EventLogs)
    desks: Desks = field(default_factory=Desks)
    paces: dict[str, float] = field(default_factory=dict)  # seconds a pixel and step by base, of the last picture
    shown: OrderedDict[str, Path] = field(default_factory=OrderedDict)  # files by what their thumbnails are called
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
    def masks(self) -> Path:
        """Pictures that say where a LoRA acts."""
        return self.workspace / "masks"

    @property
    def wildcards(self) -> Path:
        """Text files that `__name__` in a prompt names."""
        return self.workspace / "wildcards"

    @property
    def captioners(self) -> Path:
        """Folders of models that write captions."""
        return self.workspace / "captioners"

    @property
    def stacks(self) -> Path:
        """Stacks that were saved under a name."""
        return self.workspace / "stacks"

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
            raise DataError(say("dataset.none_chosen"))
        if name not in self.dataset_names():
            raise DataError(say("dataset.gone", name=name))
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
            thumbnail = self.cache / "thumbs" / f"{self._named(path)}.webp"
            if not thumbnail.is_file():
                image = open_image(path)
                image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
                _write_webp(image, thumbnail)
        except OSError as error:
            raise DataError(say("problems.cannot_show", reason=error.strerror or error)) from None
        return thumbnail

    def thumbnails(self, paths: Sequence[Path]) -> list[tuple[Path, Path]]:
        """Each picture that opens, with its thumbnail; a picture that doesn't hides no other."""
        shown = []
        for path in paths:
            with suppress(DataError):
                shown.append((path, self.thumbnail(path)))
        return shown

    def masked_thumbnail(self, path: Path, mask: Path) -> Path:
        """A small WebP of a picture, tinted where its mask is dark. Raises: DataError if either doesn't open."""
        thumbnail = self.cache / "thumbs" / f"{_fingerprint(path)}-{_fingerprint(mask)}.webp"
        if not thumbnail.is_file():
            image = open_image(path)
            inside = open_mask(mask).resize(image.size)
            outside = Image.blend(image, Image.new("RGB", image.size, _TINT), 0.65)
            image = Image.composite(image, outside, inside)  # white in the mask: as it is
            image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            _write_webp(image, thumbnail)
        return thumbnail

    def published(self, path: Path) -> Path:
        """A file of ours where the browser can fetch it byte for byte, under its own name.

        A run's best has the run's name before it.
        """
        public = self.cache / "files" / self._named(path) / whole(f"{self.lora_name(path)}{path.suffix}")
        if not public.is_file():
            with files.replacing(public) as unnamed:
                system.link_or_copy(path, unnamed)  # our files are replaced whole, never written into
        return public

    def _named(self, path: Path) -> str:
        """What a file's thumbnail is called, which is remembered; the eldest are forgotten first."""
        self.shown[name := _fingerprint(path)] = path
        while len(self.shown) > _MOST_SHOWN:
            self.shown.popitem(last=False)
        return name

    def published_of(self, paths: Sequence[Path]) -> list[tuple[Path, str]]:
        """Each file that can be read, with where the browser can fetch it."""
        public = []
        for path in paths:
            with suppress(OSError, ValueError):
                public.append((path, str(self.published(path))))
        return public

    # Bases.

    @property
    def bases(self) -> tuple[str, ...]:
        """Folders, checkpoint files and hub ids that the page may name, with those that lie in the workspace now."""
        return tuple(dict.fromkeys([*self.first_bases, *own_bases.found(self.workspace / "bases")]))

    def base_choices(self) -> list[tuple[str, str]]:
        """The bases to choose from, as (label, base)."""
        bases = self.bases
        # By the last part of its path, unless two bases have that in common.
        names = [Path(base).name if Path(base).is_absolute() else base for base in bases]
        return [(name if names.count(name) == 1 else base, base) for name, base in zip(names, bases, strict=True)]

    def base(self, wanted: str) -> str:
        """The base of that name, or of that folder name, as recipes carry it.

        Raises: ConfigError if the server doesn't offer it.
        """
        named = [base for label, base in self.base_choices() if wanted in (label, base)]
        if not named:
            allowed = some([label for label, _ in self.base_choices()])
            raise ConfigError(say("problems.base", base=wanted[:200], allowed=allowed))
        return named[0]

    # LoRAs.

    def known_loras(self) -> dict[str, LoraInfo]:
        """LoRAs by hash as last looked for, without looking for new LoRAs."""
        # One file a hash, the newest; a run's best or step that is also its last goes by the run's name.
        loras = [info for info in list(self._loras.values()) if info is not None and info.path.is_file()]
        by_hash = {info.sha256: info for info in loras}
        by_hash |= {info.sha256: info for info in loras if not file_names.is_earlier(info.path)}

        # Its copies under other names.
        copies: dict[str, list[Path]] = {}
        for info in loras:
            if info.path != by_hash[info.sha256].path:
                copies.setdefault(info.sha256, []).append(info.path)
        return {
            sha256: dataclasses.replace(info, copies=tuple(copies[sha256])) if sha256 in copies else info
            for sha256, info in by_hash.items()
        }

    def lora_name(self, path: Path) -> str:
        """What a LoRA file is called: by its file, and a run's best by its run."""
        if path.name == file_names.BEST and path.parent.parent == self.runs:
            return f"{path.parent.name}-best"
        return lora_file.name_of(path)

    def find_loras(self) -> dict[str, LoraInfo]:
        """LoRAs by hash, runs' and uploaded, with those that are new or changed; what can't be read is passed over."""
        # What was read is kept by path, time and size: each file is read whole for its hash.
        with self._loras_lock:
            loras: dict[tuple[Path, int, int], LoraInfo | None] = {}
            for path, status in self._lora_files():
                key = (path, status.st_mtime_ns, status.st_size)
                if key in self._loras:
                    loras[key] = self._loras[key]
                    continue
                try:
                    loras[key] = dataclasses.replace(lora_file.inspect(path), name=self.lora_name(path))
                except (AdapterError, OSError):
                    loras[key] = None
            self._loras = loras
        return self.known_loras()

    def _lora_files(self) -> list[tuple[Path, os.stat_result]]:
        """The LoRA files of the runs and the library, oldest first."""
        finished = [path for path in self.runs.glob("*/*.safetensors") if not path.parent.name.startswith(".")]
        own = [path for path in self.loras.rglob("*.safetensors") if not path.name.startswith(".")]
        return sorted(with_status(finished + own), key=lambda file: file[1].st_mtime)

    def lora(self, sha256: str) -> LoraInfo:
        """The LoRA of that hash. Raises: AdapterError if it isn't here."""
        info = self.known_loras().get(sha256) or self.find_loras().get(sha256)
        if info is None:
            raise AdapterError(say("problems.lora_gone"))
        return info

    # Rendering.

    @contextmanager
    def engine(self, stack: StackConfig, rendering: Rendering | None = None) -> Iterator[Engine]:
        """The warm engine of the stack's base, for the body alone; requests wait for each other while they are wanted.

        Raises: Cancelled, from within the body too.
        """
        rendering = rendering or Rendering()
        # In short turns, so that a request that was cancelled stops waiting.
        while not self._engine_lock.acquire(timeout=POLL_S):
            rendering.check()
        try:
            rendering.check()
            engine = self._warm(stack)
            with engine.watched(rendering.watch, rendering.look and rendering.look(engine)):
                yield engine
            # By this a batch's time is told where no batch was drawn yet.
            if (pace := rendering.step_pace_s) is not None:
                self.paces[stack.base] = pace / (stack.width_px * stack.height_px)
        finally:
            self._engine_lock.release()

    def render(self, stack: StackConfig, rendering: Rendering | None = None) -> Picture:
        """The stack's picture. Raises: Cancelled, ConfigError, AdapterError."""
        with self.engine(stack, rendering) as engine:
            return engine.render(stack)

    def warnings(self, stack: StackConfig) -> list[str]:
        """A sentence for each LoRA of the stack that says that it is for another base."""
        with self.engine(stack) as engine:
            return engine.warnings(engine.resolve(stack))

    def analyse(self, stack: StackConfig, rendering: Rendering | None = None) -> Analysis:
        """How the stack's LoRAs meet. Raises: Cancelled, AdapterError, ConfigError."""
        from trainer.render import analysis, overlap

        rendering = rendering or Rendering()
        with self.engine(stack, rendering) as engine:
            stack = engine.resolve(stack)
            chosen = [adapter for adapter in stack.adapters if adapter.enabled]
            if not chosen:
                raise ConfigError(say("stack.no_lora_on"))
            together = overlap.acting(chosen, stack.mode, stack.steps, engine.latents(stack))
            engine.restore()  # updates are measured against the base's own weights
            updates = [overlap.load(adapter, engine.file_keys, engine.shapes) for adapter in chosen]
            report = analysis.analyse(updates, engine.weights, together, rendering.part_done)
            return dataclasses.replace(report, warnings=engine.warnings(stack))

    def bake(self, stack: StackConfig, name: str, rank: int, rendering: Rendering | None = None) -> Baked:
        """The stack as one LoRA of the library, exact for rank 0. Raises: Cancelled, ConfigError, RunError."""
        from trainer.render import baking

        rendering = rendering or Rendering()
        with self.engine(stack, rendering) as engine, unique_names.temporary(self.loras, ".baking") as unnamed:
            baked = baking.lora(engine, stack, unnamed, rank, part_done=rendering.part_done)
            path = unique_names.put(unnamed, unique_names.numbered(self.loras, safe_stem(f"{name}.x"), ".safetensors"))
        self.find_loras()
        return dataclasses.replace(baked, path=path)

    def _warm(self, stack: StackConfig) -> Engine:
        """The engine of the stack's base; another base replaces the base that is loaded."""
        from trainer.render.engine import Engine

        if self._engine is None or self._engine.base != stack.base or self._engine.family.name != stack.family:
            self._engine = None  # first, or two bases would be in memory at once
            self._engine = Engine(stack.base, stack.family, library=self.find_loras, wildcards=self.wildcards)
        return self._engine

    def warm_up(self) -> None:
        """Import what rendering needs and read the LoRAs, in the background after the page is up."""

        def warm() -> None:
            self.find_loras()
            from trainer.render import engine, grid  # noqa: F401

        threading.Thread(target=warm, name="warm-up", daemon=True).start()


def with_status(paths: Sequence[Path]) -> list[tuple[Path, os.stat_result]]:
    """The plain files among these that are there and can be looked at: no folders, pipes or links to nothing."""
    regular = []
    for path in paths:
        with suppress(OSError, ValueError):
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                regular.append((path, status))
    return regular


def newest_first(paths: Sequence[Path]) -> list[Path]:
    """The plain files among these, the newest first."""
    return [path for path, _ in sorted(with_status(paths), key=lambda file: -file[1].st_mtime_ns)]


def _fingerprint(path: Path) -> str:
    """A name that changes when the file does."""
    status = path.stat()
    return hashlib.sha256(f"{path}\0{status.st_mtime_ns}\0{status.st_size}".encode()).hexdigest()[:32]


def _write_webp(image: Image.Image, path: Path) -> None:
    with files.replacing(path) as unnamed:
        image.save(unnamed, "WEBP", quality=82)
