"""Every method learns: on two pictures the loss goes clearly down, at the noise and timesteps where it was measured
before.
"""

import shutil
from pathlib import Path

import pytest

from tests import plain
from trainer import lora_file, methods, presets, session
from trainer.config import TrainConfig
from trainer.events import Finished, Validated

# A learning rate at which each method is alive within twenty steps; the multiplicative ones move less per unit.
RATES = {"lora": 5e-3, "dora": 5e-3, "loha": 2e-2, "lokr": 3e-2, "oft": 3e-3}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    """Two pictures with their captions."""
    folder = tmp_path_factory.mktemp("two")
    for path in sorted((examples / "grey-cat" / "train").glob("*.png"))[:2]:
        shutil.copy(path, folder)
        shutil.copy(path.with_suffix(".txt"), folder)
    return folder


@pytest.mark.parametrize("name", methods.registry())
def test_a_method_learns_two_pictures(name: str, two: Path, tmp_path: Path) -> None:
    values = {
        "max_steps": 20, "batch_size": 4, "learning_rate": RATES.get(name, 5e-3), "preview_every_steps": 0,
        "checkpoint_every_steps": 20,
        "validate_every_steps": 20, "data.folder": str(two), "data.heldout": str(two), "optimizer.schedule": "constant",
    }  # fmt: skip
    shared = presets.load(plain.CHARACTER, values).model_dump(mode="json")
    config = TrainConfig.model_validate(shared | {"adapter": {"method": name, "targets": "attention"}})
    run, stream = session.start(config, tmp_path, name, None)
    events = list(stream)
    assert isinstance(events[-1], Finished) and lora_file.inspect(run.lora_file).method == name
    measured = [event for event in events if isinstance(event, Validated)][-1]
    assert measured.gain > 0.25, measured
