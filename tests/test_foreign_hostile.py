"""Pictures of other tools are hostile: no name in one opens a file, nothing takes a second, and whatever is in it is
read or said in words.
"""

import json
import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import foreign_pictures as made
from tests.test_naming import small
from tests.timing import since
from trainer import lora_file
from trainer.config import StackConfig
from trainer.errors import UserError
from trainer.lora_file import LoraInfo
from trainer.render import a1111_text, comfy_reading, opening, other_tools_pictures

TEXT = (
    "a watermill <lora:cat:0.75>\nNegative prompt: blurry\nSteps: 22, Sampler: Euler, Seed: 7, Size: 64x64, Model: "
    'm, Lora hashes: "cat: e3b0c44298fc"'
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoraInfo]:
    folder = tmp_path_factory.mktemp("library")
    small(folder / "cat.safetensors", seed=1)
    return lora_file.library([folder])


HOSTILE_NAMES = [
    "/etc/passwd",
    "../../outputs/x",
    "C:\\Windows\\x",
    "\\\\host\\share\\x",
    "~/x",
    "file:///etc/passwd",
    "a\0b",
    "x" * 5000,
    "<img src=x onerror=1>",
    "\u202etxt",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_name_in_a_picture_opens_a_file(
    name: str, library: dict[str, LoraInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, swarm, fooocus = made.comfyui_prompt(), made.swarmui_values("0"), made.fooocus_values("0123456789")
    graph["10"]["inputs"]["lora_name"] = graph["4"]["inputs"]["ckpt_name"] = name
    swarm["sui_image_params"] |= {"loras": [name], "model": name}
    fooocus |= {"loras": [[name, 1, "0123456789"]], "base_model": name, "vae": name}
    pictures = [
        made.comfyui(tmp_path / "c.png", graph),
        made.swarmui(tmp_path / "s.png", swarm),
        made.fooocus(tmp_path / "f.png", json.dumps(fooocus), "fooocus"),
    ]
    pictures.append(
        made.a1111(tmp_path / "a.jpg", f"a <lora:{name}:1>\nSteps: 2, Sampler: x, Seed: 1, Model: {name}, VAE: {name}")
    )
    whole, known = Path.open, {*pictures, *(info.path for info in library.values())}

    def watched(self: Path, *args: Any, **kwargs: Any) -> Any:
        assert self in known, f"{self} was opened"
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", watched)
    for picture in pictures:
        stack, messages = opening.stack_of(picture, StackConfig(), library)
        notes = "\n".join(messages)
        assert not stack.adapters and stack.base == "imprimatura" and "\0" not in notes and "\u202e" not in notes
        assert max(map(len, notes.split("\n"))) < 1200


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["4", "KSampler", "77", "cat"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["class_type", "inputs", "4", "model", "lora_name", "weight", "name", "text"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
WHERE = st.lists(st.integers(0, 30), max_size=4)


def broken(values: Any, where: list[int], into: Any) -> Any:
    """A copy with one place, found by numbers, replaced."""
    values = json.loads(json.dumps(values))
    place, path = values, list(where)
    while path and isinstance(place, dict | list) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[path.pop(0) % len(keys)]
        if not path or not isinstance(place[key], dict | list):
            place[key] = into
            break
        place = place[key]
    return values


SOURCES = [made.INVOKEAI, made.fooocus_values("0123456789"), made.swarmui_values("12" * 32)]


def is_read_or_refused(where: list[int], into: Any) -> None:
    for values in SOURCES:
        read = other_tools_pictures.from_json_text(json.dumps(broken(values, where, into)))
        if read is not None:
            stack, notes = a1111_text.apply_infotext(StackConfig(), read, {})
            assert all(isinstance(note, str) and len(note) < 3000 for note in notes) and not stack.adapters
    for prompt, workflow in (
        (broken(made.comfyui_prompt(), where, into), None),
        (None, broken(made.comfyui_workflow(), where, into)),
    ):
        graph = comfy_reading.graph(
            prompt if isinstance(prompt, dict) else None, workflow if isinstance(workflow, dict) else None
        )
        if graph is not None:
            a1111_text.apply_infotext(StackConfig(), graph, {})


@given(WHERE, JSON)
@settings(max_examples=150, deadline=None)
def test_any_json_of_a_tool_is_read_or_said(where: list[int], into: Any) -> None:
    is_read_or_refused(where, into)


def test_large_and_deep_texts_take_no_time(tmp_path: Path) -> None:
    wide = {
        str(number): {"class_type": "SaveImage", "inputs": {"images": [str(number + 1), 0]}} for number in range(20_000)
    }
    chain = {
        str(number): {"class_type": "Reroute", "inputs": {"x": [str(number + 1), 0], "model": [str(number + 1), 0]}}
        for number in range(4000)
    }
    loop = {
        "1": {
            "class_type": "KSampler",
            "inputs": {"seed": ["2", 0], "model": ["1", 0], "positive": ["2", 0], "latent_image": ["1", 0]},
        },
        "2": {"class_type": "x", "inputs": {"a": ["2", 0], "text": ["2", 0]}},
    }
    star = {
        "s": {"class_type": "SaveImage", "inputs": {f"i{number}": [str(number), 0] for number in range(3000)}}
    } | chain
    texts: list[dict[str, str]] = [{"prompt": json.dumps(graph)} for graph in (wide, chain, loop, star)]
    texts += [
        {
            "workflow": json.dumps(
                {
                    "nodes": [
                        {"id": n, "type": "LoraLoader", "inputs": [{"name": "model", "link": n}] * 50}
                        for n in range(2000)
                    ],
                    "links": [[n, n + 1, 0] for n in range(9000)],
                }
            )
        }
    ]
    texts += [
        {key: text}
        for key in ("parameters", "prompt", "invokeai_metadata")
        for text in ("[" * 100_000, '{"a":' * 100_000, "{" * 200_000, '{"prompt": "' + "x" * 200_000 + '"}')
    ]
    with suppress(UserError):
        opening.stack_of(
            made.png(tmp_path / "first.png", parameters="x"), StackConfig(), {}
        )  # what is imported only now is not timed
    for number, chunks in enumerate(texts):
        path = made.png(tmp_path / f"{number}.png", **chunks)
        start = time.thread_time()
        with suppress(UserError):
            opening.stack_of(path, StackConfig(), {})
        assert since(start) < 1, (number, list(chunks))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_damaged_pictures_of_other_tools_are_refused_in_words(
    suffix: str, library: dict[str, LoraInfo], tmp_path: Path
) -> None:
    raw, rng = made.a1111(tmp_path / f"x{suffix}", TEXT).read_bytes(), random.Random(2)
    path = tmp_path / f"y{suffix}"
    for _ in range(150):
        damaged = bytearray(raw)
        for _ in range(rng.randint(1, 12)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            opening.stack_of(path, StackConfig(), library)
        except UserError as error:
            assert "picture" in str(error)
