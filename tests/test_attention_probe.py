"""Attention kernels are tried before a run uses them; one that kills its process is never used, and named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests import plain
from trainer import bases, families, loop, presets, session
from trainer.memory import arranging, attention_probe
from trainer.memory.attention_probe import Shape
from trainer.training_model import TrainingModel

SHAPES = [Shape(2, 4, 64, 64, 16, False, "float32"), Shape(2, 4, 64, 77, 16, False, "float32")]
# A child that kills itself where it is told to, as an illegal memory access does, and takes as long as it is told.
_CHILD = """
import json, os, sys
asked = json.loads(sys.stdin.read())
plan = json.loads(sys.argv[1])[asked["kernel"]]
for number, shape in enumerate(asked["shapes"]):
    if plan.get("dies") == number:
        print("CUDA error: an illegal memory access was encountered", file=sys.stderr, flush=True)
        os.abort()
    print(json.dumps({"seconds": plan["seconds"][number], "bad": plan.get("bad", "")}), flush=True)
"""


def planned(monkeypatch: pytest.MonkeyPatch, plan: dict) -> None:
    monkeypatch.setattr(attention_probe, "_CHILD", [sys.executable, "-c", _CHILD, json.dumps(plan)])


def test_a_kernel_that_kills_its_process_is_never_used_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planned(
        monkeypatch,
        {"flash": {"seconds": [2, 2]}, "efficient": {"seconds": [3, 1]}, "cudnn": {"seconds": [1, 1], "dies": 1}},
    )
    verdict = attention_probe.verdict(SHAPES, ["flash", "efficient", "cudnn"], tmp_path / "known.json", "cpu")
    assert verdict.kernels == ("efficient", "flash")
    (fault,) = verdict.faults
    assert "cudnn" in fault and "4 heads of 16, 64 tokens over 77" in fault and "illegal memory access" in fault


def test_wrong_numbers_count_as_a_fault_and_a_shape_it_does_not_know_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planned(
        monkeypatch,
        {"flash": {"seconds": [1, None]}, "efficient": {"seconds": [2, 2]}, "cudnn": {"seconds": [1, 1], "bad": "NaN"}},
    )
    verdict = attention_probe.verdict(SHAPES, ["flash", "efficient", "cudnn"], tmp_path / "known.json", "cpu")
    assert verdict.kernels == ("flash", "efficient") and "wrong numbers" in verdict.faults[0]


def test_what_was_found_is_kept_by_machine_and_shapes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    planned(monkeypatch, {"flash": {"seconds": [1, 1]}, "efficient": {"seconds": [2, 2]}})
    first = attention_probe.verdict(SHAPES, ["flash", "efficient"], tmp_path / "known.json", "cpu")
    planned(monkeypatch, {"flash": {"seconds": [9, 9]}, "efficient": {"seconds": [2, 2]}})
    assert attention_probe.verdict(SHAPES, ["flash", "efficient"], tmp_path / "known.json", "cpu") == first
    assert attention_probe.verdict(SHAPES[:1], ["flash", "efficient"], tmp_path / "known.json", "cpu").kernels == (
        "efficient",
        "flash",
    )
    (tmp_path / "known.json").write_text("{ not json")
    assert attention_probe.verdict(SHAPES, ["flash", "efficient"], tmp_path / "known.json", "cpu").kernels == (
        "efficient",
        "flash",
    )


def test_the_real_child_tries_forward_and_backward(tmp_path: Path) -> None:
    """On a CPU PyTorch has its own flash kernel and none of the others."""
    verdict = attention_probe.verdict(SHAPES, ["flash", "efficient"], tmp_path / "known.json", "cpu")
    assert verdict == attention_probe.Verdict(("flash",))


def test_a_runs_own_shapes_are_asked_and_its_checkpoint_remembers_the_answer(
    tiny: Path, tmp_path: Path, draw_dots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the CPU's kernel is chosen by the same way."""
    asked_shapes: list[list[Shape]] = []
    real, choose = attention_probe.verdict, arranging.arrange

    def verdict(shapes: list[Shape], candidates: list[str], known: Path, device: str) -> attention_probe.Verdict:
        asked_shapes.append(shapes)
        return real(shapes, ["flash"], known, device)

    def arrange(studio: TrainingModel) -> None:
        choose(studio)
        arranging._choose_kernels(studio)

    monkeypatch.setattr(attention_probe, "verdict", verdict)
    monkeypatch.setattr("trainer.memory.arranging.arrange", arrange)
    values = {
        "base": str(tiny), "resolution_px": 32, "max_steps": 4, "batch_size": 3, "checkpoint_every_steps": 2,
        "preview_every_steps": 0, "device": "cpu",
        "data.folder": str(draw_dots(tmp_path / "dots", "a {colour} dot", wider_px=40)),
    }  # fmt: skip
    config = presets.load(plain.CHARACTER, values)
    seen: list[Shape] = []
    learn = loop.learn

    def recorded(studio: TrainingModel, step: int) -> object:
        seen.extend(
            attention_probe.recorded(lambda: [studio.predict_part(part) for part in loop.prepare(studio, step)])
        )
        return learn(studio, step)

    monkeypatch.setattr(loop, "learn", recorded)
    run, stream = session.start(config, tmp_path, "x", None)
    for event in stream:
        if event.kind == "saved":
            break
    stream.close()
    assert len(asked_shapes) == 1 and set(seen) <= set(asked_shapes[0]), (
        "every shape of the steps was tried before the first of them"
    )
    _, stream = session.start(config, tmp_path, "x", run)
    assert list(stream)[-1].kind == "finished" and len(asked_shapes) == 1, "a resumed run takes the checkpoint's word"


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_kernels_are_used_in_order(name: str, tmp_path: Path) -> None:
    family = families.registry()[name]
    pipe = bases.open_pipeline(family, family.tiny(tmp_path), "cpu", torch.float32)
    denoiser = getattr(pipe, next(iter(family.components)))
    assert set(attention_probe.TORCH) <= set(attention_probe.candidates(denoiser))
    query = torch.randn(1, 2, 8, 16)
    with attention_probe.using(denoiser, ("flash",)):
        first = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    with attention_probe.using(denoiser, ()):
        second = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    torch.testing.assert_close(first, second)
