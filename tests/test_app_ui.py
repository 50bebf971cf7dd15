"""The server: who may ask what, what may be read, and that importing the page loads no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from app import (
    dataset_checks,
    dataset_gallery,
    library_items,
    preset_choices,
    recipes,
    recognising,
    request_guard,
    train_settings,
    ui,
)
from app.context import Context
from app.dataset_measures import Looks
from app.endpoints import offering
from app.tabs import dataset, registry, stack, train
from trainer.data import caption_files
from trainer.errors import AdapterError, ConfigError, DataError, RunError, UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return ui.open_workspace(tmp_path / "workspace")


@pytest.fixture
def served(context: Context) -> Iterator[SimpleNamespace]:
    """The page through `launch`, as `serve` opens it, on a free port."""
    page = ui.compose(context)
    address = ui.launch(
        page, server_name="127.0.0.1", app_kwargs={"middleware": list(request_guard.middleware("127.0.0.1"))}
    )
    yield SimpleNamespace(address=address, context=context)
    page.close()


def status(url: str, data: bytes | None = None, **headers: str) -> int:
    request = urllib.request.Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_importing_the_page_loads_no_torch() -> None:
    heavy = ("torch", "diffusers", "transformers", "peft")
    code = (
        f"import sys, app.ui; from app import tabs; tabs.registry(); print([name for name in {heavy} if name in "
        f"sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_tab_is_whole() -> None:
    modules = registry()
    assert [module.TITLE for module in modules] == ["Dataset", "Train", "Stack", "Batch", "Library"]
    assert len({module.ORDER for module in modules}) == len(modules)


def test_no_handler_of_the_page_is_public_beside_the_named_endpoints(tmp_path: Path) -> None:
    page = ui.build(tmp_path / "workspace")
    named = page.get_api_info().get("named_endpoints", {})
    offered = offering.every(ui.open_workspace(tmp_path / "other"))
    assert {name.removeprefix("/") for name in named} == set(offered), "callable by anyone"
    public = [event for event in page.fns.values() if event.api_visibility == "public"]
    assert len(public) == len(named) and not any(event.targets for event in public)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::"])
def test_open_to_others_only_with_a_login(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="auth"):
        ui.serve(tmp_path, host=host)


def test_one_server_a_workspace(context: Context) -> None:
    from filelock import FileLock

    with FileLock(str(context.workspace / ".server.lock")), pytest.raises(RunError, match="another Velatura"):
        ui.serve(context.workspace)


def test_cache_is_private(context: Context) -> None:
    assert (context.workspace / "cache").stat().st_mode & 0o077 == 0


def test_a_page_slow_to_answer_is_served_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio asks for the page once and gives it three seconds."""
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)
    with gr.Blocks() as page:
        gr.Markdown("here")
    address = ui.launch(page, server_name="127.0.0.1")
    assert status(f"{address}config") == 200
    page.close()


def test_foreign_hosts_and_origins_are_refused(served: SimpleNamespace) -> None:
    config, upload = f"{served.address}config", f"{served.address}gradio_api/upload"
    own = served.address.rstrip("/")
    assert status(config) == 200
    assert status(config, Host="evil.example") == 400
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://127.0.0.1.evil.example"):
        assert status(upload, b"x", Origin=origin) == 403, origin
    assert status(upload, b"x", Origin=own) != 403


def test_login_can_not_be_tried_without_end(served: SimpleNamespace) -> None:
    codes = [status(f"{served.address}login", b"username=a&password=b") for _ in range(14)]
    assert codes[-1] == 429 and codes[0] != 429


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "jobs.sqlite", "datasets/secret.txt", "../secret.txt", "runs/a/config.toml"]
)
def test_files_of_the_workspace_are_not_served(served: SimpleNamespace, path: str) -> None:
    target = Path(path) if path.startswith("/") else served.context.workspace / path
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("secret")
    assert status(f"{served.address}gradio_api/file={target}") in (403, 404)


def forge_uploads(served: SimpleNamespace, path: str) -> None:
    """Send what every upload's event would be sent, with this path; each must be refused."""
    with urllib.request.urlopen(f"{served.address}config", timeout=20) as answer:
        events = json.loads(answer.read())["dependencies"]
    uploads = [event for event in events if any(target[1] == "upload" for target in event["targets"])]
    assert uploads
    forged = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for dependency in uploads:
        data = [forged for _ in dependency["inputs"]]
        body = json.dumps({"data": data, "fn_index": dependency["id"], "session_hash": "s"}).encode()
        assert status(f"{served.address}gradio_api/run/predict", body, Content_Type="application/json") >= 400


def test_posted_server_paths_are_not_read(served: SimpleNamespace) -> None:
    """A forged upload that names a file of the server must not reach a handler (it does under mount_gradio_app)."""
    forge_uploads(served, "/etc/passwd")


@pytest.mark.parametrize("path", ["http://example.com/a.png", "https://example.com/a.png", "HTTP://example.com/a.png"])
def test_posted_addresses_are_not_fetched(served: SimpleNamespace, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    async def fetch(address: str, **_: Any) -> str:
        fetched.append(address)
        raise ValueError(address)

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", fetch)
    forge_uploads(served, path)
    assert not fetched


def test_sample_set_is_copied_with_its_heldout_part(context: Context) -> None:
    assert dataset.copy_sample(context, "outline-style") == "outline-style"
    assert dataset.copy_sample(context, "outline-style") == "outline-style-2"
    assert context.dataset_names() == [
        "outline-style",
        "outline-style-2",
        "outline-style-2-heldout",
        "outline-style-heldout",
    ]
    data, line = seen(context, "outline-style")
    assert len(data["items"]) == 44 and line == "44 of 44 pictures will train, all with captions."
    cache = f"gradio_api/file={context.cache.as_posix()}/"
    assert all(item["s"].startswith(cache) and item["s"].endswith(".webp") for item in data["items"])


@pytest.mark.parametrize("name", ["../runs", "/etc", "..", "nobody", "", None])
def test_datasets_are_chosen_from_what_is_here(context: Context, name: str | None) -> None:
    with pytest.raises(DataError):
        context.dataset(name)


@pytest.mark.parametrize("chosen", ["../../jobs.sqlite", "/etc/passwd", "cat.txt", ""])
def test_pictures_are_chosen_from_the_dataset(context: Context, chosen: str) -> None:
    dataset.copy_sample(context, "grey-cat")
    with pytest.raises(DataError):
        dataset.picture(context, "grey-cat", chosen)


def test_bad_picture_is_named_and_does_not_hide_the_others(context: Context) -> None:
    name = dataset.copy_sample(context, "grey-cat")
    (context.datasets / name / "bad.png").write_bytes(b"no")
    data, line = seen(context, name)
    assert len([item for item in data["items"] if item["s"]]) == 9 and line.startswith("9 of 10 pictures will train")
    assert "not a picture" in data["reasons"][-1]["text"] and data["reasons"][-1]["names"] == ["bad.png"]


def test_form_values_become_a_config_with_whole_paths(context: Context) -> None:
    from trainer import presets

    name = dataset.copy_sample(context, "outline-style")
    config = train_settings.config_of(
        context, presets.values(preset_choices.first()), name, f"{name}-heldout", " mokka "
    )
    assert (
        config.data.folder == str(context.datasets / name)
        and config.data.heldout.endswith("-heldout")
        and config.data.trigger == "mokka"
    )
    with pytest.raises(ConfigError, match="adapter.rank"):
        train_settings.config_of(
            context, presets.values(preset_choices.first()) | {"adapter": {"method": "lora", "rank": 0}}, name, "", ""
        )
    (context.datasets / "empty").mkdir()
    with pytest.raises(ConfigError, match="no pictures"):
        train_settings.config_of(context, presets.values(preset_choices.first()), "empty", "", "")


@pytest.mark.parametrize("text, weights", [("0, 0.5, 1", [0, 0.5, 1]), ("-1;1", [-1, 1]), (" 2 ", [2])])
def test_grid_weights_are_read(text: str, weights: list[float]) -> None:
    assert stack.weights_of(text) == weights


@pytest.mark.parametrize("text", ["", "a", "3", "0," * 13 + "0", "nan", "inf"])
def test_bad_grid_weights_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="weights"):
        stack.weights_of(text)


def test_unknown_lora_is_refused(context: Context) -> None:
    with pytest.raises(AdapterError):
        stack.stack_of(context, {}, [("0" * 64, 1.0, True, {})])
    with pytest.raises(ConfigError, match="no file of the server's"):
        stack.stack_of(context, {}, [("0" * 64, 1.0, True, {"region": "mask /etc/passwd"})])
    assert stack.stack_of(context, {"prompt": "x"}, [("0" * 64, 1.0, False, {}), (None, 1.0, True, {})]).adapters == ()


def test_what_is_no_lora_is_not_taken_in(context: Context, tmp_path: Path) -> None:
    fake = tmp_path / "evil.safetensors"
    fake.write_bytes(b"\x80\x04cos\nsystem\n" * 9)
    with pytest.raises(UserError):
        recognising.add_lora(context, fake)
    assert not list(context.loras.iterdir())


def seen(context: Context, name: str) -> tuple[dict[str, Any], str]:
    """What the Dataset tab sends of a set, once every picture was looked at, and its first line."""
    looks = Looks(context)
    scene = dataset_gallery.read(context, looks, name, 60)
    return dataset_gallery.data(context, looks, name, scene, 128, ""), dataset_gallery.headline(scene)


def test_caption_edit_is_seen(context: Context) -> None:
    name = dataset.copy_sample(context, "grey-cat")
    first = seen(context, name)[0]["items"][0]["n"]
    caption_files.write_caption(dataset.picture(context, name, first), "mokka, a new word")
    assert seen(context, name)[0]["items"][0]["c"] == "mokka, a new word"


def test_single_ipv6_address_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="IPv6"):
        ui.serve(tmp_path, host="::1", auth=("me", "long enough"))


def test_library_survives_fields_of_any_type() -> None:
    info: Any = SimpleNamespace(
        name="a",
        method="lora",
        rank=4,
        alpha="x",
        num_modules=1,
        size_bytes=1,
        trigger=["a", 1],
        base={"b": 2},
        sha256="0" * 64,
        path=Path("a"),
    )
    info.metadata, info.recipe, info.family = {"ss_steps": "7"}, {"config": {"max_steps": []}}, "sdxl"
    assert "7 steps" in library_items.lora_line(info)


@pytest.mark.parametrize("error", [TypeError, KeyError, OSError])
def test_recipe_that_does_not_read_is_a_toast(
    context: Context, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def load(*_: object) -> None:
        raise error("odd")

    monkeypatch.setattr("trainer.presets.load", load)
    with pytest.raises(ConfigError, match="x.toml can't be read"):
        train.recipe_of(context, "/tmp/x.toml")


@pytest.mark.parametrize("base", ["/etc", "../secret", "someone/model"])
def test_base_is_chosen_from_what_the_server_offers(context: Context, tmp_path: Path, base: str) -> None:
    from trainer import presets

    name = dataset.copy_sample(context, "outline-style")
    values = presets.values(preset_choices.first()) | {"base": base}
    with pytest.raises(ConfigError, match="allowed: imprimatura"):
        train_settings.config_of(context, values, name, "", "")
    with pytest.raises(ConfigError, match="allowed: imprimatura"):
        stack.stack_of(context, {"base": base}, [])
    recipe = tmp_path / "config.toml"
    presets.save(presets.load(preset_choices.first(), {"base": base}), recipe)
    with pytest.raises(ConfigError, match="allowed: imprimatura"):
        train.recipe_of(context, str(recipe))


def test_base_of_a_picture_is_found_by_its_folder_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    from PIL import Image, PngImagePlugin

    from trainer.config import StackConfig
    from trainer.render.picture_metadata import RECIPE_KEY

    (tmp_path / "mine").mkdir()
    offering = ui.open_workspace(tmp_path / "workspace", [str(tmp_path / "mine"), "owner/model"])
    assert [label for label, _ in offering.base_choices()] == ["imprimatura", "mine", "owner/model"]
    for base, base_found in (("mine", str(tmp_path / "mine")), ("owner/model", "owner/model"), ("/etc", None)):
        info = PngImagePlugin.PngInfo()
        info.add_text(RECIPE_KEY, StackConfig.model_validate({"base": base}).model_dump_json())
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
        if base_found is None:
            with pytest.raises(ConfigError, match="allowed: imprimatura, mine, owner/model"):
                recipes.read_recipe(offering, tmp_path / "a.png")
        else:
            assert recipes.read_recipe(offering, tmp_path / "a.png").base == base_found
    with pytest.raises(ConfigError, match="no folder"):
        ui.open_workspace(tmp_path / "workspace", ["/nowhere/model"])


def test_check_says_what_to_mend_without_naming_the_server(context: Context) -> None:
    name = dataset.copy_sample(context, "grey-cat")
    (context.datasets / name / "bad.png").write_bytes(b"no")
    message = dataset_checks.as_html(dataset_checks.check(context, name, 128, "mokka"))
    assert "bad.png" in message and str(context.workspace) not in message
    with pytest.raises(ConfigError, match="resolution is 100"):
        dataset_checks.check(context, name, 100, "")
    with pytest.raises(DataError):
        dataset_checks.check(context, "../runs", 128, "")


def test_masks_are_counted_and_laid_over_their_picture(context: Context) -> None:
    from PIL import Image

    name = dataset.copy_sample(context, "grey-cat")
    first = context.pictures(context.datasets / name)[0]
    Image.new("L", (64, 64), 0).save(first.with_name(f"{first.stem}.mask.png"))
    data, line = seen(context, name)
    assert line == "9 of 9 pictures will train, all with captions, 1 with a mask." and len(data["items"]) == 9
    assert context.mask(first) is not None and context.mask(context.pictures(context.datasets / name)[1]) is None
    with (
        Image.open(context.masked_thumbnail(first, first.with_name(f"{first.stem}.mask.png"))) as tinted,
        Image.open(context.thumbnail(first)) as plain,
    ):
        assert tinted.size == plain.size and tinted.convert("RGB").tobytes() != plain.convert("RGB").tobytes()


def test_advanced_settings_are_grouped_and_none_is_lost() -> None:
    from app.form import Form
    from trainer import presets
    from trainer.config import TrainConfig

    form = Form(TrainConfig, presets.load(preset_choices.first(), {}), frozenset({"version"}), {})
    groups = train.grouped(form, form.undrawn(advanced=True))
    assert (
        list(groups)[0] == "Captions" and list(groups)[-1] == "Run" and "validate_every_steps" in groups["Validation"]
    )
    assert sorted(key for keys in groups.values() for key in keys) == sorted(form.undrawn(advanced=True))


def test_best_step_of_a_run_goes_by_the_name_of_its_run(context: Context, trained: Path, trained_style: Path) -> None:
    import shutil

    for run, best, last in (("cat", trained, trained), ("style", trained, trained_style)):
        (context.runs / run).mkdir()
        shutil.copy(best, context.runs / run / "best.safetensors")
        shutil.copy(last, context.runs / run / f"{run}.safetensors")
    assert sorted(info.name for info in context.find_loras().values()) == ["cat", "style"], (
        "the same tensors are one LoRA, by the run's own name"
    )
    (context.runs / "cat" / "cat.safetensors").unlink()
    names = {info.name for info in context.find_loras().values()}
    assert "style" in names and names & {"cat-best", "style-best"}
    assert context.published(context.runs / "style" / "best.safetensors").name == "style-best.safetensors"
