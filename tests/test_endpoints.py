"""The page's named endpoints, asked by Gradio's own client as a person's script would, over a real server.

The examples of `docs/api.md` are run as they stand there, but for the server's address and the length of the training.
"""

from __future__ import annotations

import inspect
import json
import re
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app.context import Context
from app.endpoints import offering
from tests import foreign_pictures
from tests.test_browser import Server

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
SHORT = {
    '"max_steps": 300': '"max_steps": 2, "batch_size": 2, "adapter.rank": 4, "preview.steps": 2',
    '{"prompt": "mokka, a smiling cat"': '{"prompt": "mokka, a smiling cat", "steps": 2',
    "time.sleep(2)": "time.sleep(0.3)",
}
pytestmark = pytest.mark.timeout(600)


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


@pytest.fixture(scope="module")
def known(server: Server, client: Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the documented examples leave, run one after the other; the run, its LoRA and a batch are then here."""
    folder = tmp_path_factory.mktemp("script")
    (folder / "photos").mkdir()
    Image.new("RGB", (96, 96), "orange").save(folder / "photos" / "tom.png")
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for code in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL):
            for shown, run in {**SHORT, "http://127.0.0.1:7860": server.address.rstrip("/")}.items():
                code = code.replace(shown, run)
            exec(compile(code, "docs/api.md", "exec"), names)
    return names


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


@pytest.mark.slow
def test_the_documented_examples_do_what_they_say(known: dict[str, Any], server: Server) -> None:
    data = server.workspace / "datasets"
    picture = known["added"]["added"][0]
    assert known["name"] == "grey-cat" and Image.open(data / "grey-cat" / picture).size == (96, 96)
    assert (data / "grey-cat" / picture).with_suffix(".txt").read_text().strip() == "a cat on a wall"
    assert known["ahead"]["problems"] == [] and len(known["run"]["loss"]) == 2
    assert known["run"]["is_finished"] and (server.workspace / "runs" / "cat" / "cat.safetensors").is_file()
    assert known["pasted"]["stack"]["seed"] == 7 and any("lip skip" in note for note in known["pasted"]["notes"])
    assert known["sample"]["address"] and fetched(server, known["sample"]["address"])[:4] == b"\x89PNG"
    assert len(known["sheet"]["cells"]) == 2 and known["report"]["loras"][0]["name"] == "cat"
    assert known["shown"]["num_votes"] == 1 and len(known["pictures"]) == 4
    assert known["arrival"]["is_taken"] and known["arrival"]["kind"] == "datasets"
    assert fetched(server, known["card"]["address"])[:2] == b"PK" and known["change"]["setting"]
    assert "Traceback" not in server.log(), server.log()


@pytest.mark.slow
def test_a_picture_and_a_batch_are_drawn_as_asked(known: dict[str, Any], client: Client, server: Server) -> None:
    (lora,) = [row for row in client.predict(api_name="/loras") if row["name"] == "cat"]
    assert (lora["trigger"], lora["rank"]) == ("mokka", 4)
    stack = {"prompt": "mokka", "steps": 2, "width_px": 64, "height_px": 64, "seed": 5}
    drawn = client.predict({**stack, "adapters": [{"file": "cat", "weight": 0.8}]}, api_name="/render")
    picture = Image.open(BytesIO(fetched(server, drawn["address"])))
    assert picture.size == (64, 64) and drawn["seed"] == 5 and "<lora:cat:0.8>" in picture.info["parameters"]

    # The same table as a spreadsheet copies it, and as CSV.
    rows = [("prompt", "lora", "seed", "steps", "size"), ("mokka", "cat:1", "1", "2", "64x64")]
    table, csv = ("\n".join(mark.join(row) for row in rows) for mark in ("\t", ","))
    plans = [client.predict(table, "table", api_name="/batch_plan"), client.predict(csv, "csv", api_name="/batch_plan")]
    assert plans[0]["plan"] == plans[1]["plan"] and "1 picture" in plans[0]["plan"]
    assert plans[0]["time"]

    # A batch gives its pictures; others, once begun, are as they were asked for.
    row = client.predict(known["job"]["id"], api_name="/job")
    assert row["done"] == 1 and len([name for name in row["files"] if name.endswith(".png")]) >= 4, row
    begun = [
        client.predict(csv, "csv", "one", api_name="/batch"),
        client.predict("cat", "", ["a"], "1", "7", api_name="/checkpoint_grid"),
    ]
    assert [(row["name"], row["kind"]) for row in begun] == [("one", "batch"), ("cat-steps", "batch")]
    for row in begun[::-1]:
        client.predict(row["id"], api_name="/stop_job")
    assert {ended(client, row["id"])["state"] for row in begun} <= {"stopped", "finished"}


def test_captions_and_pictures_go_and_come_back(client: Client, server: Server, tmp_path: Path) -> None:
    name = client.predict("my new/set", api_name="/make_dataset")
    assert name == "my-new-set" and name in client.predict(api_name="/datasets")
    files = []
    for colour in ("red", "blue"):
        Image.new("RGB", (80, 64), colour).save(tmp_path / f"{colour}.png")
        (tmp_path / f"{colour}.txt").write_text(f"{colour}, square")
        files += [handle_file(tmp_path / f"{colour}.png"), handle_file(tmp_path / f"{colour}.txt")]
    client.predict(files, name, api_name="/add_pictures")
    read = {row["picture"]: row["caption"] for row in client.predict(name, api_name="/captions")}
    assert read == {"red.png": "red, square", "blue.png": "blue, square"}
    assert not [path for path in (server.workspace / "cache" / "gradio").rglob("red.png") if "files" not in path.parts]

    client.predict(name, "replace", "square", "box", "", ["red.png"], api_name="/edit_captions")
    folder = server.workspace / "datasets" / name
    assert (folder / "red.txt").read_text().strip() == "red, box" and "square" in (folder / "blue.txt").read_text()
    client.predict(name, api_name="/undo_edit")
    assert "square" in (folder / "red.txt").read_text()
    assert [edit["is_undone"] for edit in client.predict(name, api_name="/edits")] == [True]

    client.predict(name, ["red.png"], api_name="/delete_pictures")
    assert not (folder / "red.png").exists()
    client.predict(name, client.predict(name, api_name="/deleted_pictures"), api_name="/restore_pictures")
    assert (folder / "red.png").is_file() and (folder / "red.txt").is_file()
    assert client.predict(name, "red.png", 0, 0, 40, 64, api_name="/crop_picture") == [40, 64]
    assert client.predict(name, ["blue.png"], api_name="/flip_pictures")["done"] == 1
    found = client.predict(name, 64, "mokka", api_name="/check_dataset")
    assert found["num_pictures"] == 2 and any(len(one["pictures"]) == 2 for one in found["findings"])
    packed = zipfile.ZipFile(BytesIO(fetched(server, client.predict(name, "kohya", api_name="/export_dataset"))))
    assert sorted(Path(entry).name for entry in packed.namelist()) == ["blue.png", "blue.txt", "red.png", "red.txt"]


@pytest.mark.slow
def test_a_stack_is_saved_read_balanced_and_baked(known: dict[str, Any], client: Client, server: Server) -> None:
    saved = client.predict(known["saved"], api_name="/stack")
    assert saved["adapters"][0]["weight"] == 0.8 and str(server.workspace) not in str(saved)
    assert client.predict(json.dumps(saved), api_name="/read_text") == {"stack": saved, "notes": []}
    assert client.predict(saved, api_name="/balance_stack")["weights"] == [0.8]
    small = {**saved, "width_px": 64, "height_px": 64}
    each = client.predict(small, api_name="/sheet_of_each")
    assert len(each["cells"]) == 2 and fetched(server, each["cells"][1]["address"])[:4] == b"\x89PNG"
    baked = client.predict(saved, "baked", api_name="/bake_stack")
    assert baked["name"] == "baked" and fetched(server, baked["address"])[8:9] == b"{"

    # The LoRA beside what was baked of it: the same change twice, so half the weights are as strong as one.
    two = {**small, "adapters": [{"file": "cat", "weight": 0.8}, {"file": "baked", "weight": 1.0}]}
    report = client.predict(two, api_name="/analyse_stack")
    assert report["pairs"][0]["cosine"] == pytest.approx(1, abs=1e-3) and report["sum"]["ratio"] == pytest.approx(
        2, 1e-2
    )
    assert client.predict(two, api_name="/balance_stack")["weights"] == pytest.approx([0.4, 0.5], rel=1e-2)
    assert len(client.predict(two, api_name="/sheet_of_modes")["cells"]) > 1

    # A picture of the page, handed over, is the stack that it was drawn with.
    name = known["picture"]["name"]
    read = client.predict(handle_file(server.workspace / "renders" / name), api_name="/read_picture")
    assert read["stack"]["prompt"] == "mokka, a smiling cat" and not read["notes"]
    assert (server.workspace / "renders" / name).is_file()


def test_a_text_is_read_as_its_picture_is(client: Client, tmp_path: Path) -> None:
    infotext = "a fox\nNegative prompt: blurry\nSteps: 5, Sampler: Euler, CFG scale: 3, Seed: 9, Size: 64x128, ENSD: 1"
    graphs = {"prompt": foreign_pictures.comfyui_prompt(), "workflow": foreign_pictures.comfyui_workflow()}
    for number, (text, picture) in enumerate([
        (infotext, foreign_pictures.a1111(tmp_path / "0.png", infotext)),
        (json.dumps(graphs["prompt"]), foreign_pictures.comfyui(tmp_path / "1.png", prompt=graphs["prompt"])),
        (json.dumps(graphs["workflow"]), foreign_pictures.comfyui(tmp_path / "2.png", workflow=graphs["workflow"])),
    ]):  # fmt: skip
        read = client.predict(text, api_name="/read_text")
        assert read == client.predict(handle_file(picture), api_name="/read_picture"), number
        assert (read["stack"]["seed"], bool(read["notes"])) == (9 if text == infotext else 77, True)
    stack = {"prompt": "a horse", "seed": 4, "steps": 3, "width_px": 64, "mode": "switch"}
    for text in (json.dumps(stack), tomli_w.dumps(stack)):
        read = client.predict(text, api_name="/read_text")
        assert read["notes"] == [] and stack.items() <= read["stack"].items()
        assert client.predict(json.dumps(read["stack"]), api_name="/read_text") == read
    for text, words in (("a fox", "no settings"), ('{"seed": -4}', "seed"), (f"{infotext}{'x' * 200_000}", "200,000")):
        with pytest.raises(AppError, match=words):
            client.predict(text, api_name="/read_text")


@pytest.mark.slow
def test_what_is_said_of_a_batch_stays(known: dict[str, Any], client: Client) -> None:
    job, pictures = known["job"]["id"], known["pictures"]
    client.predict(job, pictures[1]["picture"], 3, api_name="/rate_picture")
    counts = client.predict(job, pictures[2]["picture"], api_name="/reject_picture")["counts"]
    assert (counts["kept"], counts["rejected"]) == (1, 1)
    assert client.predict(job, api_name="/throw_rejected") == 1
    assert len(client.predict(job, api_name="/batch_pictures")["pictures"]) == 3
    assert client.predict(job, api_name="/restore_rejected") == 1
    shown = client.predict(job, "rejected", api_name="/batch_pictures")["pictures"]
    assert [row["picture"] for row in shown] == [pictures[2]["picture"]]


@pytest.mark.slow
def test_a_thing_of_the_library_is_named_noted_and_shown(known: dict[str, Any], client: Client) -> None:
    item = client.predict("runs", "cat", api_name="/library_item")
    assert (item["note"], item["rating"]) == ("good from step 200 on", 4) and item["details"]["Dataset"] == "grey-cat"
    assert client.predict("runs", "good 200", 4, api_name="/library")[0]["key"] == "cat"
    key = client.predict("datasets", "dots", "spots", api_name="/rename_item")
    assert key == "spots" and "spots" in client.predict(api_name="/datasets")
    client.predict("datasets", key, "dots", api_name="/rename_item")
    step = client.predict("cat", 2, api_name="/use_step")
    assert step["trigger"] == "mokka" and client.predict("run:cat", api_name="/preset")["max_steps"] == 2


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
        ("/job", ("x",), "job is 'x'"),
        ("/stop_job", (99,), "no job 99"),
        ("/add_pictures", (["/etc/passwd"], "dots"), "no file that was uploaded"),
        ("/drop_files", (["/etc/passwd"],), "no file that was uploaded"),
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


def test_the_page_documents_every_endpoint_as_it_is_asked(client: Client) -> None:
    named = set(client.view_api(return_format="dict", print_info=False)["named_endpoints"])
    every = offering.every(Context(Path("nowhere"), None))  # type: ignore[arg-type]
    assert named == {f"/{name}" for name in every} == set(re.findall(r"^### `(/\w+)", DOCUMENT, re.MULTILINE))
    for name, endpoint in every.items():
        given = [
            one.name if one.default is one.empty else f"{one.name}={one.default!r}".replace("'", '"')
            for one in inspect.signature(endpoint).parameters.values()
        ]
        assert f"### `/{name}({', '.join(given)})`" in DOCUMENT, f"docs/api.md says otherwise: {name}({given})"
        assert (endpoint.__doc__ or "").strip(), name


def test_a_browser_is_sent_what_is_drawn_and_none_of_the_endpoints(client: Client, server: Server) -> None:
    text = urllib.request.urlopen(server.address, timeout=60).read().decode()
    start = text.index("window.gradio_config = ") + len("window.gradio_config = ")
    page = json.JSONDecoder().raw_decode(text, start)[0]
    told = client.config
    for part in ("components", "dependencies"):
        assert {one["id"] for one in page[part]} < {one["id"] for one in told[part]}
    assert not [one for one in page["components"] if one["type"] == "api"]
    assert all(event["targets"] for event in page["dependencies"])
    drawn = {component["id"] for component in page["components"]}
    within = [page["layout"]]
    for part in within:
        within += part.get("children") or []
    assert {part["id"] for part in within[1:]} <= drawn
    for event in page["dependencies"]:
        assert drawn >= {*event["inputs"], *event["outputs"]}, event["api_name"]
