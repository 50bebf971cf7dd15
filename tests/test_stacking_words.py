"""Stacks by name, hash, prompt, file and command: what is found, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.stacks import apart, choice, pixels, stack
from trainer import lora_file
from trainer.config import AdapterChoice
from trainer.errors import AdapterError, UserError
from trainer.render import regions, strength
from trainer.render.engine import Engine

# Names, hashes, prompts.


@pytest.fixture(scope="module")
def with_library(trained: Path, trained_style: Path) -> Engine:
    return Engine(
        "imprimatura",
        device="cpu",
        dtype="float32",
        library=lambda: lora_file.library([trained.parent, trained_style.parent]),
    )


def test_a_lora_is_found_by_its_hash_or_by_its_name_in_the_prompt(with_library: Engine, trained: Path) -> None:
    sha256 = lora_file.inspect(trained).sha256
    wanted = pixels(with_library, stack(choice(trained, 0.8)))
    assert apart(wanted, pixels(with_library, stack(AdapterChoice(sha256=sha256, weight=0.8)))) == 0
    tagged = stack(prompt=f"a fox, noto style <lora:{trained.stem}:0.8>")
    assert apart(wanted, pixels(with_library, tagged)) == 0
    assert with_library.resolve(tagged).prompt == "a fox, noto style"


def test_what_is_not_here_is_refused_by_name(with_library: Engine) -> None:
    with pytest.raises(AdapterError, match=r"LoRA mokka with hash 00000000"):
        with_library.render(stack(AdapterChoice(name="mokka", sha256="0" * 64)))
    with pytest.raises(AdapterError, match="'nowhere', which isn't here; allowed: one of cat, style"):
        with_library.render(stack(prompt="a <lora:nowhere:1> fox"))


def test_what_resolve_gives_is_resolved(with_library: Engine, trained: Path) -> None:
    made = stack(choice(trained, trigger=True), prompt="a {red|green|blue} cat, {day|night}", seed=7)
    resolved = with_library.resolve(made)
    assert "{" not in resolved.prompt and resolved.prompt.startswith(lora_file.inspect(trained).trigger)
    assert with_library.resolve(resolved) == resolved == with_library.resolve(made)


def test_adapters_beyond_the_budget_are_read_again(trained: Path, trained_style: Path) -> None:
    small = Engine("imprimatura", device="cpu", dtype="float32", kept_bytes=trained.stat().st_size + 1)
    first = pixels(small, stack(choice(trained)))
    for _ in range(2):
        assert apart(first, pixels(small, stack(choice(trained)))) == 0
        pixels(small, stack(choice(trained_style)))
        assert small.shelf.num_bytes <= trained.stat().st_size + trained_style.stat().st_size


# Hostile words.

ANYTHING = st.text(max_size=40) | st.from_regex(
    r"(linear|steps|points|box|mask|curve=|IN|OUT)[0-9:. =-]{0,30}", fullmatch=True
)


@settings(max_examples=200, deadline=None)
@given(text=ANYTHING, parse=st.sampled_from(["schedule", "region", "blocks"]))
def test_any_text_is_read_or_refused(text: str, parse: str) -> None:
    paths = ["unet.down_blocks.0.attn1.to_q", "unet.mid_block.attn2.to_k", "unet.up_blocks.1.attn1.to_q"]
    made = AdapterChoice(file="x", **{parse: (text,) if parse == "blocks" else text})
    calls: dict[str, Callable[[], object]] = {
        "schedule": lambda: [abs(strength.schedule(made).at(place / 7)) <= 4 for place in range(8)],
        "region": lambda: regions.resolved(made, (8, 8)),
        "blocks": lambda: strength.block_factors(made, paths),
    }  # fmt: skip
    try:
        read = calls[parse]()
    except UserError as error:
        assert parse in str(error)
    else:
        assert read == {"schedule": [True] * 8, "region": text.strip(), "blocks": read}[parse]
        assert parse != "blocks" or set(read) == set(paths)  # type: ignore[call-overload]


# The command.


def test_a_stack_file_says_it_all_and_its_picture_brings_it_back(
    tmp_path: Path, trained: Path, trained_style: Path, run_velatura: Callable[..., Any]
) -> None:
    (tmp_path / "outputs").mkdir()
    for name, path in (("one", trained), ("two", trained_style)):
        (tmp_path / "outputs" / f"{name}.safetensors").write_bytes(path.read_bytes())
    Image.new("L", (16, 16), 255).save(tmp_path / "outputs" / "mask.png")
    (tmp_path / "outputs" / "stack.toml").write_text(
        'prompt = "a {red|blue} fox"\nsteps = 2\n[[adapters]]\nfile = "one.safetensors"\nschedule = "linear 1 0"\n'
        '[[adapters]]\nfile = "two.safetensors"\nregion = "mask mask.png"\ntrigger = true\n'
    )
    made = run_velatura(
        "render",
        "--stack",
        "outputs/stack.toml",
        "--set",
        "adapters.1.weight=0.5",
        "--set",
        "sampler=euler",
        "--out",
        "a.png",
    )
    assert made.returncode == 0, made.stderr
    again = run_velatura("render", "--from", "a.png", "--out", "b.png")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    axes = [
        text for key in ("adapters.0.weight=0,1", "seed=1,2,3", "prompt=a fox|a cat, red") for text in ("--axis", key)
    ]
    grid = run_velatura("render", "--stack", "outputs/stack.toml", *axes, "--out", "grid.png")
    assert grid.returncode == 0, grid.stderr
    assert len(list((tmp_path / "grid").glob("*.png"))) == 12
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.width > 2 * 128 and sheet.height > 6 * 128  # a page a weight, a row a seed, a column a prompt
    strip = run_velatura("render", "--stack", "outputs/stack.toml", "--strip", "--out", "strip.png")
    assert strip.returncode == 0, strip.stderr
    with Image.open(tmp_path / "strip.png") as sheet:
        assert sheet.width > 4 * 128  # the base, each of two, both


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("steps = ", [], "is not TOML"), ("prompts = 'x'", [], "did you mean prompt"),
        ("[[adapters]]\nfile = 'no.safetensors'", [], "no.safetensors"),
        ("", ["--set", "adapters.3.weight=1"], "there is no such setting"),
        ("", ["--set", "sampler=magic"], "allowed for this base: ddim"),
        ("", ["--prompt", "x"], "--stack takes everything"),
        ("", ["--out", "x.gif"], ".gif"), ("", ["--quantise", "int3"], "allowed: none, int8, nf4, fp8"),
        ("", ["--strip"], "needs a LoRA that is on"),
        ("", ["--axis", "seed"], "KEY=VALUE,VALUE"), ("", ["--axis", "sed=1,2"], "did you mean seed"),
        ("", ["--axis", "seed=1,x"], "seed is 'x'"),
        ("prompt = 'a cat'", ["--axis", "words=dog,owl"], "the words 'dog' are not in the prompt 'a cat'"),
    ],
)  # fmt: skip
def test_a_bad_stack_file_or_option_is_refused_in_a_line(
    text: str, options: list[str], says: str, tmp_path: Path, run_velatura: Callable[..., Any]
) -> None:
    (tmp_path / "s.toml").write_text(text)
    done = run_velatura("render", "--stack", "s.toml", *options)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr
