"""Values in, a checked config out; a config's digest; and the form in which settings travel."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from trainer.config.train import TrainConfig
from trainer.schema import Settings, explain

AnyConfig = TypeVar("AnyConfig", bound=Settings)


def parse(model: type[AnyConfig], values: dict[str, Any], where: str) -> AnyConfig:
    """The config of plain values. Raises: ConfigError with every problem, each naming its field."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise explain(error, model, where) from None


def digest(config: Settings) -> str:
    """sha256 of the settings as canonical JSON: equal settings, equal digest."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def recipe(config: TrainConfig) -> dict[str, Any]:
    """The settings as they travel in a file: folders by their last name only, since paths are nobody else's business."""
    values = config.model_dump(mode="json")
    for key in ("folder", "heldout", "regularisation", "mask_folder"):
        values["data"][key] = Path(values["data"][key]).name
    values["against"]["adapters"] = [Path(line).name for line in values["against"]["adapters"]]
    if values["base"] not in ("", "imprimatura") and Path(values["base"]).is_dir():
        values["base"] = Path(values["base"]).name
    return values
