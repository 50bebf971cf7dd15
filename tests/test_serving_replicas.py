"""A server whose pictures are drawn by replicas, without Ray: the replicas are in this process."""

from __future__ import annotations

import base64
import dataclasses
import io
import pickle
import sys
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops
from serving_parts import asked, picture, wait_until, with_loras
from serving_replicas import Here, plan, serving_from
from typer.testing import CliRunner

from trainer import lora_file
from trainer.cli import app
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ConfigError, RunError
from trainer.render import picture_metadata
from trainer.render.engine import Engine
from trainer.render.spreading import messages as files_sent
from trainer.render.spreading import ray_access
from trainer.serving.api_error import ApiError
from trainer.serving.model_names import ModelNames
from trainer.serving.orders import Drawn, Failed, Order, Stepped, Wanted
from trainer.serving.replicas import messages
from trainer.serving.replicas.popularity import Popularity
from trainer.serving.replicas.remote import MOST_DEATHS, MOST_SENDS
from trainer.serving.replicas.replica import Replica
from trainer.serving.replicas.wanted_replicas import Replicas, parsed
from trainer.serving.settings import ServeSettings

TINY = {"size": "32x32", "steps": 3}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def workspace(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_loras(engine, tmp_path_factory.mktemp("served"), "cat", "fox", "owl")


@pytest.fixture(scope="module")
def replicas(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Replica]]:
    """One of Imprimatura and one of a tiny base, with batches of four."""
    made = {}
    for base in ("imprimatura", str(tiny)):
        settings = ServeSettings(base=base, workspace=Path(), batch_pictures=4)
        made[base] = Replica(plan(settings), tmp_path_factory.mktemp("sent"))
    yield made
    for replica in made.values():
        replica.end()


@pytest.fixture
def carrier(replicas: dict[str, Replica]) -> Here:
    return Here(replicas)


def png(answer: Any) -> bytes:
    return base64.b64decode(answer["data"][0]["b64_json"])


def of_tiny(running: Any, tiny: Path, **values: Any) -> tuple[int, Any, dict[str, str]]:
    return picture(running, model=tiny.name, **{**TINY, **values})


def test_a_picture_has_the_bytes_of_render(carrier: Here, engine: Engine, workspace: Path, tmp_path: Path) -> None:
    with serving_from(carrier, workspace, "imprimatura") as running:
        status, answer, _ = picture(running, seed=11, loras=[{"name": "fox", "weight": 0.7}])
    fox = AdapterChoice(file=str(workspace / "loras" / "fox.safetensors"), weight=0.7)
    stack = StackConfig(prompt="a fox", seed=11, steps=1, adapters=(fox,))
    path = picture_metadata.save(engine.render(stack), tmp_path / "x.png")
    assert status == 200 and png(answer) == path.read_bytes()


def test_models_and_pictures_are_routed_by_base(carrier: Here, workspace: Path, tiny: Path) -> None:
    with serving_from(carrier, workspace, "imprimatura", str(tiny)) as running:
        names = [model["id"] for model in asked(running, "/v1/models")[1]["data"]]
        assert names[:2] == ["imprimatura", tiny.name] and f"{tiny.name}+fox" in names
        assert asked(running, f"/v1/models/{tiny.name}+fox")[1]["root"] == tiny.name
        assert of_tiny(running, tiny)[0] == 200 and picture(running)[0] == 200
    assert [base for base, _ in carrier.calls] == [str(tiny), "imprimatura"]


def test_a_saved_stack_is_drawn_on_its_own_base(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "dusk.toml").write_text(f'base = "{tiny}"\nfamily = "sd"\n')
    (tmp_path / "dawn.toml").write_text('base = "another"\n')
    names = ModelNames(("imprimatura", str(tiny)), tmp_path)
    assert names.meant("dusk").base == str(tiny)
    assert names.meant("dawn").base == names.meant(None).base == "imprimatura"


def test_two_bases_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two have one name"):
        ModelNames(("/a/base", "/b/base"), tmp_path)


def test_a_lost_picture_is_sent_again_and_answered_once(carrier: Here, workspace: Path, tiny: Path) -> None:
    carrier.deaths = MOST_SENDS - 1
    with serving_from(carrier, workspace, str(tiny)) as running:
        client = running.client()
        extra = {"steps": 4, "progress": True, "seed": 5}
        events = list(client.images.generate(prompt="x", size="32x32", stream=True, extra_body=extra))
        plain = picture(running, prompt="x", size="32x32", steps=4, seed=5)[1]
    steps = [event.step for event in events if event.type == "image_generation.progress"]
    assert steps == sorted(set(steps)) and [event.type for event in events][-1] == "image_generation.completed"
    assert sum(event.type == "image_generation.completed" for event in events) == 1
    assert base64.b64decode(events[-1].b64_json) == png(plain)
    assert len(carrier.calls) == MOST_SENDS + 1 and len(running.lines("replica lost")) == MOST_SENDS - 1


def test_a_picture_whose_replicas_all_die_is_answered_so(carrier: Here, workspace: Path, tiny: Path) -> None:
    carrier.deaths = MOST_SENDS
    with serving_from(carrier, workspace, str(tiny)) as running:
        status, body, _ = picture(running, **TINY)
        assert (status, body["error"]["code"]) == (503, "replica_lost")
        assert of_tiny(running, tiny)[0] == 200
    assert len(carrier.calls) == MOST_SENDS + 1


@pytest.mark.parametrize("answer_s", [0, 2])
def test_a_picture_that_ends_whatever_draws_it_is_given_up_and_takes_nobody_along(
    carrier: Here, workspace: Path, tiny: Path, answer_s: float
) -> None:
    """Nor those whose answers are under way as it is begun."""
    carrier.deadly, carrier.answer_s = "deadly", answer_s
    with serving_from(carrier, workspace, str(tiny)) as running, ThreadPoolExecutor(8) as pool:
        prompts = ["a deadly fox" if seed == 2 else "a fox" for seed in range(8)]
        asking = [
            pool.submit(of_tiny, running, tiny, seed=seed, prompt=prompt, steps=20)
            for seed, prompt in enumerate(prompts)
        ]
        answers = [call.result() for call in asking]
        lost = running.lines("replica lost")
        after = of_tiny(running, tiny, seed=1, steps=20)[1]
    assert [status for status, _, _ in answers] == [503 if seed == 2 else 200 for seed in range(8)]
    assert answers[2][1]["error"]["code"] == "replica_lost" and f"died {MOST_DEATHS} times" in str(answers[2][1])
    deaths = {line["request"]: line["deaths"] for line in lost}  # the last of each
    assert carrier.num_killed == MOST_DEATHS == max(deaths.values()) and max(sorted(deaths.values())[:-1]) <= 1
    with Image.open(io.BytesIO(png(after))) as whole, Image.open(io.BytesIO(png(answers[1][1]))) as other:
        assert max(high for _, high in ImageChops.difference(whole, other).getextrema()) <= 1


def test_replicas_are_given_no_more_than_they_can_hold(carrier: Here, workspace: Path, tiny: Path) -> None:
    with serving_from(carrier, workspace, str(tiny), batch_pictures=2) as running, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda seed: of_tiny(running, tiny, seed=seed), range(12)))
    assert [status for status, _, _ in answers] == [200] * 12
    assert [answer["data"][0]["seed"] for _, answer, _ in answers] == list(range(12))
    assert 2 <= carrier.most_open <= 4


def test_pictures_wait_here_while_no_replica_is_there(carrier: Here, workspace: Path, tiny: Path) -> None:
    carrier.num_there = 0
    with serving_from(carrier, workspace, str(tiny)) as running, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(of_tiny, running, tiny)
        wait_until(lambda: len(running.state.line) == 1)
        status, body, _ = of_tiny(running, tiny, deadline_s=0.3)
        assert (status, body["error"]["code"]) == (504, "deadline_exceeded") and not carrier.calls
        carrier.num_there = 1
        assert asking.result()[0] == 200


def test_what_nobody_waits_for_is_cancelled_at_its_replica(carrier: Here, workspace: Path, tiny: Path) -> None:
    with serving_from(carrier, workspace, str(tiny)) as running:
        status, body, _ = of_tiny(running, tiny, steps=150, size="256x256", deadline_s=1)
        assert (status, body["error"]["code"]) == (504, "deadline_exceeded")
        wait_until(lambda: carrier.num_open == 0)
        assert of_tiny(running, tiny)[0] == 200, "the replica goes on with what is wanted"


def test_the_end_tells_what_is_under_way(carrier: Here, workspace: Path, tiny: Path) -> None:
    with serving_from(carrier, workspace, str(tiny), drain_s=0.2) as running, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(of_tiny, running, tiny, steps=150, size="256x256")
        wait_until(lambda: carrier.num_open == 1)
        running.drain()
        status, body, _ = asking.result()
        assert (status, body["error"]["code"]) == (503, "draining")


def test_an_upload_must_fit_one_of_the_bases(carrier: Here, workspace: Path, tiny: Path, engine: Engine) -> None:
    with serving_from(carrier, workspace, str(tiny), "imprimatura", uploads=True) as running:
        raw = (workspace / "loras" / "cat.safetensors").read_bytes()
        assert asked(running, "/v1/loras?name=mine", raw)[0] == 201
        assert asked(running, "/v1/loras?name=torn", raw[:-8])[1]["error"]["code"] == "lora_refused"


def test_batches_of_replicas_are_counted_here(carrier: Here, workspace: Path, tiny: Path) -> None:
    with serving_from(carrier, workspace, "imprimatura", str(tiny)) as running:
        assert "velatura_adapter_bytes 0.0" in asked(running, "/metrics")[1].decode()
        carrier.replicas["imprimatura"]._renderer.engine.shelf._kept.clear()
        assert picture(running, loras=[{"name": "cat"}])[0] == 200
        kept = carrier.replicas["imprimatura"]._renderer.adapter_bytes
        text = asked(running, "/metrics")[1].decode()
        assert kept and f"velatura_adapter_bytes {float(kept)}" in text
    assert "velatura_batch_pictures_count 1.0" in text and running.lines("batch")[-1]["pictures"] == 1
    assert 'velatura_pictures_total{key="local"} 1.0' in text


def test_a_pinned_lora_stays_in_a_replicas_memory(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    content = lora_file.content
    monkeypatch.setattr(lora_file, "content", lambda path: (read.append(path.stem), content(path))[1])
    settings = ServeSettings(base="imprimatura", workspace=Path(), kept_bytes=1)
    pinned = messages.keys_of([workspace / "loras" / "cat.safetensors"])
    replica = Replica(plan(settings, pinned), tmp_path)
    try:
        with serving_from(Here({"imprimatura": replica}), workspace, "imprimatura") as running:
            for name in ("cat", "fox", "cat", "owl", "fox", "cat"):
                assert picture(running, loras=[{"name": name}])[0] == 200
    finally:
        replica.end()
    assert read == ["cat", "fox", "owl", "fox"], "where one LoRA is kept, the pinned one stays besides"


# Messages.


def test_news_are_the_same_after_the_way(workspace: Path) -> None:
    adapter = AdapterChoice(file="/front/fox.safetensors", name="fox")
    asked_for = StackConfig(adapters=(adapter,))
    there = asked_for.model_copy(update={"adapters": (adapter.model_copy(update={"file": "/replica/0"}),)})
    refused = Failed(1, ApiError(429, "too much", "kind", "n", "code", 2.5))
    for news in (Drawn(0, b"png", there, 3), Stepped(2, 1, 4, b"preview"), refused):
        back = messages.returned(pickle.loads(pickle.dumps(messages.told(news))), asked_for)
        if isinstance(back, Drawn):
            assert back == dataclasses.replace(news, stack=asked_for)  # type: ignore[type-var]
        elif isinstance(back, Failed):
            assert vars(back.error) == vars(refused.error) and back.number == 1
        else:
            assert back == news


def test_no_path_of_this_machine_is_sent(workspace: Path) -> None:
    file = workspace / "loras" / "fox.safetensors"
    order = Order("id", "ann", lambda news: None, deadline=1e12)
    wanted = Wanted(order, 0, StackConfig(adapters=(AdapterChoice(file=str(file), name="fox"),)))
    outgoing = files_sent.outgoing(wanted.stack, lambda path: "0" * 64)
    assert str(workspace) not in repr(messages.sent(wanted, outgoing))


def test_a_replica_with_another_base_or_version_does_not_start(tiny: Path, tmp_path: Path) -> None:
    right = plan(ServeSettings(base=str(tiny), workspace=tmp_path))
    for wrong in (
        dataclasses.replace(right, base_sha256="0" * 64),
        dataclasses.replace(right, versions={**right.versions, "torch": "1.0"}),
    ):
        with pytest.raises(RunError, match="is another one here|must have torch 1.0"):
            Replica(wrong, tmp_path)


def test_the_rarest_lora_decides() -> None:
    popularity = Popularity(most_asked=40)
    for _ in range(10):
        popularity.rarest(["common"])
    assert popularity.rarest(["rare", "common"]) == "rare" and popularity.rarest([]) == ""
    assert popularity.rarest(["b", "a"]) == "a", "the same of those alike"
    for _ in range(60):
        popularity.rarest(["new"])
    assert popularity.rarest(["common", "new"]) == "common", "what was popular once is forgotten"


# The command.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--base", "a", "--base", "b"], "without --ray one base"),
        (["--replicas", "2"], "--replicas: read with --ray only"),
        (["--address", "h:1"], "--address: read with --ray only"),
        (["--ray", "--replicas", "4:1"], "--replicas is '4:1'"),
        (["--ray", "--replicas", "0"], "--replicas is '0'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["serve", *options])
    assert isinstance(done.exception, ConfigError) and message in str(done.exception)


def test_replicas_are_a_number_or_a_range() -> None:
    assert parsed("2", "", 60.0) == Replicas(2, 2, "", 60.0)
    assert parsed("3", "") == Replicas(3, 3) and parsed("1:4", "h:6379") == Replicas(1, 4, "h:6379")


@pytest.mark.parametrize("part", ["ray", "ray.serve"])
def test_without_ray_or_a_part_of_it_one_sentence_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    without_parts = types.ModuleType("ray")
    without_parts.__path__ = []
    monkeypatch.setitem(sys.modules, "ray", None if part == "ray" else without_parts)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED", "RAY_DISABLE_IMPORT_WARNING"):
        monkeypatch.setenv(name, "token")
    with pytest.raises(ConfigError, match=r"^--ray asks for Ray.*pip install 'velatura\[ray\]', or leave --ray out"):
        ray_access.prepare("", "--ray", part)
