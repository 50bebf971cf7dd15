"""The real server and its children killed with SIGKILL, in several orders: every job ends finished, each once, and no
two processes work at once.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import tomli_w

from app import ui
from app.job_table import Job
from tests import plain, warm
from tests.test_kills import TRAINING, ends, same_run, tree
from trainer import presets, runs, session

ROOT = Path(__file__).parents[1]
BATCH = {"prompts": ["a fox", "an owl"], "seeds": ["1-12"], "width_px": 32, "height_px": 32, "steps": 4}
# What is killed and in which order, a child being the job's that is at work: "spawn" is the server as soon as the child
# is there, before or after it has been written down.
ORDERS = [
    ("child",),
    ("server",),
    ("spawn",),
    ("server", "child"),
    ("child", "server"),
    ("spawn", "child"),
    ("server", "restart", "server"),
    ("child", "child"),
]


class House:
    """A workspace with its server, and a watch on its children, which are never more than one."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.context = ui.open_workspace(workspace)
        self.server: subprocess.Popen[bytes] | None = None
        self.most, self.unwritten, self.pids, self._done = 0, 0, set[int](), threading.Event()
        self._watch = threading.Thread(target=self._count)
        self._watch.start()

    def open(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with (self.workspace.parent / "server.log").open("ab") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "app", "--workspace", str(self.workspace), "--port", str(port)],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def kill_server(self) -> None:
        if self.server is not None:
            self.server.kill()
            self.server.wait(20)
        self.server = None

    def children(self) -> list[int]:
        """Living trainings and batches of this workspace."""
        processes, places = [], {str(self.workspace / "runs"), str(self.workspace / "batches")}
        for process in psutil.process_iter(["cmdline", "status"]):
            line = process.info["cmdline"] or []
            if line[1:3] == ["-m", "trainer"] and process.info["status"] != psutil.STATUS_ZOMBIE:
                processes += (
                    [process.pid] if any(part in places or str(Path(part).parent) in places for part in line) else []
                )
        return processes

    def kill_child(self) -> None:
        for pid in self.children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _count(self) -> None:
        while not self._done.wait(0.3):
            now = self.children()
            self.most = max(self.most, len(now))
            self.pids |= set(now)

    def job(self, job: Job) -> Job:
        return self.context.runner.get(job.id)

    def wait_for_child(self, other_than: set[int]) -> None:
        """Until there is a child that wasn't; looks at the server's own, which is quick."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            mine = psutil.Process(self.server.pid).children() if self.server else []
            if {process.pid for process in mine} - other_than:
                return
        raise AssertionError(self.log())

    def log(self) -> str:
        return (self.workspace.parent / "server.log").read_text()[-4000:]

    def close(self) -> None:
        self._done.set()
        self._watch.join()
        self.kill_server()
        self.kill_child()


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    made = House(tmp_path / "workspace")
    yield made
    made.close()


def kill(house: House, order: tuple[str, ...], job: Job, draw: random.Random) -> None:
    """Kill in that order, each at a random moment, and leave a server at work."""
    for what in order:
        if house.server is None and what in ("spawn", "restart"):
            house.open()
        if what == "spawn":
            house.wait_for_child(set(house.children()))
            house.kill_server()
            house.unwritten += house.job(job).pid is None
        elif what != "restart":
            deadline = time.monotonic() + 120
            while what == "child" and not house.children() and house.server and house.job(job).state != "finished":
                assert time.monotonic() < deadline, house.log()
                time.sleep(0.05)
            time.sleep(draw.uniform(0, 6))
            house.kill_server() if what == "server" else house.kill_child()
    if house.server is None:
        time.sleep(draw.choice([0, draw.uniform(0, 4)]))
        house.open()


def until_finished(house: House, job: Job) -> None:
    deadline = time.monotonic() + 500
    while (now := house.job(job)).state != "finished":
        assert now.state in ("queued", "running", "interrupted") and time.monotonic() < deadline, (now, house.log())
        time.sleep(0.1)


def pictures_of(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in tree(out) if name.endswith(".png")}


def kill_server_and_child(
    house: House, tmp_path: Path, tiny: Path, pictures: Path, kills: list[tuple[str, tuple[str, ...]]], seed: int
) -> None:
    draw, config = random.Random(seed), tmp_path / "settings.toml"
    loaded = presets.load(
        plain.CHARACTER, TRAINING | {"base": str(tiny), "data.folder": str(pictures), "max_steps": 20}
    )
    presets.save(session.absolute(loaded), config)
    (tmp_path / "batch.toml").write_text(tomli_w.dumps(BATCH | {"base": str(tiny)}))
    ends(["train", str(config), "--name", "whole", "--out", str(tmp_path / "whole"), "--json"], tmp_path)
    assert (
        warm.run(["batch", str(tmp_path / "batch.toml"), "--out", str(tmp_path / "drawn")], tmp_path, 280).returncode
        == 0
    )
    jobs: list[Job] = []
    texts = {"train": config.read_text(), "batch-toml": (tmp_path / "batch.toml").read_text()}
    for kind, order in kills:
        if order[0] == "spawn":
            house.kill_server()
        elif house.server is None:
            house.open()
        job = house.context.runner.submit("job", texts[kind], kind)
        jobs.append(job)
        kill(house, order, job, draw)
        until_finished(house, job)
        print(
            f"\n{kind}, {order}: {len(house.pids)} children so far, at most {house.most} at once; {house.unwritten} "
            f"not written down when the server died"
        )

    assert house.most == 1
    assert [(job.name, job.state) for job in reversed(house.context.runner.every())] == [
        (job.name, "finished") for job in jobs
    ]
    whole = runs.Run(tmp_path / "whole" / "whole")
    trained = [job.name for job in jobs if job.kind == "train"]
    assert sorted(path.name for path in (house.workspace / "runs").iterdir()) == [".cache", *sorted(trained)]
    for name in trained:
        same_run(runs.Run(house.workspace / "runs" / name), whole)
    for job in jobs:
        if job.kind != "train":
            assert pictures_of(house.workspace / "batches" / job.name) == pictures_of(tmp_path / "drawn")
            assert tree(house.workspace / "batches" / job.name) == tree(tmp_path / "drawn")
    assert "Traceback" not in house.log()
    assert not [log for log in (house.workspace / "logs").glob("*.log") if "Traceback" in log.read_text()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_dots: Callable[..., Path]) -> Path:
    return draw_dots(tmp_path_factory.mktemp("pictures"), "mokka dot, {colour}, round, flat", num=5, wider_px=30)


@pytest.mark.timeout(600)
def test_server_and_child_killed_and_each_job_is_done_once(
    house: House, tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    kill_server_and_child(house, tmp_path, tiny, pictures, [("train", ("spawn", "child"))], seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_server_and_child_killed_in_every_order_and_each_job_is_done_once(
    house: House, tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    kill_server_and_child(
        house, tmp_path, tiny, pictures, [(kind, order) for order in ORDERS for kind in ("train", "batch-toml")], seed=1
    )
