"""Weights as people type them, on the command line, in jobs files and on the page."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app import batches
from app.tabs import stack as stack_tab
from trainer.config import batch, weights
from trainer.errors import ConfigError
from trainer.render import command, jobs_file


@pytest.mark.parametrize(
    ("text", "file", "wanted"),
    [
        ("f:0.8", "f", [0.8]), ("f:.8", "f", [0.8]), ("f:1", "f", [1.0]), ("f:-1.", "f", [-1.0]),
        ("f:1e-1", "f", [0.1]), ("f:0,0.5,1", "f", [0.0, 0.5, 1.0]),
        ("f:0,1", "f", [0.0, 1.0]), ("C:\\f.safetensors:0.5", "C:\\f.safetensors", [0.5]), ("a:b:2", "a:b", [2.0]),
        ("f: 0.5 ", "f", [0.5]),
    ],
)  # fmt: skip
def test_a_weight_behind_a_file_is_read(text: str, file: str, wanted: list[float]) -> None:
    stack, axes = command.stack("imprimatura", [text], {}, None)
    assert (stack.adapters[0].file, [*axes[0].values] if axes else [stack.adapters[0].weight]) == (file, wanted)
    if len(wanted) == 1:
        assert (batch.adapter(text)["file"], batch.adapter(text)["weight"]) == (file, wanted[0])


BAD = [
    ("0,8", "0.8"), ("0,75", "0.75"), ("-0,5", "-0.5"), ("1,25", "1.25"), ("0,05", "0.05"), ("0,01", "0.01"),
    (",8", ""),
    ("1e9", ""), ("nan", "a number such as 0.8"), ("inf", ""), ("-inf", ""), ("", "a number such as 0.8"), 
    ("1-2", "a number such as 0.8"), ("99", ""), ("--1", ""), ("1.2.3", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "meant"), BAD)
def test_a_weight_that_is_none_is_refused_and_says_what_was_meant(text: str, meant: str) -> None:
    with pytest.raises(ConfigError, match="weight is") as refused:
        command.stack("imprimatura", [f"f.safetensors:{text}"], {}, None)
    assert meant in str(refused.value) and "--lora" in str(refused.value)
    with pytest.raises(ConfigError) as shown:
        stack_tab.weights_of(text)
    assert "weights are" in str(shown.value) and (meant in str(shown.value) or not text)
    row = next(iter(jobs_file._csv(written(text), jobs_file.Defaults())))
    assert row.stack is None and "weight" in row.problem and (meant in row.problem or "allowed" in row.problem), (
        row.problem
    )


def written(weight: str) -> Path:
    path = Path("jobs.csv").resolve()
    path.write_text(f'lora,prompt\n"f.safetensors:{weight}",a\n', encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_pages_batch_takes_weights_with_a_point() -> None:
    assert (
        batches.numbers("0.5, 1,") == [0.5, 1.0]
        and batches.numbers(" ") == [1.0]
        and stack_tab.weights_of("0; 0.5, 1") == [0.0, 0.5, 1.0]
    )
    for text, meant in (("0,85", "0.85"), ("nan", "number"), ("9e9", "allowed")):
        with pytest.raises(ConfigError, match=meant):
            batches.numbers(text)


def test_a_bad_row_leaves_the_others() -> None:
    path = Path("jobs.csv")
    path.write_text('lora\n"f:0,8"\nf:0.8\n', encoding="utf-8")
    rows = list(jobs_file.read(path, jobs_file.Defaults()))
    assert [row.stack is None for row in rows] == [True, False] and "write 0.8" in rows[0].problem


def test_the_command_says_it(run_velatura: Callable[..., object]) -> None:
    result = run_velatura("render", "--lora", "fox.safetensors:0,8")
    assert result.returncode == 2 and "write it with a point: 0.8" in result.stderr and "Traceback" not in result.stderr  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["9" * 9000, "," * 9000, "1," * 4000, " " * 9000, "e" * 9000, "-" * 9000, "f:" * 4000])
def test_long_ones_take_no_time(text: str) -> None:
    file, weight = weights.split(f"f:{text}")
    assert file and (weight is None or len(weight) < 60)
