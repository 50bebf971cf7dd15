"""A reference set: what Velatura makes, as digests, to show that a change of the code changes nothing that is made.

    python -m tests.reference write before.json     # in the tree before the change
    python -m tests.reference compare before.json   # in the tree after it, on the same machine

On Imprimatura and on the tiny model of every family it trains, draws and renders a batch, through the commands that
users type. What is kept: the tensors of each LoRA, its header, the run's events, and of each picture its pixels and its
text. Times, dates, versions and folders are left out. Byte equality is only asked of one machine: another processor
sums in another order.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
PRESET = str(ROOT / "tests" / "presets" / "style.toml")
SIZE_PX = 64
MOST_SHOWN = 5  # differences of one field
CHANGES_EACH_TIME = re.compile(r"(seconds|^time|date$|_at$|_s$|_ms$|peak|session_id|velatura.version)")
METHODS = ("dora", "loha", "lokr", "oft")
SETTINGS = (
    "memory.quantise=int8", "memory.gradient_checkpointing=true", "memory.micro_batch=1", "optimizer.ema_decay=0.5",
    "captions.shuffle_tags=true",
    "objective.weighting=min-snr", "objective.loss=huber", "objective.timesteps=logit-normal",
    "objective.timesteps=mode", "optimizer.name=prodigy",
    "optimizer.name=adafactor", "optimizer.schedule=rex", "batch_size=1", "accumulation=2", "dtype=float16",
    "adapter.init=pissa", "data.crop=random",
)  # fmt: skip


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:20]


def steady(value: Any, folder: Path) -> Any:
    """The value without what differs from one run to the next: times, dates and the folder it was made in."""
    if isinstance(value, dict):
        return {key: steady(item, folder) for key, item in value.items() if not CHANGES_EACH_TIME.search(key)}
    if isinstance(value, list):
        return [steady(item, folder) for item in value]
    return value.replace(str(folder), "FOLDER") if isinstance(value, str) else value


def command(*arguments: str | Path) -> str:
    """What the command prints. Raises: RuntimeError with it, if the command fails."""
    from trainer.__main__ import main

    printed, before = io.StringIO(), sys.argv
    sys.argv = ["velatura", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"velatura {' '.join(map(str, arguments))}: {printed.getvalue()[-3000:]}") from None
    finally:
        sys.argv = before
    return printed.getvalue()


def unpacked(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def bytes_of(tensor: Any) -> bytes:
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def of_lora(path: Path, folder: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = {key: unpacked(text) for key, text in (file.metadata() or {}).items()}
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + bytes_of(tensor))
    return {
        "tensors": digest.hexdigest()[:20],
        "names": sha(" ".join(tensors).encode()),
        "header": steady(header, folder),
    }


def of_picture(path: Path, folder: Path) -> dict[str, Any]:
    from PIL import Image

    with Image.open(path) as picture:
        pixels = sha(picture.convert("RGBA").tobytes())
        texts = {key: value.replace(str(folder), "FOLDER") for key, value in getattr(picture, "text", {}).items()}
    return {"pixels": pixels} | texts


def of_run(run: Path, folder: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    outcome: dict[str, Any] = {"events": [steady(line, folder) for line in lines]}
    outcome |= {path.name: of_lora(path, folder) for path in sorted(run.glob("*.safetensors"))}
    return outcome | {path.name: of_picture(path, folder) for path in sorted((run / "samples").glob("*.png"))}


def draw_dots(folder: Path) -> Path:
    """Four small pictures with a caption each."""
    from PIL import Image, ImageDraw

    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue", "black")):
        picture = Image.new("RGB", (40 + 24 * (number % 2), 40), "white")
        ImageDraw.Draw(picture).ellipse((5, 5, 30, 20 + 3 * number), fill=colour)
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} blorb dot, small, round", encoding="utf-8")
    return folder


def train(folder: Path, name: str, *settings: str) -> Path:
    """The LoRA of a run of three steps."""
    given = [
        "max_steps=3",
        "batch_size=2",
        "learning_rate=0.02",
        "adapter.rank=3",
        "preview_every_steps=3",
        "preview.steps=2",
        *settings,
    ]
    if "adapter.method=oft" in settings:
        given = [line for line in given if line != "adapter.rank=3"]
    given = list({line.partition("=")[0]: line for line in given}.values())
    sets = itertools.chain.from_iterable(("--set", line) for line in given)
    command(
        "train",
        PRESET,
        "--data",
        folder / "dots",
        "--heldout",
        folder / "dots",
        "--name",
        name,
        "--out",
        folder / "runs",
        *sets,
    )
    return folder / "runs" / name / f"{name}.safetensors"


def imprimatura(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every method, mode, way of stacking and several settings of training and memory, on the base that ships."""
    yield from _trainings(folder)
    yield from _drawings(folder)
    yield "batch", lambda: _batch(folder)


def _trainings(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    def trained(name: str, *settings: str) -> Any:
        train(folder, name, *settings)
        return of_run(folder / "runs" / name, folder)

    word = ("adapter.text_encoder=true", "inversion.token=blorb")
    yield "lora", lambda: trained("lora", "adapter.targets=attention", "data.trigger=dot")
    yield "all", lambda: trained("all", "adapter.targets=all", "seed=5", "data.trigger=small", *word)
    for method in METHODS:
        yield method, lambda method=method: trained(method, f"adapter.method={method}")
    for number, setting in enumerate(SETTINGS):
        yield f"set {setting}", lambda number=number, setting=setting: trained(f"set{number}", setting)


REGIONS = """\
prompt = "a cat and a dog"
steps = 4
[[adapters]]
file = "{runs}/lora/lora.safetensors"
region = "box 0 0 0.5 1"
blocks = ["MID=0.5"]
[[adapters]]
file = "{runs}/all/all.safetensors"
region = "box 0.5 0 1 1"
text_weight = 0.3
trigger = true
"""


def _drawings(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Pictures of the LoRAs that `_trainings` left in the folder."""
    runs, out = folder / "runs", folder / "pictures"

    def drawn(name: str, *arguments: str, stack: Path | None = None) -> Any:
        given = ["--stack", stack] if stack else ["--prompt", "mokka, a cat", "--steps", "4"]
        command("render", *given, "--out", out / f"{name}.png", *arguments)
        return of_picture(out / f"{name}.png", folder)

    def drawn_by(method: str) -> Any:
        return drawn(f"drawn-{method}", "--lora", f"{runs}/{method}/{method}.safetensors:0.7", *first)

    # Folded, live, and by each mode.
    first, second = ("--lora", f"{runs}/lora/lora.safetensors:0.8"), ("--lora", f"{runs}/all/all.safetensors:0.6")
    both = (*first, *second)
    yield "base", lambda: drawn("base")
    yield "folded", lambda: drawn("folded", *both)
    for method in METHODS:
        yield f"drawn {method}", lambda method=method: drawn_by(method)
    for mode in ("switch", "composite", "k-lora", "loratorio"):
        yield mode, lambda mode=mode: drawn(mode, *both, "--set", f"mode={mode}")

    # Regions.
    regions = folder / "regions.toml"
    regions.write_text(REGIONS.format(runs=runs), encoding="utf-8")
    words = ("--set", "mode=regions", "--prompt", "a dot and a small cat")
    yield "regions", lambda: drawn("regions", stack=regions)
    yield "automatic regions", lambda: drawn("automatic", *both, *words)

    # Other settings of a picture, and sheets.
    yield "schedule", lambda: drawn("schedule", *both, "--set", "adapters.0.schedule=steps 0:1 0.5:0")
    yield "emphasis", lambda: drawn("emphasis", *first, "--prompt", "a (black:1.4) cat BREAK [small] hat")
    yield "quantised", lambda: drawn("quantised", *first, "--quantise", "int8")
    yield "grid", lambda: drawn("grid", "--lora", f"{runs}/lora/lora.safetensors:0,0.5,1")
    yield "strip", lambda: drawn("strip", *both, "--strip")
    yield "axes", lambda: drawn("axes", *first, "--axis", "seed=1,2", "--axis", "guidance_scale=1,4")


def _batch(folder: Path) -> Any:
    rows = "prompt,seed\n<lora:lora:0.5> a cat,1\n<lora:all:0.7> a dog,2\na fox,3\n<lora:all:0.2> a fox,3\n"
    (folder / "jobs.csv").write_text(rows, encoding="utf-8")
    out, options = folder / "batch", ("--steps", "3", "--library", folder / "runs", "--name", "{number}")
    command("batch", folder / "jobs.csv", *options, "--out", out)
    return {path.name: of_picture(path, folder) for path in sorted(out.glob("*.png"))}


def of_family(name: str, folder: Path) -> Any:
    """A run and three pictures on the tiny model of this family: alone, folded in a stack and with a schedule."""
    from trainer import families

    family = families.registry()[name]
    base = family.tiny(folder / "base")
    text_encoder = "true" if len(family.components) > 1 else "false"
    small = [
        f"family={name}",
        f"base={base}",
        f"resolution_px={SIZE_PX}",
        "dtype=float32",
        "preview.guidance_rescale=0",
    ]
    first = train(folder, "first", *small, "adapter.targets=all", f"adapter.text_encoder={text_encoder}")
    second = train(folder, "second", *small, "adapter.targets=attention", "seed=5")
    made = {"first": of_run(first.parent, folder), "second": of_run(second.parent, folder)}
    stacks: dict[str, list[str | Path]] = {"base": [], "folded": ["--lora", f"{first}:0.7", "--lora", f"{second}:0.4"]}
    stacks["schedule"] = [*stacks["folded"], "--set", "adapters.0.schedule=steps 0:1 0.5:0"]
    for label, arguments in stacks.items():
        path = folder / f"{label}.png"
        command(
            "render",
            "--base",
            base,
            "--prompt",
            "a cat",
            "--steps",
            "2",
            "--size",
            f"{SIZE_PX}x{SIZE_PX}",
            "--set",
            f"family={name}",
            "--out",
            path,
            *arguments,
        )
        made[label] = of_picture(path, folder)
    return made


def make(only: set[str]) -> dict[str, Any]:
    """`{"imprimatura: switch": {...}, ...}`; what can't be made holds the reason, which is compared like the rest."""
    import torch

    from trainer import families

    torch.set_num_threads(2)
    made: dict[str, Any] = {}

    def keep(label: str, call: Callable[[], Any]) -> None:
        try:
            made[label] = call()
        except RuntimeError as error:
            made[label] = {"error": str(error)}
        print(label, "" if "error" not in made[label] else made[label]["error"][-300:], file=sys.stderr, flush=True)

    for name in ["imprimatura", *sorted(families.registry())]:
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            draw_dots(folder / "dots")
            if name == "imprimatura":
                for label, call in imprimatura(folder):
                    keep(f"imprimatura: {label}", call)
            else:
                keep(name, lambda name=name, folder=folder: of_family(name, folder))
    return made


def differences(before: Any, after: Any, *where: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every place where the two differ, as the keys that lead there, and both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(after.keys() - before.keys())]:
            yield from differences(before.get(key), after.get(key), *where, key)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (first, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(first, other, *where, str(number))
    elif before != after:
        yield where, f"{str(before)[:200]} -> {str(after)[:200]}"


def main(what: str, path: Path, *only: str) -> int:
    made = make(set(only))
    if what == "write":
        path.write_text(json.dumps(made, indent=1), encoding="utf-8")
        return 0
    before = json.loads(path.read_text(encoding="utf-8"))
    wrong = list(differences({key: before[key] for key in before if not only or key in made}, made))
    # By what differs, as one new setting stands in every recipe: how often, and where first.
    by_field: dict[str, list[str]] = {}
    for where, values in wrong:
        by_field.setdefault(where[-1], []).append(f"{' / '.join(where)}: {values}")
    print(f"{len(made)} things made, {len(wrong)} differences")
    for field, found in sorted(by_field.items(), key=lambda item: -len(item[1])):
        print(f"{len(found)} x {field}", *found[:MOST_SHOWN], sep="\n    ")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
