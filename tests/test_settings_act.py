"""No setting is dead: each one of a training, changed alone, changes the run (its tensors, order, files or events) or
is refused by name.

Trained through `session.start` on tiny bases. What a memory setting changes is no number of the result:
tests/test_memory_acts.py measures those.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from tests import plain
from trainer import families, methods, presets, session
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.schema import Settings

_VOLATILE = {"seconds", "peak_memory_bytes", "name", "message", "num_computed"}
# What an event says of the settings themselves: it would differ for one that acts on nothing.
_ECHOES = {"base", "device", "dtype", "learning_rate", "max_steps", "prompt"}
_SET = {"data.heldout": "HELDOUT"}
_FLOW: dict[str, Any] = {"family": "sd3", "base": "SD3"}
_OVERTRAINED = {
    "adapter.targets": "all",
    "learning_rate": 0.3,
    "optimizer.schedule": "constant",
    "seed": 1,
    "max_steps": 5,
    "validate_every_steps": 1,
}
_MASKED, _TAGGED = {"data.mask": "file"}, {"captions.shuffle_tags": True}
_WORD, _EPOCH = {"inversion.token": "mokka"}, {"max_steps": 5}  # an epoch: every picture is seen

# What to change each setting to, and what else both runs need. HELDOUT and the like stand for folders that the test
# makes.
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "family": ("sd3", {"base": "SD3"}),
    "base": ("OTHER", {}),
    "max_steps": (3, {}),
    "batch_size": (1, {}),
    "accumulation": (2, {}),
    "learning_rate": (1e-3, {}),
    "resolution_px": (48, {}),
    "seed": (1, {}),
    "checkpoint_every_steps": (1, {}),
    "preview_every_steps": (1, {"preview.prompts": ["a dot"]}),
    "validate_every_steps": (1, _SET),
    "keep_checkpoints": (1, {"checkpoint_every_steps": 1}),
    "device": ("ABSENT", {}),
    "dtype": ("bfloat16", {}),
    "track": ("tensorboard", {}),
    "save_dtype": ("float16", {}),
    "adapter.rank": (2, {}),
    "adapter.alpha": (1.0, {}),
    "adapter.factor": (2, {}),
    "adapter.decompose_both": (True, {"adapter.rank": 1, "adapter.factor": 16}),
    "adapter.block_size": (4, {}),
    "adapter.targets": ("linear", {}),
    "adapter.text_encoder": (True, {}),
    "adapter.dropout": (0.5, {}),
    "adapter.block_ranks": (["up_blocks=1"], {"adapter.rank": 2, "adapter.factor": 2}),
    "adapter.only_layers": (["up_blocks"], {}),
    "adapter.without_layers": (["up_blocks"], {}),
    "adapter.rank_stabilised": (True, {}),
    "adapter.init": ("gaussian", {}),
    "data.folder": ("HELDOUT", {}),
    "data.heldout": ("HELDOUT", {}),
    "data.trigger": ("zanzi", {}),
    "data.caption_dropout": (1.0, {}),
    "data.flip": (True, {}),
    "data.crop": ("random", {}),
    "data.buckets": (False, {}),
    "data.bucket_step_px": (24, {"resolution_px": 48}),
    "data.max_aspect_ratio": (1.0, {"data.bucket_step_px": 8}),
    "data.max_upscale": (16.0, {"resolution_px": 64, "data.bucket_step_px": 8}),
    "data.more_resolutions_px": ([48], {}),
    "data.kohya_folders": (False, {}),
    "data.repeats": (["2_more=3"], {}),
    "data.weights": (["2_more=0.2"], _EPOCH),
    "data.background": ("#ff0000", _EPOCH),
    "data.mask": ("file", {}),
    "data.mask_folder": ("MASKS", _MASKED),
    "data.regularisation": ("HELDOUT", {}),
    "data.regularisation_weight": (0.5, {"data.regularisation": "HELDOUT"}),
    "data.class_caption": ("thing", {"data.class_caption": "dot", "objective.preservation_weight": 0.5}),
    "captions.prefix": ("photo of ", {}),
    "captions.suffix": (", at night", {}),
    "captions.shuffle_tags": (True, {}),
    "captions.tag_dropout": (0.5, {}),
    "captions.keep_tags": (0, _TAGGED),
    "captions.separator": (";", _TAGGED),
    "captions.wildcards": (True, {}),
    "captions.lines": ("choose", {}),
    "captions.variants": (2, _TAGGED),
    "captions.long": ("chunk", {}),
    "objective.loss": ("huber", {}),
    "objective.huber_delta": (2.0, {"objective.loss": "huber"}),
    "objective.weighting": ("debiased", {}),
    "objective.min_snr_gamma": (0.01, {"objective.weighting": "min-snr"}),
    "objective.noise_offset": (0.1, {}),
    "objective.multires_noise": (4, {}),
    "objective.multires_discount": (0.1, {"objective.multires_noise": 4}),
    "objective.input_perturbation": (0.1, {}),
    "objective.timesteps": ("logit-normal", {}),
    "objective.timesteps_mean": (1.0, {"objective.timesteps": "logit-normal"}),
    "objective.timesteps_std": (0.5, {"objective.timesteps": "logit-normal"}),
    "objective.timesteps_mode_scale": (0.5, {"objective.timesteps": "mode"}),
    "objective.timesteps_low": (0.5, {}),
    "objective.timesteps_high": (0.5, {}),
    "objective.shift": ("fixed", _FLOW),
    "objective.shift_factor": (1.5, _FLOW | {"objective.shift": "fixed"}),
    "objective.unmasked_weight": (0.9, _MASKED),
    "objective.preservation_weight": (0.5, {"data.class_caption": "dot", "data.regularisation": "HELDOUT"}),
    "optimizer.name": ("lion", {}),
    "optimizer.other": ("AdaBelief", {"optimizer.name": "other", "optimizer.other": "Lamb"}),
    "optimizer.options": (["betas=(0.5, 0.9)"], {}),
    "optimizer.schedule": ("constant", {}),
    "optimizer.cycles": (2, {"optimizer.schedule": "restarts", "max_steps": 6}),
    "optimizer.warmup_steps": (1, {}),
    "optimizer.weight_decay": (0.9, {}),
    "optimizer.max_grad_norm": (1e-6, {"optimizer.options": ["eps=1e-3"]}),
    "optimizer.ema_decay": (0.9, {}),
    "optimizer.loraplus_ratio": (4.0, {}),
    "optimizer.block_rates": (["up_blocks=0"], {}),
    "optimizer.max_weight_norm": (1e-4, {}),
    "inversion.token": ("mokka", {}),
    "inversion.vectors": (2, _WORD),
    "inversion.start_from": ("cat", _WORD),
    "inversion.learning_rate": (0.5, _WORD | _EPOCH),
    "optimizer.extended": (["2=2"], {"max_steps": 3}),
    "start.source": ("LORA", {}),
    "start.optimizer": (True, {"start.source": "CHECKPOINT"}),
    "against.adapters": (["LORA:1"], {}),
    "against.overlap_penalty": (5.0, {"against.adapters": ["LORA:1"]}),
    "validation.leave_out": (1, {}),
    "validation.folds": (2, {}),
    "validation.neutral_prompts": (["a house"], _SET),
    "validation.stop_when_overtrained": (True, _SET | _OVERTRAINED),
    "preview.prompts": (["a blue dot"], {"preview_every_steps": 2, "preview.prompts": ["a dot"]}),
    "preview.seed": (2, {"preview_every_steps": 2, "preview.prompts": ["a dot"]}),
    "preview.steps": (3, {"preview_every_steps": 2, "preview.prompts": ["a dot"]}),
    "preview.guidance_scale": (9.0, {"preview_every_steps": 2, "preview.prompts": ["a dot"]}),
    "preview.guidance_rescale": (0.7, {"preview_every_steps": 2, "preview.prompts": ["a dot"]}),
}  # fmt: skip
# Settings with nothing to change, each with its reason.
EXEMPT = {"version": "has one value", "adapter.method": "is what the others are walked for, each method in turn"}


def leaves(model: type[Settings], prefix: str = "") -> list[str]:
    """Every setting's dotted name but the adapter's, which differ by method."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if name == "adapter":
            continue
        keys += (
            leaves(kind, f"{prefix}{name}.")
            if isinstance(kind, type) and issubclass(kind, Settings)
            else [f"{prefix}{name}"]
        )
    return keys


CASES = [(name, "lora") for name in leaves(TrainConfig) if not name.startswith("memory.") and name not in EXEMPT]
CASES += [
    (f"adapter.{name}", method)
    for method, module in methods.registry().items()
    for name in module.Config.model_fields
    if name != "method"
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, str]:
    """Pictures that give every setting something to act on, and what else the changes name."""
    root = tmp_path_factory.mktemp("acts")
    _pictures(root / "pictures")
    _few(root / "heldout")
    (root / "masks").mkdir()
    for path in [*(root / "pictures").glob("*.png"), *(root / "pictures").rglob("2_more/*.png")]:
        if ".mask" not in path.name:
            with Image.open(path) as opened:
                mask = Image.new("L", opened.size, 255)
            mask.paste(0, (0, 0, mask.width // 3, mask.height))
            mask.save(root / "masks" / path.name)
    sd = families.registry()["sd"]
    bases = {
        "PICTURES": str(root / "pictures"),
        "HELDOUT": str(root / "heldout"),
        "MASKS": str(root / "masks"),
        "TINY": str(tiny),
    }
    bases["SD3"] = str(families.registry()["sd3"].tiny(root / "sd3"))
    bases["OTHER"] = str(_other(sd.tiny(root / "other")))
    bases["ABSENT"] = next(name for name in ("cuda", "mps") if not _has(name))
    config = _config(bases, "lora", {"max_steps": 1})
    run, stream = session.start(config, root / "lora", "x", None)
    list(stream)
    bases["LORA"] = str(run.lora_file)
    bases["CHECKPOINT"] = str(run.checkpoints / "step-000001")
    return bases


def _has(device: str) -> bool:
    import torch

    return torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()


def _other(folder: Path) -> Path:
    """The same architecture with other weights."""
    from safetensors.torch import save_file

    file = next((folder / "unet").glob("*.safetensors"))
    save_file({name: tensor * 1.5 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    return folder


def _pictures(folder: Path) -> None:
    """A wide, a tall, a transparent and a very small picture, with tags, a wildcard, two lines and a long caption."""
    (folder / "2_more").mkdir(parents=True)
    captions = [
        "a red dot, big, {thick|thin} line\na ball, round",
        "mokka, a green dot, small",
        "mokka, " + "a long way from here, " * 40 + "end",
        "a blue dot",
    ]
    sizes = [(96, 48), (40, 80), (64, 64), (20, 20)]
    for number, (caption, size) in enumerate(zip(captions, sizes, strict=True)):
        image = Image.new("RGBA", size, (255, 255, 255, 0 if number == 2 else 255))
        ImageDraw.Draw(image).ellipse((4, 4, size[0] // 2, size[1] // 2 + number), fill=(60 * number, 200, 80, 255))
        place = folder / "2_more" if number == 1 else folder
        image.save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(caption)
        mask = Image.new("L", size, 0)
        mask.paste(255, (0, 0, size[0] // 2, size[1]))
        mask.save(place / f"{number}.mask.png")


def _few(folder: Path) -> None:
    folder.mkdir()
    for number in range(4):
        image = Image.new("RGB", (48, 48), "white")
        ImageDraw.Draw(image).rectangle((8, 8, 30, 20 + 6 * number), fill=(0, 60 * number, 250))
        image.save(folder / f"h{number}.png")
        (folder / f"h{number}.txt").write_text(f"a box, mokka, number {number}")


def _config(places: dict[str, str], method: str, changes: dict[str, Any]) -> TrainConfig:
    values: dict[str, Any] = {
        "base": "TINY", "data.folder": "PICTURES", "resolution_px": 32, "max_steps": 2, "batch_size": 2,
        "learning_rate": 1e-2, "checkpoint_every_steps": 2,
        "preview_every_steps": 0, "preview.prompts": [], "preview.steps": 2, "preview.guidance_rescale": 0.0,
        "validate_every_steps": 2,
        "adapter.method": method, "dtype": "float32", "device": "auto",
    }  # fmt: skip
    fields = methods.registry()[method].Config.model_fields
    values |= (
        {"adapter.rank": 4, "adapter.alpha": 4.0} if "rank" in fields else {"adapter.rank": None, "adapter.alpha": None}
    )
    values |= changes
    chosen = {key: _placed(value, places) for key, value in values.items() if value is not None}
    return presets.load(plain.CHARACTER, chosen) if "rank" in fields else _without_rank(chosen)


def _without_rank(chosen: dict[str, Any]) -> TrainConfig:
    """The preset's rank and alpha belong to its own method."""
    whole = presets.load(plain.CHARACTER, {}).model_dump(mode="json") | {"adapter": {}}
    for key, value in chosen.items():
        group, _, name = key.rpartition(".")
        (whole[group] if group else whole)[name] = value
    return TrainConfig.model_validate(whole)


def _placed(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_placed(part, places) for part in value]
    if isinstance(value, str) and value.partition(":")[0] in places:
        name, colon, rest = value.partition(":")
        return places[name] + colon + rest
    return value


@pytest.fixture(scope="module")
def outcome(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`outcome(method, changes)`: what a run with these settings is seen to do, or why it was refused; once
    for each.
    """
    known: dict[str, Any] = {}

    def run(method: str, changes: dict[str, Any]) -> Any:
        key = repr((method, sorted(changes.items())))
        if key not in known:
            try:
                known[key] = _seen(_config(places, method, changes), tmp_path_factory.mktemp("run"))
            except UserError as error:
                known[key] = str(error)
        return known[key]

    return run


def _seen(config: TrainConfig, parent: Path) -> dict[str, Any]:
    run, stream = session.start(config, parent, "x", None)
    events = [
        {key: value for key, value in dataclasses.asdict(event).items() if key not in _VOLATILE | _ECHOES}
        | {"kind": event.kind}
        for event in stream
    ]
    tensors = {
        name: (str(tensor.dtype), hashlib.sha256(tensor.float().numpy().tobytes()).hexdigest())
        for name, tensor in load_file(run.lora_file).items()
    }
    files = sorted(str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file())
    pictures = {
        path.name: hashlib.sha256(Image.open(path).tobytes()).hexdigest() for path in run.folder.rglob("samples/*.png")
    }
    return {
        "events": events,
        "tensors": tensors,
        "files": [file for file in files if "tfevents" not in file],
        "pictures": pictures,
    } | {"tracked": any("tfevents" in file for file in files)}


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_setting_that_is_changed_changes_the_run(name: str, method: str, outcome: Callable[..., Any]) -> None:
    assert name in CHANGES, f"{name} is a new setting: say in CHANGES what it is to be changed to"
    value, needed = CHANGES[name]
    if name == "adapter.targets":
        value = "attention-ff"
    needed = {
        key: change
        for key, change in needed.items()
        if not key.startswith("adapter.") or key.partition(".")[2] in methods.registry()[method].Config.model_fields
    }
    before, after = outcome(method, needed), outcome(method, needed | {name: value})
    assert isinstance(before, dict) or name == "family", before
    assert isinstance(after, dict) or name == "device", after
    assert before != after, f"{name} = {value!r} changes nothing"


def test_every_change_is_of_a_setting_that_exists() -> None:
    assert CHANGES.keys() == {name for name, _ in CASES}
