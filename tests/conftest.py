"""What every test stands on: no network, no telemetry, a folder of its own to work in."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import browsing, plain, slow, warm
from tests.page_fixtures import browser, chromium, open_page  # noqa: F401  # fixtures

if TYPE_CHECKING:
    from trainer.render.engine import Engine

# Before any library is imported. Tests that start a second torch process would otherwise wait for each other's spinning
# threads.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
if "PYTEST_XDIST_WORKER" in os.environ:  # test files side by side, a core each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# The suite is the same with a GPU as without: it computes on the CPU, and what a GPU does is tested by `make test-gpu`.
# Workers side by side don't see the command line.
if "gpu" in sys.argv:
    os.environ["VELATURA_TESTS_ON_GPU"] = "1"
if "VELATURA_TESTS_ON_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["VELATURA_HOME"] = os.path.join(
    tempfile.gettempdir(), f"velatura-tests-{os.getpid()}"
)  # no registry but those that tests make

ROOT = Path(__file__).parents[1]
# The files that take longest begin first, so that no worker is left alone with one at the end.
LONGEST = [
    f"test_{name}.py"
    for name in (
        "resume",
        "browser",
        "world",
        "run_evaluation",
        "batch",
        "families",
        "families_training",
        "cli",
        "stacking",
        "analysis",
        "training",
        "memory",
        "memory_ladder",
        "analysis_runs",
        "families_flux",
    )
]
READ_AT_WORK = {"NO_COLOR", "COLUMNS", "TERM", "VELATURA_HOME"}  # variables that no import reads
COMMAND_TIMEOUT_S = 280  # below pytest's own, so that a hanging command is reported with what it said


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than there are cores: the tests of the page wait more than they compute."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(tryfirst=True)  # before those that are slow are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    long = slow.listed()
    for item in items:
        if item.nodeid in long:
            item.add_marker("slow")
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def watched_pages() -> Iterator[None]:
    """Every page that a test opens is watched: `tests/browsing.py`."""
    if "playwright.sync_api" not in sys.modules:  # a file of browser tests imports it
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        browsing.watch_pages(patch)
        yield


@pytest.fixture(autouse=True)
def no_problem_in_a_page(watched_pages: None) -> Iterator[None]:
    browsing.taken()
    yield
    assert not (problems := browsing.taken()), "\n".join(problems)


@pytest.fixture(scope="session")
def examples() -> Path:
    """The sample sets that ship."""
    return ROOT / "app" / "examples"


@pytest.fixture(scope="session")
def imprimatura_folder() -> Path:
    """The base that ships."""
    return ROOT / "trainer" / "imprimatura"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SD family's own test double: KL autoencoder, epsilon, random weights."""
    from trainer.families import registry

    return registry()["sd"].tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The base that ships, on the CPU, kept for the tests of one file."""
    from trainer.render.engine import Engine

    return Engine("imprimatura", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def draw_dots() -> Callable[..., Path]:
    """`draw_dots(folder, "a {colour} dot", num=4, wider_px=0)`: small pictures with a caption each, every second one
    that much wider.
    """
    from PIL import Image, ImageDraw

    def draw(folder: Path, caption: str, num: int = 4, wider_px: int = 0) -> Path:
        folder.mkdir(exist_ok=True)
        for number, colour in enumerate(("red", "green", "blue", "black", "orange", "brown")[:num]):
            image = Image.new("RGB", (40 + wider_px * (number % 2), 40), "white")
            ImageDraw.Draw(image).ellipse((5, 5, 30, 20 + 3 * number), fill=colour)
            image.save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text(caption.format(colour=colour))
        return folder

    return draw


@pytest.fixture
def run_velatura(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_velatura("train", "--help", SOME_VARIABLE="1")`: the command in a process of its own, in the test's folder.

    Keywords are environment variables; with others than `READ_AT_WORK` the process starts cold (`tests/warm.py`). The
    status is the caller's to check.
    """

    def run(*args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        if env.keys() <= READ_AT_WORK:
            return warm.run([*map(str, args)], tmp_path, COMMAND_TIMEOUT_S, env)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        return subprocess.run(
            [sys.executable, "-m", "trainer", *map(str, args)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, **env},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=COMMAND_TIMEOUT_S,
        )

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    """A small LoRA really trained on Imprimatura: six steps on the grey cat, attention, rank 4, alpha 2."""
    return train_small(tmp_path_factory.mktemp("trained"), examples / "grey-cat" / "train", "cat")


@pytest.fixture(scope="session")
def trained_style(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    """Another one, of other layers and another rank."""
    return train_small(
        tmp_path_factory.mktemp("style"),
        examples / "outline-style" / "heldout",
        "style",
        ["adapter.rank=3", "adapter.targets=all", "seed=5"],
    )


def train_small(parent: Path, folder: Path, name: str, settings: list[str] | None = None) -> Path:
    """The LoRA file of a run of six steps of two pictures."""
    from trainer import session

    small = [
        "max_steps=6",
        "batch_size=2",
        "adapter.rank=4",
        "adapter.alpha=2",
        "preview_every_steps=0",
        "learning_rate=5e-3",
    ]
    config = session.preset_config(plain.CHARACTER, str(folder), None, small + (settings or []))
    run, stream = session.start(config, parent, name, None)
    assert list(stream)[-1].kind == "finished"
    return run.lora_file
