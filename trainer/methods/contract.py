"""What an adapter method says of itself: its settings, its file, and what may be done with it, which is nothing that it doesn't name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from trainer.schema import Settings

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor

    from trainer.deltas import Update
else:  # the fields' kinds are read without torch
    PeftConfig = Tensor = Update = Any

Text = Annotated[str, Field(min_length=1)]
Tensors = dict[str, Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Method:
    """One kind of adapter. A field with a default may be left out of the method's file; `config` is always its `Config`.

    A start is a value of the setting `init`; a method without that setting has the one start "default".
    """

    # What it is.
    name: Text  # the tag in `adapter.method`, the file's own name
    title: Text  # for people
    Config: type[Settings]  # its settings; `method: Literal[name]` without a default; `linear_only` is True where it can't be on convolutions
    peft_config: Callable[[Any, str], PeftConfig]  # (config, regular expression over module paths) -> the PEFT config that attaches it

    # Its file.
    to_file: Callable[[Tensors, Any], Tensors]  # (tensors of one module as PEFT calls them, config) -> as the file calls them, alpha included
    header: Callable[[Any], dict[str, str]]  # config -> what the file's header says of it (`ss_network_*`)
    recognises: Callable[[set[str]], bool]  # whether these are the suffixes of one of its modules in a file, alpha left out
    # (tensors of one module as a file calls them, alpha or None) -> its update, whatever the tool that wrote it. Raises: ValueError with the shapes if
    # the parts don't fit each other.
    from_file: Callable[[Tensors, float | None], Update]
    # Where the numbers alone don't tell: (that update, what the file's header says in PEFT's words) -> the update as its file means it. Raises: ValueError
    # in words that go on from the module's name.
    by_header: Callable[[Any, Mapping[str, Any]], Update] | None = None
    header_arguments: Callable[[Any], dict[str, Any]] | None = None  # where names are given anew: update -> `ss_network_args` that `by_header` reads so again
    file_tensors: Callable[[Any, Mapping[str, Tensor]], Tensors] | None = None  # of a method with a scale: (update, its tensors) -> those that must be others

    # What may be done with it.
    overlap_penalty: bool = False  # `against.overlap_penalty`, which measures down and up
    loraplus: bool = False  # `optimizer.loraplus_ratio`, a learning rate of its own for `lora_B`
    norm_limit: bool = False  # `optimizer.max_weight_norm`, which scales down and up
    starts_on_quantised: tuple[str, ...] = ()  # starts with which it can lie on a quantised base; where there is none, it works on the base's own weights
    starts_on_fetched: tuple[str, ...] = ()  # and on one whose blocks wait on the CPU
    starts_from_base: tuple[str, ...] = ()  # starts that take out of the base's weights what the adapter begins with
    starts_from_inputs: tuple[str, ...] = ()  # starts that look at what flows through the layers

    def start(self, config: Any) -> str:
        """The start that is set."""
        return str(config.init) if "init" in self.Config.model_fields else "default"
