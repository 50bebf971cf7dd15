"""What a file says, beside its tensors, of how they are meant: PEFT's config, of a folder or in the header as diffusers writes it; OneTrainer's
settings; and the `ss_network_args` that kohya, LyCORIS and we write.

Where a text says it otherwise than its writer would, the file is refused: an update read at another strength looks like a bad LoRA.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.errors import AdapterError
from trainer.lora_file.locating import CONFIG_KEY, PEFT_CONFIG
from trainer.lora_file.patterns import Patterns

_DIFFUSERS = "lora_adapter_metadata"
_PREFIX = "base_model.model."
_KINDS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha", "OFT": ""}  # what we read of PEFT's, and where its alpha stands
_FROM_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # starts that change the base's own weights
_OTHERS = ("use_qalora", "use_bdlora", "monteclora_config", "kasa_config", "arrow_config", "alora_invocation_tokens", "layer_replication")
_MADE = "velatura."  # our own header keys
_KOHYA = ("ss_network_module", "ss_network_args", "ss_network_alpha", "ss_network_dim", "ss_training_comment")
_ONETRAINER = ("ot_revision", "ot_branch", "ot_config")
MEANING = (CONFIG_KEY, _DIFFUSERS, *_KOHYA, *_ONETRAINER)  # what of a header makes another update of the same numbers


@dataclass(frozen=True)
class Config:
    """One of PEFT's configs."""

    values: Mapping[str, Any]
    alpha: float | None
    rank: int | None
    alphas: Patterns
    ranks: Patterns

    def alpha_of(self, path: str) -> float | None:
        """Alpha of a module, by its path in the model that the config is for. Raises: ValueError."""
        own = self.alphas.get(path)
        return self.alpha if own is None else own

    def rank_of(self, path: str) -> float | None:
        """Its rank, as the config has it. Raises: ValueError."""
        own = self.ranks.get(path)
        return self.rank if own is None else own


@dataclass(frozen=True)
class Stated:
    """What a file says of its modules. Asked by the name that the file gives a module."""

    file: str
    configs: Mapping[str, Config]  # by component; under "" that of all
    tool: Mapping[str, Any]  # what the tool that wrote it says, if it is none of PEFT's
    folded: bool = True  # the file's own alphas are to be divided by the rank; else by its root

    def alpha(self, module: str, rank: int) -> float | None:
        """Alpha, such that alpha / rank is the scale; None where nothing is said. Raises: AdapterError."""
        config, path = self._of(module)
        if config is None:
            return None
        found = self._asked(config.alpha_of, path)
        return found if found is None or not config.values.get("use_rslora") else found * math.sqrt(rank)

    def own_alpha(self, alpha: float, rank: int) -> float:
        """The same of an alpha that the file has among its tensors."""
        return alpha if self.folded or not rank else alpha * math.sqrt(rank)

    def facts(self, module: str) -> Mapping[str, Any]:
        """Everything that is said of a module, in PEFT's words, `r` and `alpha` being its own; `written_by` is the tool. Raises: AdapterError."""
        config, path = self._of(module)
        if config is None:
            return self.tool
        own = {"alpha": self._asked(config.alpha_of, path), "r": self._asked(config.rank_of, path)}
        # PEFT says its version from 0.18 on, and `auto_mapping` always.
        return {**config.values, **own, "written_by": "peft", "early": "auto_mapping" in config.values and not config.values.get("peft_version")}

    def _of(self, module: str) -> tuple[Config | None, str]:
        component, _, path = module.partition(".")
        if component in self.configs:
            return self.configs[component], path.removeprefix(_PREFIX)
        return self.configs.get(""), module.removeprefix(_PREFIX)

    def _asked(self, ask: Callable[[str], float | None], path: str) -> float | None:
        try:
            return ask(path)
        except ValueError as error:
            raise AdapterError(f"{self.file} gives ranks or alphas by {error}; it is not used, since its strength isn't known.") from None


def stated(file: str, metadata: Mapping[str, str]) -> Stated:
    """What the header of the file called `file` says. Raises: AdapterError for what can't be read, or is of a kind that can't be used."""
    configs: dict[str, Config] = {}
    for where, text in ((PEFT_CONFIG, metadata.get(CONFIG_KEY)), (_DIFFUSERS, metadata.get(_DIFFUSERS))):
        if text is None:
            continue
        found = {component: _config(file, where, values) for component, values in _components(file, where, text).items()}
        configs = found | configs
    return Stated(file, configs, _tool(metadata))


def _components(file: str, where: str, text: str) -> dict[str, dict[str, Any]]:
    """The configs in a text by component: `{"unet.r": 4}` is one of `unet`, `{"r": 4}` one of everything."""
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it is no table")
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{file} has {where} that can't be read, so its alpha is unknown: {str(error)[:200]}.") from None
    found: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        component, dot, name = key.rpartition(".") if where == _DIFFUSERS else ("", "", key)
        found.setdefault(component if dot else "", {})[name] = value
    return found


def _config(file: str, where: str, values: dict[str, Any]) -> Config:
    kind = values.get("peft_type") or "LORA"
    if not isinstance(kind, str) or kind not in _KINDS:
        raise AdapterError(f"{file} is an adapter of PEFT's kind {str(kind)[:40]!r} ({where}), which can't be used here; allowed: {', '.join(_KINDS)}.")
    init = values.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_FROM_BASE):
        raise AdapterError(
            f"{file} started from a part of the base that its training took out of it (init_lora_weights {init[:20]!r} in {where}), so it is only right on a "
            "base without that part; save it again with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...), which makes a plain LoRA of it."
        )
    if other := next((key for key in _OTHERS if values.get(key)), None):
        raise AdapterError(f"{file} is a LoRA with {other} ({where}), which changes more than weights; it can't be used here.")
    key = _KINDS[kind]
    try:
        for name in ("use_rslora", "use_dora"):
            if values.get(name) not in (None, True, False):
                raise ValueError(f"{name} is {str(values[name])[:40]!r}; allowed: true or false")
        alpha, rank = _number(key, values.get(key)) if key else None, _number("r", values.get("r"))
        alphas, ranks = (Patterns(_numbers(name, values.get(name))) for name in ("alpha_pattern", "rank_pattern"))
    except ValueError as error:
        raise AdapterError(f"{file} has {where} that can't be read, so its alpha is unknown: {error}.") from None
    return Config(values, alpha, None if rank is None else round(rank), alphas, ranks)


def _number(key: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or abs(value) > 1e9:
        raise ValueError(f"{key} is {str(value)[:40]!r}; allowed: a number")
    return float(value)


def _numbers(key: str, values: Any) -> dict[str, float]:
    if not isinstance(values or {}, dict):
        raise ValueError(f"{key} is {str(values)[:40]!r}; allowed: a table of numbers")
    return {pattern: number for pattern, value in (values or {}).items() if (number := _number(key, value)) is not None}


def _tool(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What tools say that write no config of PEFT's: ours, and OneTrainer, whose settings are there if its user wanted."""
    if metadata.get("ss_network_module") == "peft.oft" or any(key.startswith(_MADE) for key in metadata):
        return {**table(metadata.get("ss_network_args", "")), "written_by": "velatura"}
    if any(key in metadata for key in _ONETRAINER):
        return {**table(metadata.get("ot_config", "")), "written_by": "onetrainer"}
    return {}


def table(text: str) -> dict[str, Any]:
    """A JSON table in a header; an empty one for what is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
