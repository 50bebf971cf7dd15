"""Everything that can be set, as frozen trees: the CLI's overrides, the UI's form, a preset, a LoRA's header, a PNG.

`family` and `adapter.method` have no default: a union tag with a default vanishes from `exclude_defaults` dumps.
A run's name and place are not settings: two runs of one config on one dataset give the same bytes, wherever they are.
Every setting is used or refused: one that the chosen family, method or objective would not read names in `only_with`
what it needs, and is an error unless that is so or it is left at its default.
"""

from trainer.config.batch import BatchConfig
from trainer.config.data import CaptionsConfig, DataConfig
from trainer.config.learning import AgainstConfig, InversionConfig, ObjectiveConfig, OptimizerConfig
from trainer.config.parsing import digest, parse, recipe
from trainer.config.running import MemoryConfig, PreviewConfig, ValidationConfig
from trainer.config.stack import AdapterChoice, StackConfig
from trainer.config.starting import StartConfig
from trainer.config.train import TrainConfig
from trainer.schema import Settings

__all__ = [
    "AdapterChoice", "AgainstConfig", "BatchConfig", "CaptionsConfig", "DataConfig", "InversionConfig", "MemoryConfig",
    "ObjectiveConfig", "OptimizerConfig", "PreviewConfig", "Settings", "StackConfig", "StartConfig", "TrainConfig",
    "ValidationConfig", "digest", "parse", "recipe",
]  # fmt: skip
