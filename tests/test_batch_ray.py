"""A batch on Ray's own workers has the pictures of one without, each once, whatever is killed."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from tests.batches import LAYER, files, jobs, lora, manifest
from trainer import lora_file

# On a busy machine a worker takes minutes to import torch: Ray gives it the least of the processor (niceness 15).
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray isn't installed: extra `ray`"),
    pytest.mark.timeout(1800),
]
ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("VELATURA_RAY_KILLS", "3"))  # 50 takes half an hour on two cores


def run(folder: Path, *more: str, **env: str) -> subprocess.CompletedProcess[str]:
    with started(folder, *more, **env) as process:
        output, wrong = process.communicate(timeout=580)
    return subprocess.CompletedProcess(more, process.returncode, output, wrong)


def started(folder: Path, *more: str, **env: str) -> subprocess.Popen[str]:
    """`velatura batch x.csv` from a cold start: Ray reads its environment as it is imported."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", "batch", "x.csv", "--size", "32x32", "--json", *more],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "VELATURA_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def cluster(mode: str, token: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of two nodes of a processor each, and the process that has them: a line to it ends the second."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    env |= {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.ray_nodes"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdin and process.stdout
            yield process.stdout.readline().strip(), process
        finally:
            process.stdin.close()
            process.wait(60)


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The live workers of a command."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "RayWorker" in "".join(child.cmdline())]
    except psutil.Error:
        return []


def pixels(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as picture:
        return picture.tobytes()


def named(process: psutil.Process) -> str:
    """A process's name; one that has ended counts as an agent, which none waits for."""
    try:
        return process.name()
    except psutil.Error:
        return "Agent"


def until_drawn(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    for line in process.stdout:
        if '"rendered"' in line:
            return


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Rows of some sizes of step with and without LoRAs, one of which has NaN and one of which is cut off."""
    first, second = lora(tmp_path / "one.safetensors", 0.3), lora(tmp_path / "two.safetensors", -0.4)
    parts = {"lora_down.weight": torch.full((1, 32), float("nan")), "lora_up.weight": torch.ones(32, 1)}
    lora_file.save(tmp_path / "nan.safetensors", {LAYER: parts}, {}, torch.float32)
    (tmp_path / "cut.safetensors").write_bytes(first.read_bytes()[:-8])
    rows = [("a fox", seed, 3 + seed % 3, f"{first}:{seed / 50};{second}:1" if seed % 3 else "") for seed in range(24)]
    wrong = [("an owl", 1, 3, f"{tmp_path / name}.safetensors:1") for name in ("nan", "cut")]
    return jobs(tmp_path / "x.csv", [("prompt", "seed", "steps", "lora"), *rows, *wrong])


@pytest.mark.slow
def test_the_pictures_and_the_problems_are_those_of_a_batch_without_ray(
    tmp_path: Path, tiny: Path, mixed: Path
) -> None:
    for out, more in (("local", ()), ("ray", ("--engine", "ray", "--workers", "2"))):
        done = run(tmp_path, "--base", str(tiny), "--out", out, *more)
        assert done.returncode == 1, done.stderr
    assert len(files(tmp_path / "ray")) == 24 and files(tmp_path / "ray") == files(tmp_path / "local")
    assert manifest(tmp_path / "ray") == manifest(tmp_path / "local")
    again = run(tmp_path, "--base", str(tiny), "--out", "ray", "--engine", "ray")
    assert json.loads(again.stdout.splitlines()[-1])["made"] == 0


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_workers_killed_at_random_leave_each_picture_once_and_the_same(tmp_path: Path, tiny: Path) -> None:
    first, second = lora(tmp_path / "one.safetensors", 0.3), lora(tmp_path / "two.safetensors", -0.4)
    head = ("prompt", "seed", "steps", "lora")
    rows = [("a fox", s, 4 + s % 60, f"{first}:{s / 500};{second}:1" if s % 5 else "") for s in range(500)]
    jobs(tmp_path / "x.csv", [head, *rows])
    done = run(tmp_path, "--base", str(tiny), "--out", "local")
    assert done.returncode == 0, done.stderr
    chance, killed, num_drawn = random.Random(0), 0, 0
    with started(tmp_path, "--base", str(tiny), "--out", "ray", "--engine", "ray", "--workers", "3") as process:
        assert process.stdout
        for line in process.stdout:
            num_drawn += '"rendered"' in line
            if killed < KILLS and num_drawn >= 8 * (killed + 1):
                time.sleep(chance.uniform(0, 1.5))
                if there := workers(process):
                    chance.choice(there).kill()
                    killed += 1
        _, wrong = process.communicate()
    assert process.returncode == 0, wrong
    assert killed == KILLS and manifest(tmp_path / "ray") == manifest(tmp_path / "local")
    drawn, local = files(tmp_path / "ray"), files(tmp_path / "local")
    assert drawn.keys() == local.keys()
    # After four deaths of its chunk a picture is drawn alone, and then it has the pixels that it has alone.
    others = [name for name in drawn if drawn[name] != local[name]]
    assert len(others) <= KILLS // 4
    for name in others:
        jobs(tmp_path / "x.csv", [head, rows[int(name.split("-")[1])]])
        assert run(tmp_path, "--base", str(tiny), "--out", name.removesuffix(".png")).returncode == 0
        (alone,) = files(tmp_path / name.removesuffix(".png")).values()
        assert pixels(alone) == pixels(drawn[name])


@pytest.mark.slow
def test_killed_with_its_cluster_and_started_again_the_pictures_are_the_same(
    tmp_path: Path, tiny: Path, mixed: Path
) -> None:
    assert run(tmp_path, "--base", str(tiny), "--out", "local").returncode == 1
    on_ray = ("--base", str(tiny), "--out", "ray", "--engine", "ray", "--workers", "2")
    with started(tmp_path, *on_ray) as process:
        until_drawn(process)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert children and all("Agent" in named(process) for process in alive), "workers end with the command"
    done = run(tmp_path, *on_ray)
    assert done.returncode == 1, done.stderr
    assert files(tmp_path / "ray") == files(tmp_path / "local")


def test_on_a_cluster_of_two_nodes_one_of_which_goes_away_the_pictures_are_the_same(
    tmp_path: Path, tiny: Path, mixed: Path
) -> None:
    assert run(tmp_path, "--base", str(tiny), "--out", "local").returncode == 1
    token = secrets.token_hex(32)
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    with cluster("token", token) as (address, nodes):
        on_nodes = ("--base", str(tiny), "--out", "ray", "--engine", "ray", "--address", address, "--workers", "2")
        with started(tmp_path, *on_nodes, **env) as process:
            until_drawn(process)
            assert nodes.stdin
            nodes.stdin.write("end the second\n")
            nodes.stdin.flush()
            _, wrong = process.communicate(timeout=580)
        refused = run(tmp_path, *on_nodes, **env | {"RAY_AUTH_TOKEN": secrets.token_hex(32)})
    assert process.returncode == 1, wrong
    assert files(tmp_path / "ray") == files(tmp_path / "local")
    assert refused.returncode == 2 and "doesn't take this token" in refused.stderr


@pytest.mark.slow
def test_a_cluster_that_asks_for_no_token_is_refused(tmp_path: Path, tiny: Path) -> None:
    jobs(tmp_path / "x.csv", [("seed",), (1,)])
    with cluster("disabled", secrets.token_hex(32)) as (address, _):
        env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        done = run(tmp_path, "--base", str(tiny), "--engine", "ray", "--address", address, **env)
    assert done.returncode == 2 and "a cluster that asks for no token" in done.stderr
