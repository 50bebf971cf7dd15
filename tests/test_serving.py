"""`velatura serve` as its clients see it: the real `openai` client and plain HTTP against a real server on loopback."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from serving_parts import STEPS, Served, asked, openai, picture, random_lora, serving, wait_until, with_loras

from trainer.config import AdapterChoice, StackConfig
from trainer.render import picture_metadata
from trainer.render.engine import Engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def workspace(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four LoRAs, and a stack that was saved."""
    folder = with_loras(engine, tmp_path_factory.mktemp("served"), "cat", "fox", "ink", "oil")
    (folder / "stacks").mkdir()
    (folder / "stacks" / "evening.toml").write_text(
        'base = "imprimatura"\nnegative_prompt = "blue"\nsteps = 3\n[[adapters]]\nname = "ink"\nweight = 0.4\n'
    )
    return folder


@pytest.fixture(scope="module")
def served(engine: Engine, workspace: Path) -> Iterator[Served]:
    with serving(engine, workspace, window_s=0.15) as running:
        yield running


def png(answer: Any, number: int = 0) -> bytes:
    return base64.b64decode(answer["data"][number]["b64_json"])


def recipe(raw: bytes) -> dict[str, Any]:
    carried = picture_metadata.read(io.BytesIO(raw)).recipe
    assert carried is not None
    return carried


def apart(left: bytes, right: bytes) -> int:
    """The largest difference of two pictures, of 255."""
    first, second = (numpy.asarray(Image.open(io.BytesIO(raw)), int) for raw in (left, right))
    return int(numpy.abs(first - second).max())


# OpenAI's client.


def test_the_client_lists_models_and_finds_each(served: Served) -> None:
    client = served.client()
    names = [model.id for model in client.models.list()]
    assert names[:2] == ["imprimatura", "evening"]
    assert "imprimatura+fox" in names
    assert client.models.retrieve("imprimatura+fox:0.5+cat").id == "imprimatura+fox:0.5+cat"
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("dall-e-3")
    assert refused.value.code == "model_not_found"


def test_the_client_gets_pictures_with_their_recipes(served: Served) -> None:
    extra = {"seed": 7, "steps": STEPS, "negative_prompt": "snow", "guidance_scale": 2.0}
    answer = served.client().images.generate(
        prompt="a fox <lora:fox:0.5>", model="imprimatura+cat:0.3", n=2, size="128x128",
        response_format="b64_json", extra_body=extra,
    )  # fmt: skip
    assert answer.data is not None and len(answer.data) == 2
    recipes = [recipe(base64.b64decode(image.b64_json or "")) for image in answer.data]
    assert [made["seed"] for made in recipes] == [7, 8]
    for made in recipes:
        assert [(lora["name"], lora["weight"]) for lora in made["adapters"]] == [("cat", 0.3), ("fox", 0.5)]
        assert (made["negative_prompt"], made["guidance_scale"], made["prompt"]) == ("snow", 2.0, "a fox")
        assert not any("file" in lora for lora in made["adapters"])


def test_the_client_streams_previews_and_the_picture(served: Served) -> None:
    extra = {"seed": 3, "steps": 6}
    events = list(served.client().images.generate(prompt="a fox", stream=True, partial_images=2, extra_body=extra))
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [getattr(event, "partial_image_index", None) for event in events[:2]] == [0, 1]
    sizes = [Image.open(io.BytesIO(base64.b64decode(event.b64_json))).size for event in events]
    assert sizes == [(128, 128)] * 3
    whole = base64.b64decode(events[-1].b64_json)
    assert whole == png(picture(served, **extra)[1])


def test_steps_are_told_of_where_they_are_asked_for(served: Served) -> None:
    stream = served.client().images.generate(prompt="a fox", stream=True, extra_body={"steps": 3, "progress": True})
    kinds = [event.type for event in stream]
    assert kinds == ["image_generation.progress"] * 3 + ["image_generation.completed"]


def test_an_error_in_a_stream_is_the_clients_error(served: Served, workspace: Path, engine: Engine) -> None:
    path = random_lora(engine, workspace / "loras" / "gone.safetensors", 99)
    served.client().images.generate(prompt="x", extra_body={"steps": 1, "loras": [{"name": "gone"}]})
    path.unlink()
    extra = {"steps": 1, "loras": [{"name": "gone"}]}
    with pytest.raises(openai.APIError) as refused:
        list(served.client().images.generate(prompt="x", stream=True, extra_body=extra))
    assert "gone.safetensors" in str(refused.value) or "gone" in str(refused.value)


def test_a_url_is_fetched_without_a_key_and_only_by_who_knows_it(served: Served) -> None:
    answer = served.client().images.generate(prompt="a fox", response_format="url", extra_body={"steps": 1})
    assert answer.data is not None and answer.data[0].url is not None
    path = answer.data[0].url.removeprefix(served.url)
    status, raw, headers = asked(served, path)
    assert (status, headers["content-type"]) == (200, "image/png")
    assert recipe(raw)["prompt"] == "a fox"
    assert asked(served, "/v1/pictures/AAAA.png")[0] == 404


def test_a_picture_is_kept_for_a_while_only(engine: Engine, workspace: Path) -> None:
    with serving(engine, workspace, results_s=0.2) as running:
        url = picture(running, response_format="url", steps=1)[1]["data"][0]["url"].removeprefix(running.url)
        wait_until(lambda: asked(running, url)[0] == 404, 5)


# Pictures.


def stack_of(workspace: Path, name: str, weight: float, seed: int) -> StackConfig:
    file = workspace / "loras" / f"{name}.safetensors"
    return StackConfig(prompt="a fox", seed=seed, steps=STEPS, adapters=(AdapterChoice(file=str(file), weight=weight),))


def test_a_picture_alone_has_the_bytes_of_render(engine: Engine, workspace: Path, tmp_path: Path) -> None:
    with serving(engine, workspace) as running:
        alone = png(picture(running, seed=11, loras=[{"name": "ink", "weight": 0.7}])[1])
    path = picture_metadata.save(engine.render(stack_of(workspace, "ink", 0.7, 11)), tmp_path / "x.png")
    assert alone == path.read_bytes()


def test_different_stacks_are_one_batch_and_each_its_own_picture(
    served: Served, engine: Engine, workspace: Path
) -> None:
    loras = [("cat", 0.5), ("fox", 0.9), ("ink", -0.4), ("oil", 1.2)]
    gate = threading.Barrier(len(loras))

    def ask(number: int) -> Any:
        gate.wait()
        name, weight = loras[number]
        return picture(served, seed=number, loras=[{"name": name, "weight": weight}])[1]

    with ThreadPoolExecutor(len(loras)) as pool:
        answers = list(pool.map(ask, range(len(loras))))
    assert max(answer["data"][0]["batch_pictures"] for answer in answers) >= 3
    for number, answer in enumerate(answers):
        name, weight = loras[number]
        made = recipe(png(answer))
        assert [(lora["name"], lora["weight"]) for lora in made["adapters"]] == [(name, weight)]
    with serving(engine, workspace) as alone:
        for number, answer in enumerate(answers):
            name, weight = loras[number]
            again = png(picture(alone, seed=number, loras=[{"name": name, "weight": weight}])[1])
            assert apart(png(answer), again) <= 1


def test_without_mixed_batches_only_equal_stacks_are_drawn_together(engine: Engine, workspace: Path) -> None:
    with serving(engine, workspace, mixed_batches=False, window_s=0.2) as running, ThreadPoolExecutor(4) as pool:
        names = ["cat", "cat", "fox", "ink"]
        answers = list(pool.map(lambda name: picture(running, loras=[{"name": name}])[1], names))
        together = [answer["data"][0]["batch_pictures"] for answer in answers]
        assert together[2:] == [1, 1] and max(together) <= 2


@pytest.mark.parametrize(("slow", "expected"), [("together", [1, 1, 1]), ("alone", [3, 3, 3])])
def test_a_few_different_stacks_are_drawn_together_only_where_that_is_faster(
    slow: str, expected: list[int], engine: Engine, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server learns it from what it draws; the pictures are the same."""
    draw, loras = engine.draw, ["cat", "fox", "ink"]

    longest_s = 0.1

    def slowed(pictures: Any) -> Any:
        """What is slow takes ten times the longest drawing so far, however busy the machine is."""
        nonlocal longest_s
        if (slow == "together") == (len(pictures) > 1):
            time.sleep(10 * longest_s)
            return draw(pictures)
        began = time.monotonic()
        drawn = draw(pictures)
        longest_s = max(longest_s, time.monotonic() - began)
        return drawn

    monkeypatch.setattr(engine, "draw", slowed)
    # A batch of all three waits no longer; the window is for a machine on which they don't come at the same moment.
    limits = {"window_s": 1.0, "batch_pictures": len(loras)}
    with serving(engine, workspace, **limits) as running, ThreadPoolExecutor(len(loras)) as pool:

        def ask(number: int) -> Any:
            return picture(running, seed=number, steps=2, loras=[{"name": loras[number]}])[1]

        alone = [png(ask(number)) for number in range(len(loras))]
        list(pool.map(ask, range(len(loras))))  # together for the first time, whatever it takes
        answers = list(pool.map(ask, range(len(loras))))
        metrics = asked(running, "/metrics")[1].decode()
    assert [answer["data"][0]["batch_pictures"] for answer in answers] == expected
    assert ("velatura_batches_apart_total 0.0" in metrics) == (slow == "alone")
    assert max(apart(png(answer), one) for answer, one in zip(answers, alone, strict=True)) <= 1


def test_a_saved_stack_is_a_model(served: Served) -> None:
    status, answer, _ = asked(served, "/v1/images/generations", {"prompt": "a house", "model": "evening"})
    made = recipe(png(answer))
    assert status == 200
    assert (made["steps"], made["negative_prompt"], made["adapters"][0]["name"]) == (3, "blue", "ink")


def test_every_way_to_name_a_lora_is_the_same(served: Served) -> None:
    listed = {lora["name"]: lora["sha256"] for lora in asked(served, "/v1/loras")[1]["data"]}
    ways: list[dict[str, Any]] = [
        {"loras": [{"name": "oil", "weight": 0.5}]},
        {"loras": [{"sha256": listed["oil"], "weight": 0.5}]},
        {"lora": {"name": "oil", "scale": 0.5}},
        {"model": "imprimatura+oil:0.5"},
        {"prompt": "a fox <lora:oil:0.5>"},
    ]
    pictures = [png(picture(served, seed=2, **way)[1]) for way in ways]
    assert len({Image.open(io.BytesIO(raw)).tobytes() for raw in pictures}) == 1


def test_blocks_schedules_regions_and_modes_act(served: Served) -> None:
    plain = png(picture(served, seed=2, steps=2, loras=[{"name": "oil"}])[1])
    for change in (
        {"blocks": ["OUT=0"]},
        {"schedule": "linear 1 0"},
        {"region": "box 0 0 0.5 1"},
        {"text_weight": 0.0},
    ):
        status, answer, _ = picture(served, seed=2, steps=2, loras=[{"name": "oil", **change}])
        assert status == 200
        key, value = next(iter(change.items()))
        assert recipe(png(answer))["adapters"][0][key] == value
        assert key == "text_weight" or apart(plain, png(answer)) > 0
    both = {"loras": [{"name": "oil"}, {"name": "cat"}], "seed": 2, "steps": 4}
    assert apart(png(picture(served, **both)[1]), png(picture(served, **both, mode="switch")[1])) > 0
    assert recipe(png(picture(served, sampler="euler")[1]))["sampler"] == "euler"


def test_no_seed_is_another_seed_each_time(served: Served) -> None:
    seeds = {picture(served, steps=1)[1]["data"][0]["seed"] for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("values", "status", "code", "param"),
    [
        ({"model": "dall-e-3"}, 404, "model_not_found", "model"),
        ({"model": "imprimatura+fox:x"}, 400, "invalid_value", "model"),
        ({"loras": [{"name": "nobody"}]}, 404, "lora_not_found", "loras"),
        ({"loras": [{"sha256": "0" * 64}]}, 404, "lora_not_found", "loras"),
        ({"loras": [{"name": "cat", "weight": 21}]}, 400, "invalid_value", "loras.0.weight"),
        ({"loras": [{"name": "cat", "sha256": "0" * 64}]}, 400, "invalid_value", "loras.0"),
        ({"prompt": "<lora:nobody:1>"}, 404, "lora_not_found", "loras"),
        ({"size": "64"}, 400, None, "size"),
        ({"size": "99999x8"}, 400, None, "size"),
        ({"n": 11}, 400, "invalid_value", "n"),
        ({"n": "2"}, 400, "invalid_value", "n"),
        ({"steps": 151}, 400, "invalid_value", "steps"),
        ({"seed": 2**32}, 400, "invalid_value", "seed"),
        ({"mode": "nothing"}, 400, "invalid_value", None),
        ({"sampler": "nothing"}, 400, "invalid_value", None),
        ({"style": "vivid"}, 400, "invalid_value", "style"),
        ({"quality": "hd"}, 400, "invalid_value", "quality"),
        ({"prompt": ""}, 400, "invalid_value", "prompt"),
    ],
)
def test_what_cannot_be_done_is_refused_in_openais_form(
    served: Served, values: dict[str, Any], status: int, code: str | None, param: str | None
) -> None:
    found, body, _ = picture(served, **values)
    assert found == status
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["code"], body["error"]["param"]) == (code, param)
    assert body["error"]["type"] == "invalid_request_error"


def test_health_readiness_and_metrics(served: Served) -> None:
    picture(served, steps=1)
    assert asked(served, "/health")[:2] == (200, {"status": "ok"})
    assert asked(served, "/ready")[0] == 200
    status, raw, headers = asked(served, "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    text = raw.decode()
    assert 'velatura_pictures_total{key="local"}' in text
    assert 'route="/v1/images/generations",status="200"' in text
    assert "velatura_batch_pictures_bucket" in text and "velatura_adapter_bytes" in text


def test_the_log_has_no_prompt_unless_asked(engine: Engine, workspace: Path) -> None:
    with serving(engine, workspace) as running:
        picture(running, prompt="a secret garden", steps=1)
        assert running.lines("order")[0]["pictures"] == 1
        assert "secret" not in running.log.getvalue()
        wait_until(lambda: running.lines("request"))
        assert running.lines("request")[-1]["status"] == 200
    with serving(engine, workspace, log_prompts=True) as running:
        picture(running, prompt="a secret garden", steps=1)
        assert running.lines("order")[0]["prompt"] == "a secret garden"


def test_a_pinned_lora_stays_in_memory(engine: Engine, workspace: Path) -> None:
    small = Engine(kept_bytes=1)
    with serving(small, workspace, pinned=("cat",)) as running:
        for name in ("cat", "fox", "cat"):
            assert picture(running, steps=1, loras=[{"name": name}])[0] == 200
        text = asked(running, "/metrics")[1].decode()
    assert 'velatura_adapter_reads_total{where="memory"} 2.0' in text
    assert 'velatura_adapter_reads_total{where="disk"} 1.0' in text


def test_json_is_all_that_is_read(served: Served) -> None:
    for raw in (b"", b"{", b"[]", b"\xff\xfe", b'{"prompt": NaN}', b"[" * 50_000, b'{"prompt":"x","n":1' + b"0" * 9000):
        status, body, _ = asked(served, "/v1/images/generations", raw)
        assert status == 400, raw[:20]
        assert json.dumps(body["error"]["message"])
