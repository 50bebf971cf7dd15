"""Attention kernels are tried before a run uses them; one that kills its process is never used, and named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import plain
from trainer import bases, families, loop, presets, session
from trainer.memory import arranging, attention_probe, attention_trial
from trainer.memory.attention_probe import Shape
from trainer.training_model import TrainingModel

SHAPES = [Shape(2, 4, 64, 64, 16, False, "float32"), Shape(2, 4, 64, 77, 16, False, "float32")]
FAULT = """terminate called after throwing an instance of 'c10::AcceleratorError'
  what():  CUDA error: an illegal memory access was encountered
Search for `cudaErrorIllegalAddress' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html.
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.
"""
# A child that kills itself where it is told to, as an illegal memory access does, and takes as long as it is told.
_CHILD = """
import json, os, sys
asked = json.loads(sys.stdin.read())
plan, diary, says = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
with open(diary, "a") as file:
    file.write(" ".join(sorted({kernel for kernel, _ in asked["trials"]})) + "\\n")
for kernel, shape in asked["trials"]:
    told = plan[kernel][str(shape["keys"])]
    if told == "dies":
        print(says, file=sys.stderr, flush=True)
        os.abort()
    bad, short = told if told == "NaN" else "", told == "short"
    seconds = told if not bad and not short else None
    print(json.dumps({"seconds": seconds, "bad": bad, "is_short": short}), flush=True)
"""


def planned(
    monkeypatch: pytest.MonkeyPatch, folder: Path, plan: dict[str, list[object]], says: str = FAULT
) -> Callable[[], list[str]]:
    """Children that say of each kernel what is planned for 64 and 77 keys; the kernels that each of them was asked."""
    table, diary = {kernel: dict(zip((64, 77), told, strict=True)) for kernel, told in plan.items()}, folder / "diary"
    monkeypatch.setattr(attention_probe, "_CHILD", [sys.executable, "-c", _CHILD, json.dumps(table), str(diary), says])
    diary.write_text("")
    return lambda: diary.read_text().splitlines()


def test_a_kernel_that_kills_its_process_is_never_used_and_named_in_plain_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planned(monkeypatch, tmp_path, {"flash": [2, 2], "efficient": [3, 1], "cudnn": [1, "dies"]})
    verdict = attention_probe.verdict(SHAPES, ["flash", "efficient", "cudnn"], tmp_path / "known.json", "cpu")
    assert verdict.kernels == ("efficient", "flash")
    (fault,) = verdict.faults
    assert "cudnn" in fault and "4 heads of 16, 64 tokens over 77" in fault
    assert fault.endswith("CUDA error: an illegal memory access was encountered) and is not used.")


def test_wrong_numbers_count_as_a_fault_and_a_shape_it_does_not_know_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planned(monkeypatch, tmp_path, {"flash": [1, None], "efficient": [2, 2], "cudnn": [1, "NaN"]})
    verdict = attention_probe.verdict(SHAPES, ["flash", "efficient", "cudnn"], tmp_path / "known.json", "cpu")
    assert verdict.kernels == ("flash", "efficient") and "wrong numbers" in verdict.faults[0]


def test_one_process_tries_all_kernels_and_another_what_is_left_where_it_died(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernels = ["flash", "efficient", "cudnn"]
    asked = planned(monkeypatch, tmp_path, {"flash": [1, 1], "efficient": [2, 2], "cudnn": [3, 3]})
    attention_probe.verdict(SHAPES, kernels, tmp_path / "well.json", "cpu")
    assert asked() == ["cudnn efficient flash"]
    asked = planned(monkeypatch, tmp_path, {"flash": ["dies", 1], "efficient": [2, 2], "cudnn": [3, 3]})
    assert attention_probe.verdict(SHAPES, kernels, tmp_path / "ill.json", "cpu").kernels == ("efficient", "cudnn")
    assert asked() == ["cudnn efficient flash", "cudnn efficient"]


def test_what_was_found_of_a_shape_is_kept_and_only_new_shapes_are_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known, kernels = tmp_path / "home" / "known.json", ["flash", "efficient", "cudnn"]
    plan = {"flash": [2, 2], "efficient": [1, 1], "cudnn": ["dies", 1]}
    asked = planned(monkeypatch, tmp_path, plan)
    first = attention_probe.verdict(SHAPES[:1], kernels, known, "cpu")
    assert first.kernels == ("efficient", "flash") and len(first.faults) == 1
    asked = planned(monkeypatch, tmp_path, plan)
    assert attention_probe.verdict(SHAPES[:1], kernels, known, "cpu") == first and asked() == []
    whole = attention_probe.verdict(SHAPES, kernels, known, "cpu")
    assert whole == first and asked() == ["efficient flash"], "a kernel with a fault is not tried again"

    # Of another machine, or out of a damaged file, nothing is known.
    monkeypatch.setattr(attention_probe, "machine", lambda device: ["another"])
    attention_probe.verdict(SHAPES[:1], kernels, known, "cpu")
    known.write_text("{ not json")
    attention_probe.verdict(SHAPES[:1], kernels, known, "cpu")
    assert asked() == ["efficient flash", "cudnn efficient flash", "cudnn efficient flash"]


def test_a_kernel_that_memory_was_too_short_for_is_no_fault_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known, kernels = tmp_path / "known.json", ["flash", "efficient", "cudnn"]
    planned(monkeypatch, tmp_path, {"flash": ["short"] * 2, "efficient": [2, "short"], "cudnn": ["short"] * 2})
    verdict = attention_probe.verdict(SHAPES, kernels, known, "cpu")
    assert verdict == attention_probe.Verdict(("efficient", "flash", "cudnn"))
    # Also where the process had no room to begin in.
    short = "torch.AcceleratorError: CUDA error: out of memory"
    planned(monkeypatch, tmp_path, {"flash": ["dies"] * 2, "efficient": ["dies"] * 2, "cudnn": ["dies"] * 2}, short)
    assert attention_probe.verdict(SHAPES[1:], kernels, known, "cpu") == attention_probe.Verdict((*kernels,))
    planned(monkeypatch, tmp_path, {"flash": [1, 1], "efficient": [2, 2], "cudnn": [3, 3]})
    assert attention_probe.verdict(SHAPES, kernels, known, "cpu") == attention_probe.Verdict((*kernels,))


def test_pytorchs_own_order_holds_unless_a_kernel_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernels = ["flash", "efficient", "cudnn"]
    planned(monkeypatch, tmp_path, {"flash": [1.05, 1.05], "efficient": [2, 2], "cudnn": [1, 1]})
    verdict = attention_probe.verdict(SHAPES, kernels, tmp_path / "near.json", "cpu")
    assert verdict.kernels == ("flash", "cudnn", "efficient")
    planned(monkeypatch, tmp_path, {"flash": [1.2, 1.2], "efficient": [2, 2], "cudnn": [1, 1]})
    verdict = attention_probe.verdict(SHAPES, kernels, tmp_path / "far.json", "cpu")
    assert verdict.kernels == ("cudnn", "flash", "efficient")


def test_the_real_child_tries_forward_and_backward(tmp_path: Path) -> None:
    """On a CPU PyTorch has its own flash kernel and none of the others."""
    masked = [Shape(2, 4, 64, 77, 16, True, "bfloat16")]
    verdict = attention_probe.verdict([*SHAPES, *masked], ["flash", "efficient"], tmp_path / "known.json", "cpu")
    assert verdict == attention_probe.Verdict(("flash",))


def test_the_real_child_loads_nothing_that_its_kernels_do_not_need() -> None:
    code = (
        f"import runpy, sys; runpy.run_path({attention_trial.__file__!r}); "
        "print([name for name in ('diffusers', 'transformers', 'trainer') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_out_of_memory_in_the_child_is_told_and_the_next_kernel_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    real = attention_trial._attended
    sizes: list[torch.Size] = []

    def attended(kernel: str, query: torch.Tensor, *rest: object) -> list[torch.Tensor]:
        if kernel == "efficient":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 6.00 GiB.")
        if kernel == "math":
            sizes.append(query.shape)
        return real(kernel, query, *rest)

    monkeypatch.setattr(attention_trial, "_attended", attended)
    lines = [*attention_trial.tried([("efficient", SHAPES[0]), ("flash", SHAPES[0])], "cpu")]
    assert [line["is_short"] for line in lines] == [True, False] and lines[1]["seconds"] > 0
    assert set(sizes) == {torch.Size([1, 1, 64, 16])}, "the plain way keeps all scores, so it is asked for one head"


@pytest.mark.parametrize(("wrong", "said"), [(float("nan"), "NaN"), (0.5, "apart")])
@pytest.mark.parametrize("place", [0, -1])
def test_wrong_numbers_are_seen(place: int, wrong: float, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that are none wherever they stand, others in the head that is compared."""
    real = attention_trial._attended

    def attended(kernel: str, *inputs: torch.Tensor) -> list[torch.Tensor]:
        results = real(kernel, *inputs)
        if kernel == "flash":
            results[2][place, place] += wrong
        return results

    monkeypatch.setattr(attention_trial, "_attended", attended)
    (line,) = attention_trial.tried([("flash", SHAPES[0])], "cpu")
    assert (said in line["bad"]) == (place == -1 or said == "NaN")


def test_a_checkpoints_kernels_are_taken_where_they_were_chosen_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = json.loads(json.dumps(attention_probe.state(("cudnn", "flash"), "cpu")))
    assert attention_probe.restored(kept, "cpu") == ("cudnn", "flash")
    monkeypatch.setattr(attention_probe, "machine", lambda device: ["another card"])
    assert attention_probe.restored(kept, "cpu") is None
    assert attention_probe.restored(None, "cpu") is None and attention_probe.restored(["flash"], "cpu") is None


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
