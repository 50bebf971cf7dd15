"""The doctor tells the truth, and says what to do."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess, run
from types import SimpleNamespace

import pytest

from trainer import doctor, matmuls


@pytest.fixture(scope="module")
def diagnosis() -> doctor.Diagnosis:
    return doctor.diagnose()


def test_diagnosis_is_json(diagnosis: doctor.Diagnosis) -> None:
    assert json.loads(json.dumps(dataclasses.asdict(diagnosis)))["velatura"] == diagnosis.velatura


def test_float32_is_measured_right_on_every_device(diagnosis: doctor.Diagnosis) -> None:
    measured = {matmul.device: matmul for matmul in diagnosis.matmuls if matmul.dtype == "float32"}
    assert set(measured) == {device.device for device in diagnosis.devices}
    assert all(matmul.right and matmul.seconds for matmul in measured.values())


def test_every_dtype_is_measured_or_refused_with_a_reason(diagnosis: doctor.Diagnosis) -> None:
    assert {matmul.dtype for matmul in diagnosis.matmuls} == set(doctor.TOLERANCES)
    assert all(matmul.seconds is not None or matmul.note for matmul in diagnosis.matmuls)


def test_a_wrong_product_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmuls, "_multiply", lambda left, right: left @ right * 1.01)
    measured = matmuls.measure("cpu", "float32")
    assert not measured.right and measured.error == pytest.approx(0.01, rel=1e-3)
    torch = SimpleNamespace(__version__="2", backends=SimpleNamespace(cuda=SimpleNamespace(is_built=lambda: False)))
    assert "float32 products on cpu are off by 1e-02" in doctor._device_problems(torch, (), (measured,))[0].what


def test_a_dtype_without_kernel_is_no_problem() -> None:
    assert matmuls.measure("meta", "float8_e4m3fn").seconds is None


def test_describe_names_every_library_extra_and_problem_and_ends_with_what_can_be_done(
    diagnosis: doctor.Diagnosis,
) -> None:
    ill = dataclasses.replace(diagnosis, problems=(doctor.Problem("The what.", "The why.", "The do."),))
    text = doctor.describe(ill)
    assert all(library.name in text for library in diagnosis.libraries)
    assert all(library.command in text for library in diagnosis.libraries if library.extra and library.version is None)
    assert text.splitlines()[-2:] == ["Problem  The what. The why. The do.", diagnosis.summary]


def test_libraries_and_extras_come_from_our_own_metadata(diagnosis: doctor.Diagnosis) -> None:
    core = {library.name for library in diagnosis.libraries if library.extra is None}
    assert {"torch", "diffusers", "transformers", "peft", "gradio"} <= core
    assert {"xformers", "bitsandbytes"} <= {library.name for library in diagnosis.libraries if library.extra == "gpu"}


def test_a_library_outside_its_range_and_a_missing_one_are_problems_with_a_command() -> None:
    old = doctor.Library("peft", "0.1", ">=0.21", False, None, "", "pip install 'peft>=0.21'")
    gone = dataclasses.replace(old, name="typer", version=None)
    extra = dataclasses.replace(old, name="xformers", version=None, extra="gpu")
    problems = doctor._library_problems((old, gone, extra))
    assert [problem.what for problem in problems] == ["peft 0.1; wanted: >=0.21.", "typer is missing; wanted: >=0.21."]
    assert all(old.command in problem.do for problem in problems)


def test_imprimatura_is_whole(imprimatura_folder: Path) -> None:
    assert doctor.imprimatura_missing(imprimatura_folder) == ()


def test_a_missing_part_and_a_cut_weight_of_imprimatura_are_named(imprimatura_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "imprimatura"
    shutil.copytree(imprimatura_folder, folder)
    shutil.rmtree(folder / "tokenizer")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (folder / "text_encoder" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert set(doctor.imprimatura_missing(folder)) == {
        "tokenizer",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    assert doctor.imprimatura_missing(tmp_path / "nowhere") == ("model_index.json",)


def test_full_disk_and_little_memory_are_problems(tmp_path: Path) -> None:
    assert doctor._room_problems(tmp_path, 100 * doctor.GIB, 16 * doctor.GIB) == []
    assert len(doctor._room_problems(tmp_path, doctor.GIB, doctor.GIB)) == 2


def test_a_torch_that_cannot_be_imported_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    ill = doctor.diagnose()
    assert any(problem.what.startswith("torch can't be imported") for problem in ill.problems)
    assert "can't train" in doctor.describe(ill).splitlines()[-1]


def test_a_torch_that_is_broken_from_the_start_is_a_finding_too() -> None:
    code = "import sys; sys.modules['torch'] = None; from trainer import doctor; print(doctor.diagnose().problems)"
    done = run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "torch can't be imported" in done.stdout, done.stderr


def test_a_torchvision_of_another_torch_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    (problem,) = doctor._neighbour_problems()
    assert "nms does not exist" in problem.what and "uninstall torchvision" in problem.do


def test_doctor_command_prints_json(run_velatura: Callable[..., CompletedProcess[str]]) -> None:
    done = run_velatura("doctor", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["summary"]
