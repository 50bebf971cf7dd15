"""`velatura bench serve`: every picture of a small load is its own recipe's, whatever it was drawn with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.bench import scale_command, serving, serving_load


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_small_load_is_measured_and_every_picture_is_its_own(tmp_path: Path) -> None:
    report = serving.run(serving.Size(tenants=4, loras=6, requests=2, rounds=1, steps=3, plain=2))
    assert not report.wrong and report.largest_difference <= serving.TOLERANCE
    assert (report.checked, [row.failed for row in report.rows]) == (8, [0] * 4)
    by_name = {row.name: row for row in report.rows}
    assert 0 < by_name["mixed"].joined_next < 1 and by_name["unmixed"].joined_next > 0.5
    assert by_name["unmixed"].join_wait_s > 0 and by_name["plain"].joined_next == 0
    assert "0 wrong" in serving.describe(report) and json.loads(serving.to_json(report))["checked"] == 8
    (tmp_path / "report.json").write_text(serving.to_json(report))
    assert "mixed, cpu_s: simulated" in scale_command.compared(None, tmp_path / "report.json")


def test_every_server_is_asked_the_same() -> None:
    names = [f"lora-{number}" for number in range(20)]
    first, again = (serving_load.requests(3, 50, names, 1) for _ in range(2))
    assert first == again != serving_load.requests(3, 50, names, 2)
    every = [one for own in first for one in own]
    assert {len(one.loras) for one in every} == {1, 2, 3}
    assert all(len(dict(one.loras)) == len(one.loras) for one in every)
    popular = [name for one in every for name, _ in one.loras]
    assert popular.count("lora-0") > 3 * popular.count("lora-10")
