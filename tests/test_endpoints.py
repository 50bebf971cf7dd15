"""The page's named endpoints, asked by Gradio's own client as a person's script would, over a real server."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from tests.test_browser import Server

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("endpoints") / "workspace")
    made.start()
    folder = made.workspace / "datasets" / "dots"
    folder.mkdir()
    for number, colour in enumerate(("red", "blue", "green", "black")):
        Image.new("RGB", (64, 64), colour).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} square")
    yield made
    made.kill()


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return Client(server.address, verbose=False)


def ended(client: Client, job: int, timeout_s: float = 200) -> dict[str, Any]:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        row: dict[str, Any] = client.predict(job, api_name="/job")
        if row["state"] in ("finished", "failed", "stopped"):
            return row
        time.sleep(1)
    raise AssertionError(client.predict(job, api_name="/job"))


def fetched(server: Server, address: str) -> bytes:
    with urllib.request.urlopen(server.address.rstrip("/") + address, timeout=20) as answer:
        content: bytes = answer.read()
    return content


def test_a_script_trains_draws_and_draws_many(client: Client, server: Server) -> None:
    assert client.predict(api_name="/bases") == ["imprimatura"] and client.predict(api_name="/datasets") == ["dots"]
    assert "imprimatura-character" in client.predict(api_name="/presets")
    settings = {"max_steps": 2, "batch_size": 2, "adapter.rank": 4, "data.trigger": "dotty", "preview_every_steps": 0}
    job = client.predict("imprimatura-character", "dots", "dots", settings, api_name="/train")
    assert (job["kind"], job["name"]) == ("training", "dots")
    row = ended(client, job["id"])
    assert row["state"] == "finished" and row["done"] == 1, row
    assert fetched(server, row["files"]["dots.safetensors"])[:8] != b""

    # A picture with the LoRA, and the same without it.
    (lora,) = client.predict(api_name="/loras")
    assert (lora["name"], lora["trigger"], lora["rank"]) == ("dots", "dotty", 4)
    stack = {"prompt": "dotty", "steps": 2, "width_px": 64, "height_px": 64, "seed": 5}
    drawn = client.predict({**stack, "adapters": [{"file": "dots", "weight": 0.8}]}, api_name="/render")
    picture = Image.open(BytesIO(fetched(server, drawn["address"])))
    assert picture.size == (64, 64) and drawn["seed"] == 5 and "<lora:dots:0.8>" in picture.info["parameters"]

    # A batch of it.
    text = "prompt,lora,seed,steps,size\ndotty,dots:1,1,2,64x64\ndotty,dots:0.5,2,2,64x64\n"
    job = client.predict(text, "csv", "two", api_name="/batch")
    row = ended(client, job["id"])
    assert row["state"] == "finished" and len([name for name in row["files"] if name.endswith(".png")]) >= 2, row
    assert [row["name"] for row in client.predict(api_name="/jobs")] == ["two", "dots"]


@pytest.mark.parametrize(
    ("endpoint", "values", "words"),
    [
        ("/train", ("../../etc/passwd", "dots"), "preset is"),
        ("/train", ("imprimatura-style", "../datasets"), "dataset"),
        ("/train", ("imprimatura-style", "dots", "x", {"base": "/etc"}), "base is"),
        ("/train", ("imprimatura-style", "dots", "x", {"adapter.rank": 0}), "rank"),
        ("/train", ("imprimatura-style", "dots", "x", {"no_such": 1}), "no_such"),
        ("/render", ({"prompt": "x", "adapters": [{"file": "/etc/passwd"}]},), "LoRA"),
        ("/render", ({"prompt": "x", "base": "/etc"},), "base is"),
        ("/render", ({"prompt": "x", "adapters": [{"file": "a", "region": "mask /etc/passwd"}]},), "mask"),
        ("/batch", ("prompt\nx\n", "exe"), "kind is"),
        ("/job", (99,), "no job 99"),
        ("/stop_job", (99,), "no job 99"),
    ],
)
def test_what_is_not_offered_is_refused_in_words(
    client: Client, server: Server, endpoint: str, values: tuple[Any, ...], words: str
) -> None:
    before = len(client.predict(api_name="/jobs"))
    with pytest.raises(AppError, match=words):
        client.predict(*values, api_name=endpoint)
    assert len(client.predict(api_name="/jobs")) == before
    assert "Traceback" not in server.log(), server.log()


def test_the_page_documents_every_endpoint_and_no_other_is_named(client: Client) -> None:
    named = set(client.view_api(return_format="dict", print_info=False)["named_endpoints"])
    shown = set(re.findall(r"^## `(/\w+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE))
    assert named == shown
