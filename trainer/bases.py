"""From a `base` setting to a folder on this machine, and what hardware it is to run on.

Nothing is fetched unless the command was given `--download`: a hub id that isn't in the local cache is refused with
how to get it. Downloading could not be run where this was written (no network); it is huggingface_hub's own call.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from trainer import families, foreign_json, model_registry, single_file
from trainer.errors import ConfigError, ModelError, UserError
from trainer.families.contract import Family
from trainer.lazy import diffusers, torch, transformers
from trainer.printing import some

if TYPE_CHECKING:
    import torch

IMPRIMATURA = Path(__file__).parent / "imprimatura"
_LARGE = 200_000_000  # parameters from which bfloat16 is faster on a CPU that has it
_LARGEST_HEAD = 100_000_000  # bytes, as safetensors has it
# Where configs of autoencoders list their stages: KL, deep compression, Wan and Qwen-Image.
_STAGES = ("block_out_channels", "encoder_block_out_channels", "dim_mult")
_MOST_STAGES = 10
_FILES = ["*.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model", "*/*.jinja"]


# Where a base is.


def resolve(base: str, family: Family, download: bool = False) -> Path:
    """The diffusers folder of a base; a single file is laid out as one first.

    Raises: ModelError if it isn't here or is another family's.
    """
    # Where it is: a file, a folder, or the hub's cache.
    folder, entry = place(base)
    if _is(folder, "is_file"):
        single_file.refuse_strangers(single_file.detect(single_file.read_head(folder)), base, family.name)
        return _laid_out(folder, entry)
    if not _is(folder, "is_dir"):
        folder = _from_hub(base, download)

    # Is it a pipeline of this family?
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"base is {base[:400]!r}, a folder without model_index.json; it must be a diffusers pipeline folder."
        )
    try:
        parts = foreign_json.table(index)
    except (OSError, ValueError):
        raise ModelError(
            f"base {base[:400]!r} has a model_index.json that can't be read; it must be a diffusers pipeline folder."
        ) from None
    pipeline = str(parts.get("_class_name"))[:80]
    if pipeline != family.pipeline:
        names = [name for name, other in families.registry().items() if other.pipeline == pipeline]
        whose = f" (family {names[0]})" if names else ", which no family here knows"
        raise ModelError(f"base {base[:400]!r} is a {pipeline}{whose}; family {family.name} needs a {family.pipeline}.")

    # Is it whole? A part that is null in the index is one that the pipeline does without.
    if missing := [
        name
        for name, kind in parts.items()
        if isinstance(kind, list) and kind[:1] != [None] and not _is(folder / name, "is_dir")
    ]:
        raise ModelError(
            f"base {base[:400]!r} lacks {some([name[:80] for name in missing])}, which its model_index.json names; "
            f"copy the whole folder."
        )
    return folder


def fetch(base: str) -> None:
    """Fetch a base from the hub if it is neither here nor a name that is known. Raises: ModelError."""
    folder, _ = place(base)
    if not _is(folder, "exists"):
        _from_hub(base, True)


def family_of(base: str) -> str:
    """The family of a base that is here, by its model_index.json.

    It is sd where it can't be known: whoever then opens the base as sd is told what is wrong with it.
    """
    try:
        folder, _ = place(base)
        if _is(folder, "is_file"):
            detected = single_file.detect(single_file.read_head(folder)).family
            return detected if detected in families.registry() else "sd"
        if not _is(folder, "is_dir"):
            folder = _from_hub(base, False)
        pipeline = foreign_json.table(folder / "model_index.json").get("_class_name")
    except (UserError, OSError, ValueError, AttributeError):
        pipeline = None
    return next((name for name, family in families.registry().items() if family.pipeline == pipeline), "sd")


def place(base: str) -> tuple[Path, model_registry.Entry | None]:
    """Where a base is, before the hub is asked, and its entry in the registry if it has one.

    It is Imprimatura, a path, or a registered name, which a folder of that name beats.
    """
    if base == "imprimatura":
        return IMPRIMATURA, None
    path = Path(base)
    if _is(path, "is_file"):
        return path, model_registry.of_path(path)
    if _is(path, "is_dir") or (entry := model_registry.entries().get(base)) is None:
        return path, None
    return model_registry.there(entry, single_file.sha256), entry


def folder_of(base: str) -> Path:
    """Where a base's files are, whatever its family; a single file is laid out.

    What is neither a file nor a registered name is taken for a folder.
    """
    path, _ = place(base)
    return resolve(base, families.registry()[family_of(base)]) if _is(path, "is_file") else path


def planned(file: Path, entry: model_registry.Entry | None) -> single_file.Plan:
    """What the folder of a single file is made of, by what was said when it was registered. Raises: ModelError."""
    if entry is None:
        return single_file.plan(file, single_file.Wishes())
    named = {name: Path(path) for name, path in entry.parts.items()}
    return single_file.plan(
        file, single_file.Wishes(Path(entry.like) if entry.like else None, named, entry.prediction or None)
    )


def _laid_out(file: Path, entry: model_registry.Entry | None) -> Path:
    """The diffusers folder of a single file, written on its first use."""
    quiet_libraries()
    return single_file.convert(
        planned(file, entry), model_registry.shelf(), model_registry.digest(file, single_file.sha256)
    )


def parts(folder: Path, kind: str) -> list[str]:
    """Names of a diffusers folder's parts of one kind: text_encoder, text_encoder_2 ..."""
    return sorted(path.name for path in folder.glob(f"{kind}*") if path.is_dir())


def _is(path: Path, what: str) -> bool:
    """What a path says of itself (is_file, is_dir, exists); False for a name that no file can have."""
    try:
        return bool(getattr(path, what)())
    except OSError:  # a name longer than any file's
        return False


# What a base says of itself.


def multiple_px(folder: Path) -> int:
    """What sides of pictures are multiples of: the autoencoder's factor times the latents in one token.

    Raises: ModelError.
    """
    try:
        config = foreign_json.table(folder / "vae" / "config.json")
        patch: int = families.registry()[family_of(str(folder))].patch
        return vae_factor(config) * patch
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        raise ModelError(
            f"base {str(folder)!r} has no readable vae/config.json; it must be a diffusers pipeline folder."
        ) from None


def vae_factor(config: dict[str, Any]) -> int:
    """How many times smaller an autoencoder of this config makes pictures, a side.

    Raises: StopIteration if it doesn't say, ValueError for what can't be.
    """
    stages = next(config[name] for name in _STAGES if name in config)
    if not isinstance(stages, list) or not 1 <= len(stages) <= _MOST_STAGES:
        raise ValueError(f"{_MOST_STAGES} stages at most")
    return int(2 ** (len(stages) - 1))  # every stage but the last halves the sides


def prediction_of(folder: Path, family: Family) -> str:
    """What the model in a folder predicts, which a UNet's scheduler says. Raises: ModelError."""
    try:
        return str(family.prediction_of(folder))
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"base {str(folder)!r} has no readable scheduler/scheduler_config.json; it must be a diffusers pipeline "
            f"folder."
        ) from None


def longest_px(folder: Path) -> int | None:
    """The longest side that the base's denoiser has positions for; None where there is no end. Raises: ModelError."""
    family = families.registry()[family_of(str(folder))]
    if family.max_side_tokens is None:
        return None
    try:
        return family.max_side_tokens(folder) * multiple_px(folder)
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"base {str(folder)!r} has no readable transformer/config.json; it must be a diffusers pipeline folder."
        ) from None


def check_pixels(folder: Path, sizes: dict[str, int]) -> None:
    """Refuse sizes (setting -> pixels) that the autoencoder would round or the denoiser has no positions for.

    Raises: ModelError.
    """
    multiple, longest = multiple_px(folder), longest_px(folder)
    if problems := [
        f"{name} is {size}"
        for name, size in sizes.items()
        if size % multiple or not 2 * multiple <= size <= (longest or size)
    ]:
        raise ModelError(
            f"{', '.join(problems)}; allowed for this base: a multiple of {multiple} from {2 * multiple} "
            f"{f'to {longest}' if longest else 'up'}."
        )


# Opening it.


def open_pipeline(family: Family, folder: Path, device: str, dtype: torch.dtype) -> Any:
    """The family's pipeline. Raises: ModelError if the folder's files are not what they should be."""
    from safetensors import SafetensorError

    quiet_libraries()
    try:
        return family.load(folder, device, dtype)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(f"base {str(folder)!r} can't be loaded: {type(error).__name__}: {error}") from error


def _from_hub(base: str, download: bool) -> Path:
    """The folder of a base in the hub's cache, fetched first if that was asked for. Raises: ModelError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(base, allow_patterns=_FILES, local_files_only=not download))
    except HFValidationError:
        raise ModelError(
            f"base is {base[:400]!r}: no such folder, and not a hub id; allowed: imprimatura, a diffusers folder, a "
            f".safetensors file, a name that `velatura models list` shows, or a hub id such as owner/model."
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        how = "the network or the hub could not be reached" if download else "add --download to fetch it"
        raise ModelError(
            f"base {base[:400]!r} is not a folder here, nor a file, a name in `velatura models list`, or a downloaded "
            f"model; {how}."
        ) from None


def quiet_libraries() -> None:
    """Let diffusers, transformers and bitsandbytes print errors only; what they advise is not for artists."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # imported by peft where it is installed

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Else each bar, also one that isn't shown, starts a thread that watches it; where memory is short, the start hangs.
    tqdm.monitor_interval = 0
    warnings.filterwarnings("ignore", message=".*torch_dtype.*", category=FutureWarning)  # 0.41 knows no other name


# Its digest.


def digest(folder: Path, component: str) -> str:
    """sha256 of a component's config and weights; read once while the files stay as they are."""
    paths = [path for path in sorted((folder / component).glob("*")) if path.suffix in (".json", ".safetensors")]
    return _digest(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths))


@cache
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """sha256 over files; their sizes and times are arguments so that a changed one is read again."""
    state = hashlib.sha256()
    for path, _, _ in files:
        state.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                state.update(chunk)
    return state.hexdigest()


# What it is to run on.


def hardware(device: str, dtype: str, folder: Path | None = None) -> tuple[str, torch.dtype]:
    """The device and the frozen base's dtype. Raises: ConfigError if this machine has no such device.

    auto: CUDA, then Apple's, then the CPU; bfloat16 on a GPU that has it, float16 on one that hasn't. On a CPU bfloat16
    if the processor has instructions for it and the denoiser in `folder` is large, else float32: a step of 860 million
    parameters takes 7.7 s instead of 16.7 s, one of Imprimatura's 19 million 0.129 s instead of 0.134 s. What the
    processor says it has is asked and no stopwatch, so that a run has the same dtype whenever it is started.
    """
    # The device: the first that is here, in this order.
    is_here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    here = [name for name, is_there in is_here.items() if is_there]
    chosen = here[0] if device == "auto" else device
    if not is_here[chosen]:
        raise ConfigError(f"device is {device!r}, which this machine hasn't; allowed: auto, {', '.join(here)}.")

    # The dtype that it computes fastest in.
    if dtype != "auto":
        wanted: torch.dtype = getattr(torch, dtype)
        return chosen, wanted
    if chosen == "cpu":
        gains = folder is not None and _computes_bf16() and num_parameters(folder) >= _LARGE
        return chosen, torch.bfloat16 if gains else torch.float32
    # A card that only emulates bfloat16 (before Ampere) takes far longer in it than in float16.
    has_bf16 = chosen == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return chosen, torch.bfloat16 if has_bf16 else torch.float16


def _computes_bf16() -> bool:
    """True if this processor multiplies bfloat16 matrices itself.

    It is then 5-9 times as fast as in float32 with AMX, 2-3 times with AVX512-BF16.
    """
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(has.get("amx_bf16") or has.get("avx512_bf16"))


def num_parameters(folder: Path) -> int:
    """Parameters of the denoiser in a diffusers folder, by the heads of its weight files; 0 if none can be read."""
    total = 0
    for file in (path for component in ("unet", "transformer") for path in (folder / component).glob("*.safetensors")):
        # safetensors begins with the length of its JSON head in 8 bytes.
        with file.open("rb") as opened:
            size = min(int.from_bytes(opened.read(8), "little"), _LARGEST_HEAD)
            try:
                head = json.loads(opened.read(size))
                total += sum(math.prod(entry["shape"]) for name, entry in head.items() if name != "__metadata__")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                return 0  # loading says what is wrong with it
    return total
