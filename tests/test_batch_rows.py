"""What a row of a batch asks that must be found first, and what can't be drawn: it fails its own rows and no other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.batches import LAYER, Painter, defaults, draw, files, jobs, lora, manifest, plan_of
from trainer import lora_file
from trainer.config import StackConfig
from trainer.errors import AdapterError
from trainer.render import batch, batch_ledger, jobs_file, picture_metadata
from trainer.render.engine import Engine

# LoRAs that prompts name.


def tagged_plan(path: Path, tiny: Path, shelf: Path) -> batch_ledger.Plan:
    return batch_ledger.make(
        jobs_file.read(path, defaults(tiny)), library=lambda: lora_file.library([shelf]), wildcards=shelf
    )


def test_a_lora_that_a_prompt_names_is_the_same_recipe_as_one_by_its_file(tmp_path: Path, tiny: Path) -> None:
    """Drawn by the real engine, which then need not know the library: names are found when the plan is made."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    fox, rng = shelf / "fox.safetensors", torch.Generator().manual_seed(0)
    parts = {"lora_down.weight": torch.randn(4, 32, generator=rng), "lora_up.weight": torch.randn(32, 4, generator=rng)}
    lora_file.save(fox, {LAYER.replace("to_q", "to_v"): parts}, {}, torch.float32)
    (shelf / "animals.txt").write_text("a fox <lora:fox:0.7>\n")
    path = jobs(
        tmp_path / "x.csv",
        [("prompt", "lora"), ("a fox <lora:fox:0.7>", ""), ("__animals__", ""), ("a fox", f"{fox}:0.7"), ("a fox", "")],
    )
    plan = tagged_plan(path, tiny, shelf)
    assert plan.counts()["pictures"] == 2 and any("fox 0.7" in what for what, _ in plan.groups())
    list(batch.run(plan, tmp_path / "out", lambda base, family: Engine(base, family, device="cpu"), sheets=False))
    shown = {row["row"]: row for row in manifest(tmp_path / "out")}
    assert shown["1"]["file"] == shown["2"]["file"] == shown["3"]["file"] != shown["4"]["file"]
    assert (shown["1"]["prompt"], shown["1"]["lora"]) == ("a fox", "fox:0.7")
    with (
        Image.open(tmp_path / "out" / shown["1"]["file"]) as drawn,
        Image.open(tmp_path / "out" / shown["4"]["file"]) as plain,
    ):
        assert "fox" in drawn.info["parameters"] and drawn.tobytes() != plain.tobytes()
    assert tagged_plan_after(path, tiny, shelf, tmp_path / "out")["todo"] == 0
    lora(fox, -0.5)
    assert tagged_plan_after(path, tiny, shelf, tmp_path / "out")["todo"] == 1, "by content"


def tagged_plan_after(path: Path, tiny: Path, shelf: Path, out: Path) -> dict[str, int]:
    plan = tagged_plan(path, tiny, shelf)
    plan.reconcile(out)
    return plan.counts()


def test_a_name_that_is_not_here_or_a_tag_that_means_nothing_fails_its_row_and_no_other(
    tmp_path: Path, tiny: Path
) -> None:
    lora(tmp_path / "fox.safetensors", 0.5)
    prompts = ["a", "<lora:wolf:1>", "<hypernet:x:1>", "<lora:fox:5>", "__none__", "b"]
    rows = [
        ("prompt", "negative", "mode"),
        *((prompt, "", "") for prompt in prompts),
        ("c", "<lora:fox:1>", ""),
        ("<lora:fox:1><lora:fox:-1>", "", "switch"),
    ]
    plan = tagged_plan(jobs(tmp_path / "x.csv", rows), tiny, tmp_path)
    why = {work.place: work.why for work in plan.failed()}
    assert (
        set(why) == {2, 3, 5, 7}
        and "allowed: one of fox" in why[2]
        and "<hypernet:x:1>" in why[3]
        and "has no none.txt" in why[5]
        and "negative" in why[7]
    )
    works = {work.place: work for work in plan.pictures()}
    assert (
        works[4].stack.adapters[0].weight == 5
        and works[4].stack.wide_weights
        and [adapter.weight for adapter in works[8].stack.adapters] == [1, -1]
    )


# What fails.


def test_a_lora_that_vanished_fails_its_rows_and_no_other_and_is_tried_again(tmp_path: Path, tiny: Path) -> None:
    here, gone = lora(tmp_path / "here.safetensors", 1), lora(tmp_path / "gone.safetensors", 2)
    path = jobs(
        tmp_path / "x.csv", [("seed", "lora"), *((seed, f"{file}:1") for seed in (1, 2) for file in (here, gone))]
    )
    plan, kept = plan_of(path, tiny), gone.read_bytes()
    gone.unlink()  # after the plan was made
    events = list(batch.run(plan, tmp_path / "out", lambda base, family: Painter(), sheets=False))
    assert [event.row for event in events if isinstance(event, batch.Refused)] == [2, 4] and len(
        files(tmp_path / "out")
    ) == 2
    ended = draw(path, tiny, tmp_path / "out")  # and before
    assert (ended.made, ended.failed) == (0, 2)
    assert [row["state"] for row in manifest(tmp_path / "out")] == [
        "done",
        "failed",
    ] * 2 and "gone.safetensors" in manifest(tmp_path / "out")[1]["problem"]
    gone.write_bytes(kept)
    assert draw(path, tiny, tmp_path / "out").made == 2 and {row["state"] for row in manifest(tmp_path / "out")} == {
        "done"
    }


@pytest.mark.parametrize("most", [4, 0])
def test_what_is_too_much_for_memory_is_drawn_in_parts_and_a_picture_that_is_too_large_alone_is_its_rows_error(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """The allocator itself refuses: the first layer of the denoiser asks it for more than there is, from so many 32-px
    pictures on.
    """
    drawn_sizes: list[tuple[int, int]] = []

    def open_engine(base: str, family: str) -> Engine:
        engine = Engine(base, family, device="cpu")
        first = engine.pipe.unet.conv_in
        forward = first.forward

        def allocating(latents: torch.Tensor) -> torch.Tensor:
            size = (latents.shape[0], latents.shape[-1])
            drawn_sizes.append(size)
            if size[1] > 16 or (most and size[0] > 2 * most):  # with and without the prompt
                torch.empty(1 << 60)
            return forward(latents)

        monkeypatch.setattr(first, "forward", allocating)
        return engine

    sizes = ["32x32"] * 8 + ["32x32" if most else "64x64"]
    path = jobs(tmp_path / "x.csv", [("seed", "size"), *enumerate(sizes)])
    events = list(batch.run(plan_of(path, tiny), tmp_path / "out", open_engine, sheets=False))
    refused = [event for event in events if isinstance(event, batch.Refused)]
    assert len(files(tmp_path / "out")) == (9 if most else 8) and drawn_sizes
    assert [event.row for event in refused] == ([] if most else [9])
    assert most or "memory ran out for this picture of 64x64 px" in refused[0].message
    whole = list(batch.run(plan_of(path, tiny), tmp_path / "out", open_engine, sheets=False))[-1]
    assert isinstance(whole, batch.Ended) and whole.made == 0


def test_a_batch_that_does_not_go_together_is_drawn_one_by_one(tmp_path: Path, tiny: Path) -> None:
    class Lonely(Painter):
        def render_all(self, stacks: Iterable[StackConfig]) -> Iterator[picture_metadata.Picture]:
            company = list(stacks)
            if len(company) > 1 or company[0].seed == 3:
                raise AdapterError("two files bring one word")
            yield from super().render_all(company)

    ended = draw(
        jobs(tmp_path / "x.csv", [("seed",), *((seed,) for seed in range(6))]), tiny, tmp_path / "out", Lonely()
    )
    assert (ended.made, ended.failed) == (5, 1)
