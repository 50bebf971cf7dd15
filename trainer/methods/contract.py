"""What an adapter method says of itself: its settings, its file, and what may be done with it.

What a method doesn't name is not allowed with it.
"""

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
    """One kind of adapter; a field with a default may be left out of the method's file.

    A start is a value of the setting `init`; a method without that setting has the one start "default".
    """

    # What it is.

    # The tag in `adapter.method`, the file's own name.
    name: Text
    # What people read.
    title: Text
    # Its settings, always called `Config`; `method: Literal[name]` without a default; `linear_only` is True where it
    # can't be on convolutions.
    Config: type[Settings]
    # (config, regular expression over module paths) -> the PEFT config that attaches it.
    peft_config: Callable[[Any, str], PeftConfig]

    # Its file.

    # (tensors of one module as PEFT calls them, config) -> as the file calls them, alpha included.
    to_file: Callable[[Tensors, Any], Tensors]
    # config -> what the file's header says of it (`ss_network_*`).
    header: Callable[[Any], dict[str, str]]
    # How the names of its tensors in a file begin, after their module's; a method whose names another has may leave it
    # out. A kind of adapter that no method names so is refused as another tool's.
    suffixes: tuple[str, ...] = ()
    # Whether these are the suffixes of one of its modules in a file, alpha left out.
    recognises: Callable[[set[str]], bool]
    # (tensors of one module as a file calls them, alpha or None) -> its update, whatever the tool that wrote it.
    # Raises: ValueError with the shapes if the parts don't fit each other.
    from_file: Callable[[Tensors, float | None], Update]
    # Where the numbers alone don't tell: (that update, what the file's header says in PEFT's words) -> the update as
    # its file means it. Raises: ValueError in words that go on from the module's name.
    by_header: Callable[[Any, Mapping[str, Any]], Update] | None = None
    # Where names are given anew: update -> `ss_network_args` that `by_header` reads so again.
    header_arguments: Callable[[Any], dict[str, Any]] | None = None
    # Of a method with a scale: (update, its tensors) -> those that must be others.
    file_tensors: Callable[[Any, Mapping[str, Tensor]], Tensors] | None = None

    # Going on from a file; a method without these can't.

    # (update, tensors of one module as PEFT calls them at its start, the module's scale) -> the tensors that give that
    # update. Raises: ValueError in words that go on from the module's name.
    trained: Callable[[Any, Tensors, float], Tensors] | None = None
    # All updates of a file -> its own settings that they ask for.
    settings_of: Callable[[list[Any]], dict[str, Any]] | None = None
    # Settings that the numbers don't tell, and a recipe of ours does.
    only_in_recipe: tuple[str, ...] = ()

    # What may be done with it.

    # `against.overlap_penalty`, which measures down and up.
    overlap_penalty: bool = False
    # `optimizer.loraplus_ratio`, a learning rate of its own for `lora_B`.
    loraplus: bool = False
    # `optimizer.max_weight_norm`, which scales down and up.
    norm_limit: bool = False
    # Starts with which it can lie on a quantised base; where there is none, it works on the base's own weights.
    starts_on_quantised: tuple[str, ...] = ()
    # Starts with which it can lie on a base whose blocks wait on the CPU.
    starts_on_fetched: tuple[str, ...] = ()
    # Starts that take out of the base's weights what the adapter begins with.
    starts_from_base: tuple[str, ...] = ()
    # Starts that look at what flows through the layers.
    starts_from_inputs: tuple[str, ...] = ()

    def start(self, config: Any) -> str:
        """The start that is set."""
        return str(config.init) if "init" in self.Config.model_fields else "default"
