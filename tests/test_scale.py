"""The simulation of servers agrees with arithmetic where that can tell, and the page on scale shows what there is."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from trainer.bench import command, scale, scale_command
from trainer.bench.scale import Costs, Load
from trainer.cli import app

DOCS = Path(__file__).parents[1] / "docs"
COSTS = Costs(0.1, 0.05, 0.02, 0.07, 0.004, 0.0006, 0.05, 0.03, 0.0)


@pytest.fixture
def costs_file(tmp_path: Path) -> Path:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"costs": dataclasses.asdict(COSTS), "off": 0.0}))
    return path


def test_one_tenant_waits_for_its_own_pictures_alone() -> None:
    outcome = scale.simulate(Load(tenants=1, loras=0, requests=5, steps=10), COSTS)
    alone_s = COSTS.batch(1, 0, 10) + 0.01  # and the time that a batch waits for others
    assert outcome.p50_s == pytest.approx(alone_s) and outcome.mean_batch == 1
    assert outcome.pictures == 5 and outcome.pictures_a_minute == pytest.approx(60 / alone_s)


def test_tenants_that_fill_a_batch_are_drawn_together() -> None:
    outcome = scale.simulate(Load(tenants=16, loras=0, requests=50, steps=10), COSTS)
    assert outcome.mean_batch == 16 and outcome.p95_s == pytest.approx(COSTS.batch(16, 0, 10), rel=0.01)


def test_every_request_is_answered_once_and_the_same_seed_gives_the_same() -> None:
    load = Load(tenants=40, loras=100, requests=6, servers=5, memory_loras=10)
    outcome = scale.simulate(load, COSTS)
    assert outcome.pictures == 240 and 0 < outcome.busy <= 1 and outcome == scale.simulate(load, COSTS)
    assert outcome != scale.simulate(dataclasses.replace(load, seed=2), COSTS)


def test_servers_that_are_asked_for_what_they_hold_read_less() -> None:
    load = Load(tenants=64, loras=400, requests=30, servers=8, memory_loras=60)
    reads = {
        routing: scale.simulate(dataclasses.replace(load, routing=routing), COSTS).reads for routing in scale.ROUTINGS
    }
    assert reads["affinity"] < 0.85 * reads["random"], reads


def test_loras_that_differ_by_picture_cost_what_they_cost() -> None:
    with_loras, without = (scale.simulate(Load(loras=loras), COSTS) for loras in (200, 0))
    assert with_loras.pictures_a_minute < without.pictures_a_minute and with_loras.mean_loras > 3


def test_the_command_compares_itself_with_a_measured_load(costs_file: Path, tmp_path: Path) -> None:
    simulated = CliRunner().invoke(command.app, ["scale", "--costs", str(costs_file), "--json"])
    assert simulated.exit_code == 0, simulated.output
    report = tmp_path / "report.json"
    for factor, verdict in ((1.1, "within 15%: yes"), (1.4, "within 15%: no")):
        values = json.loads(simulated.stdout)
        for row in values["rows"]:
            row["p95_s"] *= factor
        report.write_text(json.dumps(values))
        done = CliRunner().invoke(command.app, ["scale", "--costs", str(costs_file), "--against", str(report)])
        assert verdict in done.stdout, done.stdout


def test_costs_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    done = CliRunner().invoke(command.app, ["scale", "--costs", str(tmp_path / "x.json")])
    assert "must be what --measure printed" in str(done.exception)
    assert "no report of bench serve" in str(
        pytest.raises(scale_command.ConfigError, scale_command.compared, {}, tmp_path / "x.json").value
    )


# The files that start a training on a cluster.


def commands_of(text: str) -> list[list[str]]:
    """Each `trainer ...` or `velatura ...` of a shell text, as words."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [line.split() for line in re.findall(r"(?:-m trainer|velatura) ((?:train|batch|bench) [^\n`|]*)", joined)]


@pytest.mark.parametrize("name", ["train-skypilot.yaml", "train-kubernetes.yaml"])
def test_a_job_file_parses_and_names_what_exists(name: str) -> None:
    texts: list[str] = []

    def walk(value: object) -> None:
        if isinstance(value, dict):
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)
        elif isinstance(value, str):
            texts.append(value)

    for document in yaml.safe_load_all((DOCS / "jobs" / name).read_text(encoding="utf-8")):
        walk(document)
    found = [words for text in texts for words in commands_of(text)]
    assert found, "it starts a training"
    for words in found:
        check_words(words)


def test_the_commands_of_the_page_exist() -> None:
    found = commands_of((DOCS / "scale.md").read_text(encoding="utf-8"))
    assert {words[0] for words in found} == {"train", "batch", "bench"}
    for words in found:
        check_words(words)


def check_words(words: list[str]) -> None:
    """The command is there, and has every option that stands in it."""
    help_ = CliRunner().invoke(app, [*words[: 2 if words[0] == "bench" else 1], "--help"], env={"COLUMNS": "300"})
    assert help_.exit_code == 0, help_.output
    missing = [word for word in words if word.startswith("--") and word.split("=")[0] not in help_.output]
    assert not missing, (words, missing)
