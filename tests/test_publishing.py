"""`velatura publish`: what the folder holds, that nothing of this machine or of the dataset is in it, and that nothing
is sent unless it is asked for, then exactly what was shown.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests import small_runs
from trainer import card_file, events, presets, runs
from trainer.errors import ConfigError, RunError
from trainer.events import Recommended, Sampled
from trainer.publishing import civitai, facts, folder, hub, licences

HOSTILE = "<script>alert(1)</script> ```\n# x | `y` [z](javascript:1) ---"


@pytest.fixture(scope="module")
def trained(tiny: Path, draw_dots: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """A finished run on a dataset whose folder and files have names to be looked for."""
    parent = tmp_path_factory.mktemp("annas-desk")
    pictures = draw_dots(parent / "secret-customer", "mokka, a {colour} dot")
    for path in list(pictures.iterdir()):
        path.rename(path.with_name(f"marias-{path.name}"))
    config = small_runs.config(
        tiny, pictures, **{"data.trigger": "mokka", "validation.leave_out": 1, "validate_every_steps": 3}
    )
    return small_runs.run_to_the_end(parent / "runs", config)


def published(run: runs.Run, out: Path, **wishes: str) -> folder.Published:
    return folder.write(facts.gather(run, facts.Wishes(**wishes)), out, "ann/dots")


def test_the_folder_has_the_file_a_card_samples_and_the_forms_fields(trained: runs.Run, tmp_path: Path) -> None:
    made = published(trained, tmp_path, author="Ann", note="Dots.")
    assert set(made.files) >= {"README.md", "civitai.txt", "image-1.png"}
    lora = made.path / f"{made.facts.file_name}.safetensors"
    assert lora.read_bytes() == made.facts.lora.path.read_bytes()
    card = (made.path / "README.md").read_text()
    assert "by Ann." in card and "Dots." in card and "Trigger words: `mokka`" in card
    assert "pictures it never saw" in card and f"| steps | {made.facts.step} |" in card
    with Image.open(made.path / "image-1.png") as image:
        assert image.size == (32, 32) and not image.info
    form = (made.path / "civitai.txt").read_text()
    assert "  Trigger words: mokka\n" in form and "  Type: LORA\n" in form and "image-1.png: a dot" in form


def test_the_folder_has_the_runs_card_by_which_others_train_alike(trained: runs.Run, tmp_path: Path) -> None:
    made = published(trained, tmp_path, author="Ann", note="Dots.")
    opened = card_file.read(made.path / f"{made.facts.file_name}.velatura")
    assert (opened.card.author, opened.card.note) == ("Ann", "Dots.") and opened.card.evidence is not None
    assert opened.card.source_url == "https://huggingface.co/ann/dots" and len(opened.pictures) >= 1
    assert opened.card.loras[0].sha256 == made.facts.lora.sha256
    assert opened.train.learning_rate == trained.config().learning_rate
    for hostile in (HOSTILE, "x" * 5000, "a\nb\0c"):
        made = published(trained, tmp_path, title=hostile, author=hostile, note=hostile)
        assert card_file.read(made.path / f"{made.facts.file_name}.velatura").card.title


def test_the_hub_reads_the_head_of_the_card(trained: runs.Run, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(published(trained, tmp_path).path / "README.md")
    assert card.data.license == "other" and card.data.pipeline_tag == "text-to-image" and "lora" in card.data.tags
    assert card.data.widget == [{"text": "a dot", "output": {"url": "image-1.png"}}]
    assert card.data.instance_prompt == "mokka" and card.data.base_model is None  # a folder is no hub id


def test_no_place_and_nothing_of_the_dataset_but_what_is_said_is_in_any_file(trained: runs.Run, tmp_path: Path) -> None:
    made = published(trained, tmp_path)
    names = [path.name for path in (trained.folder.parents[1] / "secret-customer").iterdir()]
    raw = {name: (made.path / name).read_bytes() for name in made.files}
    for word in (str(trained.folder.parent), "annas-desk", str(Path.home()), *names):
        assert not [name for name, content in raw.items() if word.encode() in content], word
    # The LoRA's own header tells the folder's name, and that is said.
    holds = [name for name, content in raw.items() if b"secret-customer" in content]
    assert holds == [f"{made.facts.file_name}.safetensors"] and any("secret-customer" in line for line in made.tells)


def test_the_runs_name_which_may_be_the_datasets_is_in_no_file_and_no_files_name(
    trained: runs.Run, tmp_path: Path
) -> None:
    run = runs.Run(shutil.copytree(trained.folder, tmp_path / "anna-kowalski"))
    run.folder.joinpath(f"{trained.name}.safetensors").rename(run.lora_file)
    made = published(run, tmp_path / "out")
    for name in made.files:
        assert "anna" not in name and b"anna-kowalski" not in (made.path / name).read_bytes(), name
    title = f"mokka on {facts.family_title(made.facts)}"
    assert made.facts.title == title and any(title in line for line in made.tells)
    assert f"# {title}" in (made.path / "README.md").read_text()
    assert f"  Name: {title}\n" in (made.path / "civitai.txt").read_text()
    assert card_file.read(made.path / f"{made.facts.file_name}.velatura").card.title == title


def test_texts_from_outside_stay_texts(trained: runs.Run, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    made = published(trained, tmp_path, title=HOSTILE, author=HOSTILE, note=HOSTILE)
    card = (made.path / "README.md").read_text()
    assert "<script>" not in card and "[z](javascript" not in card and "\n# x" not in card
    assert ModelCard(card).data.license == "other"
    assert len((made.path / "civitai.txt").read_text().splitlines()) == len(
        (published(trained, tmp_path).path / "civitai.txt").read_text().splitlines()
    )


def test_a_log_that_names_files_elsewhere_brings_none_of_them(trained: runs.Run, tmp_path: Path) -> None:
    copy = runs.Run(tmp_path / "copy")
    shutil.copytree(trained.folder, copy.folder)
    copy = runs.Run(copy.folder.rename(tmp_path / trained.name))
    outside = tmp_path / "private.png"
    Image.new("RGB", (8, 8)).save(outside)
    with copy.events_file.open("a") as log:
        for file in (str(outside), "../private.png", "samples/\0", "x" * 5000, ""):
            log.write(events.to_line(Sampled(9, file[:20], file)))
        log.write(events.to_line(Recommended(9, "../private.png", "it is best")))
    found = facts.gather(copy, facts.Wishes())
    assert found.lora.path == copy.lora_file and {sample.path.parent for sample in found.samples} == {
        (copy.folder / "samples").resolve()
    }


def test_a_preview_that_is_like_a_training_picture_stays_at_home(trained: runs.Run, tmp_path: Path) -> None:
    copy = runs.Run(shutil.copytree(trained.folder, tmp_path / trained.name))
    shown = facts.gather(copy, facts.Wishes()).samples
    with copy.events_file.open("a") as log:
        log.write(events.to_line(Sampled(shown[0].step, "stolen", f"samples/{shown[0].path.name}", nearest=0.99)))
        log.write(events.to_line(Sampled(shown[0].step, "own", f"samples/{shown[0].path.name}", nearest=0.5)))
    prompts = [sample.prompt for sample in facts.gather(copy, facts.Wishes()).samples]
    assert "own" in prompts and "stolen" not in prompts


def test_a_second_one_takes_the_next_name_and_a_failed_one_leaves_nothing(
    trained: runs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [published(trained, tmp_path).path.name for _ in range(2)] == ["x", "x-2"]
    monkeypatch.setattr(civitai, "text", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        published(trained, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x-2"]


def test_a_run_without_a_file_is_refused(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "a", presets.load("imprimatura-style", {}))
    with pytest.raises(RunError, match="has no LoRA file yet"):
        facts.gather(run, facts.Wishes())


@pytest.mark.parametrize(
    ("base", "wanted", "id_"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", "", "openrail++"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "cc-by-4.0", "cc-by-4.0"),
        ("someone/unheard-of", "", "other"),
    ],
)
def test_a_licence_is_the_bases_or_the_one_that_was_asked_for(base: str, wanted: str, id_: str) -> None:
    assert licences.of(base, wanted).id == id_


@pytest.mark.parametrize("wanted", ["MIT License", "x" * 100, "a\nb", "<b>"])
def test_a_licence_that_is_no_name_is_refused(wanted: str) -> None:
    with pytest.raises(ConfigError, match="allowed: a short name"):
        licences.of("x", wanted)


@pytest.mark.parametrize(
    ("family", "base", "title"),
    [
        ("sdxl", "stabilityai/stable-diffusion-xl-base-1.0", "SDXL 1.0"),
        ("sdxl", "OnomaAI/Illustrious-XL", "Illustrious"),
        ("sdxl", "ponyDiffusionV6XL", "Pony"), ("auraflow", "purplesmartai/pony-v7-base", "Pony V7"),
        ("flux", "black-forest-labs/FLUX.1-dev", "Flux.1 D"), ("flux", "black-forest-labs/FLUX.1-schnell", "Flux.1 S"),
        ("flux2", "black-forest-labs/FLUX.2-klein-base-4B", "Flux.2 Klein 4B-base"),
        ("sd3", "stabilityai/stable-diffusion-3.5-medium", "SD 3.5 Medium"),
        ("sd", "stable-diffusion-v1-5/stable-diffusion-v1-5", "SD 1.5"), ("sd", "imprimatura", "Other"),
    ],
)  # fmt: skip
def test_a_base_has_the_name_that_the_form_knows(family: str, base: str, title: str) -> None:
    assert civitai.base_model(SimpleNamespace(base=base, config=SimpleNamespace(family=family))) == title  # type: ignore[arg-type]


# The hub.


class Hub(BaseHTTPRequestHandler):
    """The parts of the hub's API that an upload uses, as huggingface_hub 2.4 calls them; what came is kept."""

    seen: list[tuple[str, str]]
    received: dict[str, bytes]
    settings: dict[str, Any]
    address: str

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        type(self).seen.append((self.path, self.headers.get("Authorization", "")))
        if self.path.endswith("/repos/create"):
            type(self).settings.update(json.loads(raw))
            self._answer({"url": f"{self.address}/ann/dots"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(raw)["files"]]
            self._answer({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif "/commit/" in self.path:
            for line in raw.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    type(self).received[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self._answer({"commitUrl": f"{self.address}/ann/dots/commit/1", "commitOid": "1", "pullRequestUrl": None})
        else:
            self._answer({})

    def do_GET(self) -> None:
        type(self).seen.append((self.path, self.headers.get("Authorization", "")))
        self._answer({"sha": "0", "siblings": [], "id": "ann/dots"})

    def _answer(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def own_hub() -> Iterator[type[Hub]]:
    kept = type("Kept", (Hub,), {"seen": [], "received": {}, "settings": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kept)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kept.address = f"http://127.0.0.1:{server.server_port}"
    yield kept
    server.shutdown()


def command(own_hub: Any, *arguments: object, answer: str = "", token: str = "hf_test", **more: str) -> Any:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": own_hub.address, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", **more,
    }  # fmt: skip
    line = [sys.executable, "-m", "trainer", "publish", *map(str, arguments)]
    return subprocess.run(line, env=environment, input=answer, capture_output=True, text=True, timeout=120)


def test_nothing_is_sent_unless_it_is_asked_for_and_confirmed(trained: runs.Run, own_hub: Any, tmp_path: Path) -> None:
    dry = command(own_hub, trained.folder, "--out", tmp_path, "--repo", "ann/dots")
    refused = command(
        own_hub, trained.folder, "--out", tmp_path, "--repo", "ann/dots", "--title", "Dots", "--push", answer="n\n"
    )
    assert dry.returncode == refused.returncode == 0 and own_hub.seen == []
    for result in (dry, refused):
        assert "Nothing was sent." in result.stdout and "README.md" in result.stdout, result
    assert "only you can see it" in refused.stdout


def test_what_is_sent_is_what_the_folder_holds(trained: runs.Run, own_hub: Any, tmp_path: Path) -> None:
    result = command(
        own_hub, trained.folder, "--out", tmp_path, "--repo", "ann/dots", "--title", "Dots", "--push", answer="y\n"
    )
    assert result.returncode == 0, result
    assert own_hub.settings.get("private") is True or own_hub.settings.get("visibility") == "private"
    sent = {name: content for name, content in own_hub.received.items() if name != ".gitattributes"}
    assert sent == {name.name: name.read_bytes() for name in (tmp_path / "x").iterdir()}
    assert {authorization for _, authorization in own_hub.seen} == {"Bearer hf_test"}


def test_without_a_login_or_a_name_it_says_so_and_sends_nothing(
    trained: runs.Run, own_hub: Any, tmp_path: Path
) -> None:
    named, push = ("--repo", "a/b", "--title", "Dots"), (trained.folder, "--out", tmp_path, "--push", "--yes")
    no_login = command(own_hub, *push, *named, token="", HF_HOME=str(tmp_path / "hf"))
    assert no_login.returncode == 2 and "hf auth login" in no_login.stderr, no_login
    no_repo = command(own_hub, *push[:-1])
    assert no_repo.returncode == 2 and "--repo OWNER/NAME" in no_repo.stderr
    no_title = command(own_hub, *push, *named[:2])
    assert no_title.returncode == 2 and "--push needs --title" in no_title.stderr
    offline = command(own_hub, *push, *named, HF_HUB_OFFLINE="1")
    assert offline.returncode == 2 and "HF_HUB_OFFLINE" in offline.stderr, offline
    assert own_hub.seen == []


@pytest.mark.parametrize(
    "repo", ["", "a", "a/b/c", "../x/y", "a/..", "http://x/y", "a b/c", "a/b?x", "é/b", "a/" + "b" * 100]
)
def test_a_repository_that_can_not_be_one_is_refused(repo: str) -> None:
    with pytest.raises(ConfigError, match="allowed: owner/name"):
        hub.check_repo(repo)


def test_a_hub_that_is_not_there_is_said(trained: runs.Run, tmp_path: Path) -> None:
    gone = SimpleNamespace(address="http://127.0.0.1:9")
    result = command(gone, trained.folder, "--out", tmp_path, "--repo", "a/b", "--title", "Dots", "--push", "--yes")
    assert result.returncode == 2 and "could not be reached" in result.stderr, result
    assert (tmp_path / "x" / "README.md").is_file()
