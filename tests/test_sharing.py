"""What a batch shares is told from the settings themselves: none can be new and taken from the batch's first
picture.
"""

from pathlib import Path
from typing import Any

import pytest

from trainer.config import AdapterChoice, StackConfig
from trainer.render import batch_ledger, batching, sharing
from trainer.render.engine import Engine
from trainer.render.resolving import Resolved

OTHER: dict[str, Any] = {
    "family": "sdxl", "base": "other", "mode": "switch", "sampler": "euler", "steps": 3, "guidance_scale": 2.0,
    "guidance_rescale": 0.25,
    "true_guidance_scale": 2.0, "width_px": 64, "height_px": 64,
}  # fmt: skip


class LaterAdapter(AdapterChoice):
    later: str = ""


class LaterStack(StackConfig):
    later: str = ""


def test_every_setting_is_declared_shared_or_a_pictures_own() -> None:
    """A new setting fails here until someone has said whether pictures of one batch may differ in it."""
    assert {*sharing.SHARED, *sharing.OWN} == set(StackConfig.model_fields) and not sharing.OWN & set(sharing.SHARED)
    assert {*sharing.SHARED_OF_ADAPTER, *sharing.OWN_OF_ADAPTER} == set(AdapterChoice.model_fields)
    assert not sharing.OWN_OF_ADAPTER & set(sharing.SHARED_OF_ADAPTER)
    assert {"version", *OTHER} == set(sharing.SHARED)


def kind(stack: StackConfig, engine: Engine) -> tuple[Any, ...]:
    """What the stack has in common with others of its batch, taken as it stands."""
    return batching.kind(Resolved(stack, engine.latents(stack), {}), engine.opened)


@pytest.mark.parametrize("name", sorted(OTHER))
def test_pictures_that_differ_in_a_shared_setting_are_not_one_batch(name: str, engine: Engine) -> None:
    plain = StackConfig()
    other = plain.model_copy(update={name: OTHER[name]})
    assert kind(plain, engine) != kind(other, engine) and batch_ledger._keys(plain)[0] != batch_ledger._keys(other)[0]
    own = plain.model_copy(update={"prompt": "a fox", "seed": 2, "negative_prompt": "blur", "wide_weights": True})
    assert kind(plain, engine) == kind(own, engine) and batch_ledger._keys(plain) == batch_ledger._keys(own)


def test_a_setting_nobody_has_declared_yet_is_shared(engine: Engine) -> None:
    plain, other = LaterStack(), LaterStack(later="x")
    assert kind(plain, engine) != kind(other, engine) and batch_ledger._keys(plain)[0] != batch_ledger._keys(other)[0]
    assert sharing.layer(LaterAdapter(file="a")) != sharing.layer(LaterAdapter(file="a", later="x"))


def test_weights_and_names_are_no_part_of_a_layer_and_all_else_is(tmp_path: Path) -> None:
    plain = AdapterChoice(file="a", sha256="ab" * 32, schedule="linear 1 0")
    for name, value in {"weight": 0.5, "text_weight": 0.1, "name": "x", "trigger": True, "enabled": False}.items():
        assert sharing.layer(plain) == sharing.layer(plain.model_copy(update={name: value})), name
    for name, value in {
        "file": "b",
        "sha256": "cd" * 32,
        "blocks": ("OUT=0",),
        "schedule": "linear 0 1",
        "region": "box 0 0 1 0.5",
    }.items():
        assert sharing.layer(plain) != sharing.layer(plain.model_copy(update={name: value})), name
    assert (
        len(
            {sharing.layer(plain.model_copy(update={"schedule": text})) for text in ("", "steps 0:1", "linear 0.5 0.5")}
        )
        == 1
    )
