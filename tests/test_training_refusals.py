"""What a run refuses: a base or pictures that changed, a second process, a loss that is no number."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small_runs import config
from trainer import checkpoint, session
from trainer.errors import DataError, RunError, UserError
from trainer.events import Failed, Step
from trainer.training_model import TrainingModel


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_dots: Callable[..., Path]) -> Path:
    return draw_dots(tmp_path_factory.mktemp("pictures"), "a {colour} dot", num=5)


def test_a_dataset_that_changed_is_refused_on_resume(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in pictures.glob("*"):
        (folder / path.name).write_bytes(path.read_bytes())
    run, stream = session.start(config(tiny, folder), tmp_path, "x", None)
    for event in stream:
        if isinstance(event, Step) and event.step == 4:
            break
    stream.close()
    (folder / "0.txt").write_text("changed")
    with pytest.raises(RunError, match="pictures or captions have changed"):
        list(session.start(config(tiny, folder), tmp_path, "x", run)[1])


def test_two_processes_never_train_one_run(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    run, stream = session.start(config(tiny, pictures), tmp_path, "x", None)
    with run.lock().acquire(timeout=0):
        assert run.state() == "running"
        with pytest.raises(RunError, match="another process"):
            list(stream)


def test_a_loss_that_is_no_number_stops_within_a_step_and_names_it(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TrainingModel.predict_part
    count = 0

    def predict(self, *arguments):
        nonlocal count
        count += 1
        return real(self, *arguments) * (float("nan") if count == 5 else 1.0)

    monkeypatch.setattr(TrainingModel, "predict_part", predict)
    run, stream = session.start(config(tiny, pictures), tmp_path, "x", None)
    with pytest.raises(RunError, match="step 5 gave a loss of nan"):
        list(stream)
    assert isinstance(run.events()[-1], Failed) and not run.lora_file.exists()
    assert checkpoint.load_latest(run.checkpoints)[0].step == 3


def test_nothing_is_made_when_the_base_or_the_pictures_are_not_there(
    tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    for wrong in ({"base": str(pictures)}, {"base": "no/such-model"}, {"data.folder": str(tmp_path / "nowhere")}):
        with pytest.raises(UserError):
            session.start(config(tiny, pictures, **wrong), tmp_path / "runs", "x", None)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(DataError, match="data.heldout"):
        session.start(config(tiny, pictures, **{"data.heldout": "nowhere"}), tmp_path / "runs", "x", None)


def test_an_export_that_is_not_what_was_trained_gets_no_name(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.export._TOLERANCE", {"float16": 1e-9})
    run, stream = session.start(
        config(tiny, pictures, save_dtype="float16", preview_every_steps=0), tmp_path, "x", None
    )
    with pytest.raises(RunError, match="differs from what was trained"):
        list(stream)
    assert not run.lora_file.exists() and not list(run.folder.glob("*.safetensors"))


def test_a_base_that_was_replaced_is_refused_on_resume(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    run, stream = session.start(config(base, pictures), tmp_path, "x", None)
    for event in stream:
        if isinstance(event, Step) and event.step == 4:
            break
    stream.close()
    weights = next((base / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(RunError, match="base is another one"):
        list(session.start(config(base, pictures), tmp_path, "x", run)[1])


@pytest.mark.parametrize(
    "wrong", ["{", "[]", '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}']
)
def test_a_base_that_is_broken_is_refused_before_anything_is_made(wrong: str, tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model_index.json").write_text(wrong)
    with pytest.raises(UserError, match="base"):
        session.start(config(tmp_path / "base", pictures), tmp_path / "runs", "x", None)
    assert not (tmp_path / "runs").exists()
