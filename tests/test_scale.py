"""The simulation of servers agrees with arithmetic where that can tell, and the page on scale shows what there is."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from trainer.bench import command, scale, scale_command, scale_costs
from trainer.bench.scale import Costs, Load
from trainer.cli import app

DOCS = Path(__file__).parents[1] / "docs"
COSTS = Costs(
    batch_s=0.1, picture_s=0.05, step_s=0.02, step_picture_s=0.07, live_batch_s=0.01, live_s=0.02, live_own_s=0.008,
    fold_stack_s=0.04, fold_s=0.05, load_s=0.03, encode_s=0.0, answer_s=0.01,
)  # fmt: skip
SIZE = {"tenants": 16, "loras": 200, "requests": 3, "rounds": 2, "steps": 25, "plain": 12}


@pytest.fixture
def costs_file(tmp_path: Path) -> Path:
    path = tmp_path / "costs.json"
    costs = dataclasses.asdict(COSTS)
    path.write_text(json.dumps({"costs": costs, "processor": costs, "off": 0.0}))
    return path


def test_one_tenant_waits_for_its_own_pictures_alone() -> None:
    outcome = scale.simulate(Load(tenants=1, loras=0, requests=5, steps=10), COSTS)
    alone_s = COSTS.batch([0], 0, 10) + 0.01  # and the time that a batch waits for others
    assert outcome.p50_s == pytest.approx(alone_s) and outcome.mean_batch == 1
    assert outcome.pictures == 5 and outcome.pictures_a_minute == pytest.approx(60 / alone_s)


def test_tenants_that_fill_a_batch_are_drawn_together() -> None:
    outcome = scale.simulate(Load(tenants=16, loras=0, requests=50, steps=10), COSTS)
    assert outcome.mean_batch == 16 and outcome.p95_s == pytest.approx(COSTS.batch([0] * 16, 0, 10), rel=0.01)
    assert outcome.work_s == pytest.approx(COSTS.batch([0] * 16, 0, 10) / 16)


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
    # A load test whose figures are what arithmetic makes of the costs where all are drawn alone, or are that much off.
    alone_s = sum(COSTS.batch([size], size, 25) for size in (1, 2, 3)) / 3
    for factor, verdict in ((1.0, "within 15%: yes"), (1.25, "within 15%: no")):
        row = {"name": "unmixed", "pictures_a_minute": 60 / alone_s, "p95_s": 16 * alone_s, "cpu_s": factor * alone_s}
        report = tmp_path / "report.json"
        report.write_text(json.dumps({"size": SIZE, "rows": [row]}))
        done = CliRunner().invoke(command.app, ["scale", "--costs", str(costs_file), "--against", str(report)])
        assert done.exit_code == 0 and verdict in done.stdout, done.output


def test_who_joins_at_steps_waits_no_batch_out() -> None:
    # Two ask at once; of those that come later none waits until others are done.
    load = Load(tenants=2, loras=0, requests=10, steps=10, window_s=0.0)
    costs = dataclasses.replace(COSTS, encode_s=0.3)  # by which the second one's requests are out of step
    by_batch, by_step = (scale.simulate(dataclasses.replace(load, joining=joining), costs) for joining in scale.JOINING)
    together_s = costs.batch([0, 0], 0, 10)
    assert by_batch.pictures == by_step.pictures == 20
    assert by_batch.p95_s > together_s + costs.encode_s > by_step.p50_s
    alone = dataclasses.replace(load, tenants=1, joining="step")
    assert scale.simulate(alone, costs).p50_s == pytest.approx(costs.batch([0], 0, 10) + costs.encode_s)


def test_costs_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    done = CliRunner().invoke(command.app, ["scale", "--costs", str(tmp_path / "x.json")])
    assert "must be what --measure printed" in str(done.exception)
    measured = scale_costs.Measured(COSTS, COSTS, 0.0)
    assert "no report of bench serve" in str(
        pytest.raises(scale_command.ConfigError, scale_command.compared, measured, tmp_path / "x.json").value
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
