"""What a run begins with in place of an adapter that does nothing: the weights of a LoRA, or of a run's checkpoint.

The new run keeps a copy below its folder, so that it can go on whatever becomes of the old one. From a LoRA's file the
update is put into the adapter's own parameters, at the adapter's own scale: the first step then draws what the LoRA at
weight 1 draws. From a checkpoint they are the very tensors, and with `start.optimizer` all the rest of it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from trainer import (
    checkpoint,
    families,
    file_names,
    layer_patterns,
    lora_file,
    methods,
    presets,
    runs,
    system,
    validation,
)
from trainer.config import TrainConfig, parse
from trainer.config.parsing import short_name
from trainer.errors import AdapterError, ConfigError
from trainer.lora_tools import opening
from trainer.printing import listed

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.training_model import TrainingModel

FOLDER = "start"  # below a run
# What an optimizer's saved state depends on: changed, it would be put back over the new setting.
_OF_THE_STATE = ("name", "other", "options", "weight_decay", "loraplus_ratio", "block_rates", "ema_decay")
_LAYERS = ("only_layers", "without_layers")
_WHICHEVER = ("dropout",)  # of an adapter: settings that its tensors don't depend on


@dataclass(frozen=True)
class Source:
    """What a run goes on from."""

    name: str  # as people are told
    lora: Path | None = None
    saved: checkpoint.Checkpoint | None = None
    config: TrainConfig | None = None  # of the run that saved it

    def tensors(self) -> dict[str, Tensor] | None:
        """A checkpoint's adapter as it is drawn with: the running mean where it has any; None of a LoRA."""
        return self.saved.tensors["adapter"] | self._mean() if self.saved else None

    def put_on(self, model: TrainingModel, shapes: dict[str, tuple[int, ...]]) -> None:
        """Give the adapter, which was just attached, a LoRA's update; `shapes` are those of the base's weights.

        Raises: AdapterError, ConfigError if it can't have it.
        """
        if self.lora:
            _put(model, self.lora, shapes)

    def _mean(self) -> dict[str, Tensor]:
        assert self.saved
        mean = self.saved.tensors.get("mean", {})
        return {name: tensor for name, tensor in mean.items() if name in self.saved.tensors["adapter"]}


# Which.


def place(source: str) -> Path:
    """The LoRA's file, or the checkpoint's folder; of a run's folder its newest checkpoint. Raises: ConfigError."""
    path = Path(source)
    if lora_file.is_there(path):
        return lora_file.located(path)
    if os.path.isfile(path / file_names.CONFIG):  # pathlib's own raises for a name that is too long
        saved = file_names.checkpoints(path / file_names.CHECKPOINTS)
        if not saved:
            raise ConfigError(f"start.source is {source!r}, a run that has saved no step yet; wait for its first one.")
        return saved[max(saved)]
    if file_names.step_of_checkpoint(path.name) is not None and os.path.isfile(path / "manifest.json"):
        return path
    raise ConfigError(
        f"start.source is {source[:200]!r}; allowed: a LoRA file (.safetensors), a run's folder, or one of its "
        f"checkpoints, such as outputs/runs/fox/checkpoints/step-000050."
    )


def of_config(config: TrainConfig, run: runs.Run | None = None) -> Source | None:
    """What a run goes on from: its own copy if there is a copy, else what the settings name; None for nothing.

    Raises: ConfigError, AdapterError.
    """
    if not config.start.source:
        return None
    # A run's own copy first: what the settings name may have been trained on, renamed or removed since.
    kept = sorted((run.folder / FOLDER).glob("[!.]*")) if run else []
    path = next((path for path in kept if path.suffix not in (".toml", ".json")), None) or place(config.start.source)
    if path.is_file():
        return Source(lora_file.name_of(path), lora=path)
    try:
        saved = checkpoint.load(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"start.source: checkpoint {path.name} is damaged ({error}); choose another.") from None
    beside = path.parent / file_names.CONFIG if path.parent.name == FOLDER else path.parents[1] / file_names.CONFIG
    if not beside.is_file():
        raise ConfigError(f"start.source: no run lies around checkpoint {path.name}; its config.toml is needed.")
    of_run = parse(TrainConfig, presets.read_toml(beside), str(beside))
    name, _, _ = short_name(config.start.source).partition("/")  # a run's folder names its newest step then
    return Source(f"{name}, step {saved.step}", saved=saved, config=of_run)


def keep(config: TrainConfig, run: runs.Run) -> None:
    """Copy what the run goes on from below its folder, whole or not at all. Raises: ConfigError, OSError."""
    if not config.start.source:
        return
    path, unnamed = place(config.start.source), run.folder / f".{FOLDER}"
    shutil.rmtree(unnamed, ignore_errors=True)
    unnamed.mkdir()
    if path.is_file():
        if (config_beside := lora_file.config_beside(path)) is not None:
            (unnamed / "adapter_config.json").write_text(config_beside, encoding="utf-8")
        shutil.copyfile(path, unnamed / path.name)
    else:
        shutil.copy2(path.parents[1] / file_names.CONFIG, unnamed / file_names.CONFIG)
        # Links where the disk has them: a checkpoint's files are never written again, and may be large.
        shutil.copytree(
            path, unnamed / path.name, copy_function=lambda old, new: system.link_or_copy(Path(old), Path(new))
        )
    system.replace(unnamed, run.folder / FOLDER)


# Whether it fits.


def refuse(config: TrainConfig, run: runs.Run | None = None) -> None:
    """Refuse what a run can't go on from with these settings. Raises: ConfigError, AdapterError."""
    source = of_config(config, run)
    if source is None:
        return
    problems = _of_lora(config, source.lora) if source.lora else _of_checkpoint(config, source)
    if problems:
        raise ConfigError(f"it can't go on from {source.name}:\n{listed(problems, '  ')}")


def _of_checkpoint(config: TrainConfig, source: Source) -> list[str]:
    """What stands against these settings with a checkpoint's weights."""
    assert source.saved and source.config
    before, problems = source.config, []
    if config.family != before.family:
        return [f"family is {config.family!r}, and it is of {before.family!r}."]
    problems += _differing("adapter", config.adapter, before.adapter, skipped=_WHICHEVER)
    problems += _differing("inversion", config.inversion, before.inversion, ("token", "vectors", "start_from"))
    start = methods.registry()[config.adapter.method]
    if start.start(config.adapter) in start.starts_from_base and config.base != before.base:
        problems.append(f"base is {config.base!r}, and its start was taken out of {before.base!r}.")

    # With its optimizer, the run goes on at its step.
    if config.start.optimizer:
        problems += _differing("optimizer", config.optimizer, before.optimizer, _OF_THE_STATE)
        if config.inversion.token:
            problems += _differing("inversion", config.inversion, before.inversion, ("learning_rate",))
            problems += _differing("", config, before, ("learning_rate",))
        if config.max_steps <= source.saved.step:
            problems.append(
                f"max_steps is {config.max_steps}; allowed with start.optimizer, which goes on at step "
                f"{source.saved.step}: more than that."
            )
        problems = [problem.replace("allowed: ", "allowed with start.optimizer: ") for problem in problems]
    return problems


def _differing(
    section: str, now: Any, before: Any, keys: tuple[str, ...] = (), skipped: tuple[str, ...] = ()
) -> list[str]:
    """A sentence for each of these settings (all, if none is named) that is another than before."""
    new, old = now.model_dump(mode="json"), before.model_dump(mode="json")
    prefix = f"{section}." if section else ""
    return [
        f"{prefix}{key} is {new.get(key)!r}; allowed: {old.get(key)!r}, as there."
        for key in (keys or dict.fromkeys([*new, *old]))
        if key not in skipped and new.get(key) != old.get(key)
    ]


def _of_lora(config: TrainConfig, path: Path) -> list[str]:
    """What stands against these settings with a LoRA's weights."""
    if config.start.optimizer:
        return ["start.optimizer is set, and a LoRA file has no optimizer; leave it off, or choose a checkpoint."]
    wanted, now = fitting(path, config.family), config.adapter.model_dump(mode="json")
    if wanted.settings["method"] != config.adapter.method:
        return [f"adapter.method is {config.adapter.method!r}; allowed: {wanted.settings['method']!r}, as there."]
    problems = []
    for key, value in wanted.settings.items():
        # A smaller rank has no room for it, a larger rank has.
        if key == "rank" and now["rank"] < value:
            problems.append(f"adapter.rank is {now['rank']}; allowed: {value} or more.")
        elif key not in ("method", "rank", "alpha", "targets", "text_encoder") and now.get(key) != value:
            problems.append(f"adapter.{key} is {now.get(key)!r}; allowed: {value!r}, as there.")

    # Every layer that it changes must be trained.
    family = families.registry()[config.family]
    if not _covers(family.targets[config.adapter.targets], wanted.paths):
        problems.append(
            f"adapter.targets is {config.adapter.targets!r}, which leaves out layers that it changes; allowed: "
            f"{wanted.settings['targets']!r}."
        )
    layers = [f"{family.denoiser}/{path}" for path in wanted.paths]
    left_out = {*layers} - {*layer_patterns.chosen(layers, *(tuple(now.get(key, ())) for key in _LAYERS))}
    if left_out:
        problems.append(
            f"adapter.only_layers and adapter.without_layers leave out {min(left_out)}, which it changes; allow it."
        )

    # What else it has or is: a text encoder's part, a start of its own, a new word.
    if wanted.settings.get("text_encoder") and not now.get("text_encoder"):
        problems.append("adapter.text_encoder is off, and it changes the text encoder; set it.")
    if now.get("init", "default") not in ("default", "gaussian"):
        problems.append(f"adapter.init is {now['init']!r}; allowed: 'default', as the weights come from the LoRA.")
    words = lora_file.embeddings(path)
    if words and config.inversion.token not in words:
        problems.append(
            f"inversion.token is {config.inversion.token!r}; allowed: {', '.join(words)}, its own new word."
        )
    return problems


def _covers(pattern: str, paths: list[str]) -> bool:
    return all(re.fullmatch(pattern, path) for path in paths)


# A LoRA's adapter.


@dataclass(frozen=True)
class Fitting:
    """The settings of `adapter` that a LoRA file asks for, by key, and the denoiser's layers that it changes."""

    settings: dict[str, Any]
    paths: list[str]


def fitting(path: Path, family_name: str) -> Fitting:
    """What a LoRA file asks for. Raises: AdapterError if no adapter of ours can go on from it."""
    # What it changes, in this family's names.
    opened, family = opening.open_file(path), families.registry()[family_name]
    made_for = opened.family()
    if made_for.name != family_name:
        raise AdapterError(f"{path.name} is for {made_for.title}; allowed here: a LoRA for {family.title}.")
    updates, kinds = opening.updates(opened), sorted({module.method for module in opened.modules.values()})
    method = methods.registry().get(kinds[0])
    if len(kinds) > 1 or method is None or method.trained is None or method.settings_of is None:
        able = ", ".join(name for name, method in methods.registry().items() if method.trained)
        raise AdapterError(f"{path.name} holds {', '.join(kinds)}; training can go on from one of: {able}.")
    prefix = f"{family.denoiser}."
    paths = [name.removeprefix(prefix) for name in updates if name.startswith(prefix)]
    if not paths:
        raise AdapterError(f"{path.name} changes text encoders alone; training goes on with a denoiser's layers.")

    # The fewest layers that hold all of its own.
    fields = method.Config.model_fields
    allowed = [target for target in family.targets if target in get_args(fields["targets"].annotation)]
    targets = next((target for target in allowed if _covers(family.targets[target], paths)), None)
    if targets is None:
        strange = next((path for path in paths if not _covers(family.targets[allowed[-1]], [path])), paths[0])
        raise AdapterError(f"{path.name} changes {strange}, which no adapter.targets of {family.title} trains.")
    settings: dict[str, Any] = {"method": method.name, "targets": targets, **method.settings_of([*updates.values()])}
    if "text_encoder" in fields:
        settings["text_encoder"] = len(paths) < len(updates)

    # What only its recipe tells.
    recipe = lora_file.recipe_of(opened.header.metadata)
    own = recipe["config"].get("adapter") if recipe else None
    if isinstance(own, dict) and own.get("method") == method.name:
        settings |= {key: own[key] for key in method.only_in_recipe if key in own}
    return Fitting(settings, paths)


def changes(source: str, family: str) -> dict[str, Any]:
    """Settings by dotted key that a source asks for. Raises: UserError."""
    path = place(source)
    if family not in families.registry():
        raise ConfigError(f"family is {family[:80]!r}; allowed: {', '.join(families.registry())}.")
    if path.is_file():
        settings = fitting(path, family).settings
        # The weights come from the LoRA, of one rank and of all its layers.
        unset = {"init": "default", "block_ranks": (), "only_layers": (), "without_layers": ()}
        fields = methods.registry()[settings["method"]].Config.model_fields
        asked = settings | {key: value for key, value in unset.items() if key in fields}
        return {"start.source": str(path), **{f"adapter.{key}": value for key, value in asked.items()}}
    return {"start.source": str(path)}


def preset_of(source: str) -> str:
    """What of a source's own has settings to train with: its run's config.toml, or the LoRA's recipe.

    Raises: ConfigError for a LoRA that carries none.
    """
    path = place(source)
    if not path.is_file():
        return str(path.parents[1] / file_names.CONFIG)
    if lora_file.recipe_of(lora_file.read_header(path).metadata) is None:
        raise ConfigError(f"{path.name} carries no settings of ours; name a preset to go on from it with.")
    return str(path)


# Putting it on.


def going_on(source: Source, config: TrainConfig, identity: Mapping[str, Any]) -> tuple[checkpoint.Checkpoint, int]:
    """The checkpoint and step that a branch with the optimizer's state goes on from, as if the branch had saved it.

    What was measured stays where it is measured as before, memory's and the GPU's settings where those are the same.
    """
    saved, before = source.saved, source.config
    assert saved and before
    state, tensors = {**saved.state, **identity}, dict(saved.tensors)
    if config.memory != before.memory:
        state["memory"] = config.memory.model_dump(mode="json")
    if (config.memory, config.device, config.dtype) != (before.memory, before.device, before.dtype):
        state |= {"kernels": None, "loss_scale": None}
    is_same = all(saved.state.get(key) == identity[key] for key in ("heldout", "base", "against"))
    if not is_same or config.validation != before.validation or config.data.folder != before.data.folder:
        state["judge"] = validation.Judge().state()
        tensors.pop("best", None)
    return replace(saved, tensors=tensors, state=state), saved.step


@torch.no_grad()
def _put(model: TrainingModel, path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    config = model.config
    method = methods.registry()[config.adapter.method]
    updates, lost = lora_file.read(path, model.file_keys, shapes), []
    assert method.trained is not None
    for component, attached in model.attachments.items():
        for layer, scale in attached.scales().items():
            update = updates.pop(f"{component}.{layer}", None)
            if update is not None:
                own = attached.own(layer)
                try:
                    _fill(own, method.trained(update, {name: own[name].detach() for name in own}, scale))
                except ValueError as error:
                    lost.append(f"{component}.{layer} {error}.")
    lost += [f"{name} is not trained with adapter.targets = {config.adapter.targets}." for name in updates]

    # Its new word.
    parts = lora_file.embeddings(path).get(model.word.name, {}) if model.word else {}
    if model.word and parts:
        try:
            _fill({model.word.keys[encoder]: vectors for encoder, vectors in model.word.vectors.items()}, parts)
        except ValueError as error:
            lost.append(f"the word {model.word.name} {error}; inversion.vectors must be as there.")
    if lost:
        raise ConfigError(f"it can't go on from {path.name}:\n{listed(lost, '  ')}")


def _fill(own: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
    """Write values into parameters of those names. Raises: ValueError if they are others."""
    if own.keys() != values.keys() or any(own[name].shape != values[name].shape for name in own):
        has, trained = (
            ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()) for tensors in (values, own)
        )
        raise ValueError(f"has {has}, and is trained as {trained}")
    for name, value in values.items():
        own[name].data.copy_(value)
