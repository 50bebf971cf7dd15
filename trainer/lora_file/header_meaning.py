"""What a file's header says of how its tensors are meant, such as alphas.

It is read from PEFT's config, which lies in a folder or in the header as diffusers writes it, from OneTrainer's
settings, and from the `ss_network_args` that kohya, LyCORIS and we write. A text that its tool would not have written
so is refused: an update read at another strength looks like a bad LoRA.
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
# PEFT's kinds of adapters that are read -> the key of the alpha in its config.
_KINDS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha", "OFT": ""}
_FROM_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that change the base's own weights
# Settings by which a LoRA of PEFT's changes more than weights.
_OTHERS = (
    "use_qalora",
    "use_bdlora",
    "monteclora_config",
    "kasa_config",
    "arrow_config",
    "alora_invocation_tokens",
    "layer_replication",
)
_MADE = "velatura."  # our own header keys
_KOHYA = ("ss_network_module", "ss_network_args", "ss_network_alpha", "ss_network_dim", "ss_training_comment")
_ONETRAINER = ("ot_revision", "ot_branch", "ot_config")
# The header's keys that make another update of the same numbers.
MEANING = (CONFIG_KEY, _DIFFUSERS, *_KOHYA, *_ONETRAINER)


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
    """What a file says of its modules, looked up by the names that the file gives them."""

    file: str
    configs: Mapping[str, Config]  # by component; under "" that of all components
    tool: Mapping[str, Any]  # settings of the tool that wrote the file, if that wasn't PEFT
    folded: bool = True  # the scale is the tensor alpha / rank; else alpha / sqrt(rank)

    def alpha(self, module: str, rank: int) -> float | None:
        """Alpha, such that alpha / rank is the scale; None where nothing is said. Raises: AdapterError."""
        config, path = self._of(module)
        if config is None:
            return None
        alpha = self._looked_up(config.alpha_of, path)
        # With rsLoRA the scale is alpha / sqrt(rank) = (alpha * sqrt(rank)) / rank (arXiv 2312.03732).
        return alpha if alpha is None or not config.values.get("use_rslora") else alpha * math.sqrt(rank)

    def own_alpha(self, alpha: float, rank: int) -> float:
        """The same for an alpha that the file has among its tensors."""
        return alpha if self.folded or not rank else alpha * math.sqrt(rank)

    def facts(self, module: str) -> Mapping[str, Any]:
        """Everything that the file says of a module, in PEFT's words. Raises: AdapterError.

        `r` and `alpha` are the module's own, and `written_by` is the tool.
        """
        config, path = self._of(module)
        if config is None:
            return self.tool
        own = {"alpha": self._looked_up(config.alpha_of, path), "r": self._looked_up(config.rank_of, path)}
        # PEFT says its version from 0.18 on, and `auto_mapping` always.
        return {
            **config.values,
            **own,
            "written_by": "peft",
            "early": "auto_mapping" in config.values and not config.values.get("peft_version"),
        }

    def _of(self, module: str) -> tuple[Config | None, str]:
        """The config for a module, and the module's path in it."""
        component, _, path = module.partition(".")
        if component in self.configs:
            return self.configs[component], path.removeprefix(_PREFIX)
        return self.configs.get(""), module.removeprefix(_PREFIX)

    def _looked_up(self, look_up: Callable[[str], float | None], path: str) -> float | None:
        try:
            return look_up(path)
        except ValueError as error:
            raise AdapterError(
                f"{self.file} gives ranks or alphas by {error}; it is not used, since its strength isn't known."
            ) from None


def stated(file: str, metadata: Mapping[str, str]) -> Stated:
    """What the header of the file called `file` says.

    Raises: AdapterError for what can't be read, or is of a kind that can't be used.
    """
    configs: dict[str, Config] = {}
    for where, text in ((PEFT_CONFIG, metadata.get(CONFIG_KEY)), (_DIFFUSERS, metadata.get(_DIFFUSERS))):
        if text is None:
            continue
        of_text = {
            component: _config(file, where, values) for component, values in _components(file, where, text).items()
        }
        configs = of_text | configs  # PEFT's own file counts before a header
    return Stated(file, configs, _tool(metadata))


def _components(file: str, where: str, text: str) -> dict[str, dict[str, Any]]:
    """The configs in a text by component: `{"unet.r": 4}` is one of `unet`, `{"r": 4}` one of everything."""
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it is no table")
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            f"{file} has {where} that can't be read, so its alpha is unknown: {str(error)[:200]}."
        ) from None
    components: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        component, dot, name = key.rpartition(".") if where == _DIFFUSERS else ("", "", key)
        components.setdefault(component if dot else "", {})[name] = value
    return components


def _config(file: str, where: str, values: dict[str, Any]) -> Config:
    """One of PEFT's configs, found in `where`. Raises: AdapterError."""
    # Kinds that can't be used.
    kind = values.get("peft_type") or "LORA"
    if not isinstance(kind, str) or kind not in _KINDS:
        raise AdapterError(
            f"{file} is an adapter of PEFT's kind {str(kind)[:40]!r} ({where}), which can't be used here; allowed: "
            f"{', '.join(_KINDS)}."
        )
    init = values.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_FROM_BASE):
        raise AdapterError(
            f"{file} started from a part of the base that its training took out of it (init_lora_weights "
            f"{init[:20]!r} in {where}), so it is only right on a base without that part; save it again with PEFT's "
            f"save_pretrained(path_initial_model_for_weight_conversion=...), which makes a plain LoRA of it."
        )
    if other := next((key for key in _OTHERS if values.get(key)), None):
        raise AdapterError(
            f"{file} is a LoRA with {other} ({where}), which changes more than weights; it can't be used here."
        )
    # Numbers.
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
    """Settings of tools that write no config of PEFT's: Velatura, and OneTrainer if its user kept them in the file."""
    if metadata.get("ss_network_module") == "peft.oft" or any(key.startswith(_MADE) for key in metadata):
        return {**table(metadata.get("ss_network_args", "")), "written_by": "velatura"}
    if any(key in metadata for key in _ONETRAINER):
        return {**table(metadata.get("ot_config", "")), "written_by": "onetrainer"}
    return {}


def table(text: str) -> dict[str, Any]:
    """A JSON table in a header; an empty table for what is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
