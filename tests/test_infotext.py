"""A1111's text: what we write is read again, what others write is understood, and nothing hostile gets further than
words.
"""

import json
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.timing import since
from trainer import lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import DataError
from trainer.lora_file import LoraInfo
from trainer.render import a1111_text as text
from trainer.render import samplers
from trainer.render.a1111_text import Mention, apply_infotext, infotext, parse_infotext

DIGEST = "ab" * 32
FOREIGN = """masterpiece, (fox:1.2), <lora:Noto-Style_v2:0.8> night,
two lines <lora:cat:0.5:1>
Negative prompt: blurry, [dark],
text
Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 965400086, Size: 512x768, \
Model hash: 45dee52b0f, Model: "v1-5, pruned", Clip skip: 2, \
Lora hashes: "Noto-StyLe: 000000000000, Noto-Style_v2: abababababab", TI hashes: "bad: 1111", Version: v1.6.0"""


def adapter(name: str = "cat", **values: object) -> AdapterChoice:
    return AdapterChoice(**{"name": name, "file": f"/home/ann/{name}.safetensors", "sha256": DIGEST, **values})


def written(**values: object) -> str:
    return infotext(StackConfig(**values), "imprimatura", "0123456789abcdef", "DDIM")


LINE = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Zs", "Zl", "Zp", "Cs"), exclude_characters="<>"),
    max_size=40,
).filter(lambda line: not line.startswith(("Negative prompt:", "Steps: ")) and line == line.strip())
PROMPT = st.lists(LINE, max_size=4).map("\n".join).filter(lambda lines: lines == lines.strip())
NUMBER = st.integers(-200, 200).map(lambda number: number / 100)
ADAPTERS = st.lists(
    st.builds(
        adapter, st.text(min_size=1, max_size=20), weight=NUMBER, text_weight=st.none() | NUMBER, enabled=st.booleans()
    ),
    max_size=4,
)


@given(
    PROMPT.filter(bool),
    PROMPT,
    st.integers(0, 2**32 - 1),
    st.integers(1, 500),
    st.sampled_from(["", *samplers.SAMPLERS]),
    ADAPTERS,
)
@settings(max_examples=200, deadline=None)
def test_what_was_written_is_read_again(
    prompt: str, negative: str, seed: int, steps: int, sampler: str, adapters: list[AdapterChoice]
) -> None:
    stack = StackConfig(
        prompt=prompt,
        negative_prompt=negative,
        seed=seed,
        steps=steps,
        sampler=sampler,
        guidance_scale=4.25,
        guidance_rescale=0.7,
    )
    stack = stack.model_copy(update={"adapters": tuple(adapters)})
    read = parse_infotext(infotext(stack, 'a, base: of\n"ours"', DIGEST, "DDIM"))
    assert (read.prompt, read.negative_prompt, read.seed, read.steps) == (prompt, negative, seed, steps)
    assert (read.guidance_scale, read.guidance_rescale, read.size) == (4.25, 0.7, (128, 128))
    assert read.sampler == (sampler or "ddim")
    assert (read.model, read.model_hash, read.unknown) == ('a, base: of\n"ours"', DIGEST[:10], ())
    there = [adapter for adapter in adapters if adapter.enabled and (adapter.weight or adapter.text_weight)]
    wanted = [
        (text.alias(adapter), adapter.weight, adapter.weight if adapter.text_weight is None else adapter.text_weight)
        for adapter in there
    ]
    assert [
        (lora.name, lora.weight, lora.weight if lora.text_weight is None else lora.text_weight) for lora in read.loras
    ] == wanted
    assert {lora.sha256 for lora in read.loras} <= {DIGEST[:12]}


def test_every_sampler_has_a_name_of_a1111_and_comes_back_from_it() -> None:
    assert set(text.A1111) == set(samplers.SAMPLERS)
    assert all(parse_infotext(written(sampler=name)).sampler == name for name in samplers.SAMPLERS)
    assert text.known_sampler("EulerAncestralDiscrete") == "euler_a" and text.known_sampler("PNDM") == ""


def test_adapters_that_are_off_stand_in_no_tag_and_no_hash() -> None:
    off = (
        adapter("a", enabled=False),
        adapter("b", weight=0),
        adapter("c", weight=0, text_weight=0),
        adapter("d", weight=0, text_weight=0.5),
    )
    written_text = written(prompt="x", adapters=off)
    assert (
        written_text.split("\n")[0] == "x <lora:d:0:te=0.5:unet=0>"
        and f'Lora hashes: "d: {DIGEST[:12]}"' in written_text
    )


def test_what_a1111_cannot_say_stands_under_keys_of_ours() -> None:
    first = adapter(schedule="linear 1 0", blocks=("OUT=0.5", "MID=0"), region="mask data:AAAA")
    pairs = parse_infotext(written(mode="switch", adapters=(first, adapter("dog", region="box 0 0 0.5 1")))).pairs
    assert pairs["Velatura mode"] == "switch"
    assert (
        pairs["Velatura LoRAs"]
        == "cat: blocks OUT=0.5 MID=0, schedule linear 1 0, region mask; dog: region box 0 0 0.5 1"
    )
    assert not [key for key in parse_infotext(written(adapters=(adapter(),))).pairs if key.startswith("Velatura")]


def test_the_text_of_another_tool_is_understood() -> None:
    read = parse_infotext(FOREIGN)
    assert (
        read.prompt == "masterpiece, (fox:1.2), night,\ntwo lines" and read.negative_prompt == "blurry, [dark],\ntext"
    )
    assert read.loras == (Mention("Noto-Style_v2", 0.8, None, "abababababab"), Mention("cat", 1.0, 0.5, ""))
    assert (read.steps, read.sampler, read.guidance_scale, read.seed, read.size) == (
        20,
        "dpm++_2m_karras",
        7.5,
        965400086,
        (512, 768),
    )
    assert (read.model, read.model_hash, read.pairs["Clip skip"]) == ("v1-5, pruned", "45dee52b0f", "2")
    assert parse_infotext("only a prompt, with: colons") == text.Infotext(prompt="only a prompt, with: colons")
    assert parse_infotext("") == text.Infotext()
    newer = parse_infotext(
        "a\nSteps: 3, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7, Seed: 1, Size: 64x64"
    )
    assert newer.sampler == "euler_a"


def test_civitais_own_list_is_understood() -> None:
    listed = '[{"type":"checkpoint","modelVersionId":290640},{"type":"lora","weight":0.4,"modelVersionId":135867}]'
    read = parse_infotext(
        f"a\nSteps: 3, Sampler: Euler, CFG scale: 7, Seed: 1, Civitai resources: {listed}, Version: x"
    )
    assert read.civitai == ((135867, 0.4),) and read.pairs["Version"] == "x" and read.seed == 1


def info(name: str, digest: str) -> LoraInfo:
    return LoraInfo(
        Path(f"/loras/{name}.safetensors"),
        name,
        digest,
        None,
        None,
        "lora",
        4,
        4.0,
        1,
        1,
        1,
        1.0,
        "",
        name,
        {},
        None,
        {},
    )


def test_a_text_is_laid_on_a_stack_and_what_cannot_be_used_is_said() -> None:
    library = {DIGEST: info("renamed", DIGEST), "cd" * 32: info("cat", "cd" * 32)}
    base = StackConfig(base="/models/mine", adapters=(adapter("old"),))
    stack, notes = apply_infotext(base, parse_infotext(FOREIGN), library)
    assert (stack.base, stack.width_px, stack.sampler, stack.guidance_scale) == (
        "/models/mine",
        512,
        "dpm++_2m_karras",
        7.5,
    )
    assert [(lora.file, lora.weight, lora.text_weight, lora.sha256) for lora in stack.adapters] == [
        ("/loras/renamed.safetensors", 0.8, None, DIGEST), ("/loras/cat.safetensors", 1.0, 0.5, "cd" * 32),
    ]  # fmt: skip
    assert notes == ["LoRA cat was found by its name alone."]
    odd = replace(
        parse_infotext(FOREIGN),
        steps=9999,
        size=(100, 64),
        seed=2**33,
        sampler="Restart",
        unknown=("<hypernet:x:1>",),
        civitai=((5, 1.0),),
    )
    stack, notes = apply_infotext(base, odd, {})
    assert (stack.steps, stack.seed, stack.width_px, stack.height_px, stack.sampler, stack.adapters) == (
        25,
        1,
        128,
        64,
        "",
        (),
    )
    for word in (
        "steps is 9999",
        "seed is",
        "width_px is 100",
        "'Restart'",
        "<hypernet:x:1>",
        "hash abababababab",
        "numbers only: 5",
    ):
        assert any(word in note for note in notes), (word, notes)


def test_weights_beyond_the_usual_come_with_their_permission() -> None:
    stack, _ = apply_infotext(StackConfig(), parse_infotext("a <lora:cat:3.5>"), {DIGEST: info("cat", DIGEST)})
    assert stack.wide_weights and stack.adapters[0].weight == 3.5


def test_the_model_version_comes_from_the_side_car_alone(tmp_path: Path) -> None:
    file, beside = tmp_path / "cat.safetensors", tmp_path / "cat.civitai.info"
    assert text.civitai_version(file, DIGEST) is None
    for content, version in [
        ('{"id": 135867, "modelId": 5}', 135867),
        (json.dumps({"id": 7, "files": [{"hashes": {"AutoV3": DIGEST[:12].upper()}}]}), 7),
        (json.dumps({"id": 7, "files": [{"hashes": {"AutoV3": "0" * 12}}]}), None),
        ('{"id": true}', None), ('{"id": "7"}', None), ('{"id": -1}', None), ("[1]", None), ('{"files": 3}', None),
        ('{"files": [3]}', None),
        ("[" * 100_000, None), ("\xff", None), ("{", None),
    ]:  # fmt: skip
        beside.write_text(content, encoding="latin-1")
        assert text.civitai_version(file, DIGEST) == version, content[:60]
    beside.write_text('{"id": 135867}')
    plain = written(prompt="x", adapters=(adapter(file=str(file), weight=0.4),))
    assert ', Civitai resources: [{"type":"lora","weight":0.4,"modelVersionId":135867}], Version: ' in plain
    assert parse_infotext(plain).civitai == ((135867, 0.4),) and str(tmp_path) not in plain


@given(
    st.lists(
        st.sampled_from(
            [
                *'<>:,"\\[]{}\n ()a1',
                "Steps: 1",
                "Seed: ",
                "Size: 9x9",
                "Lora hashes: ",
                "Civitai resources: ",
                "<lora:a:1>",
                "Negative prompt:",
            ]
        )
    ).map("".join)
    | st.text()
)
@settings(max_examples=400, deadline=None)
def test_any_text_is_read_and_laid_on_a_stack(text: str) -> None:
    apply_infotext(StackConfig(), parse_infotext(text), {DIGEST: info("a", DIGEST)})


def test_mutations_of_a_real_text_are_read_in_no_time() -> None:
    rng, start = random.Random(0), time.thread_time()
    for _ in range(2000):
        letters = list(FOREIGN)
        for _ in range(rng.randint(1, 30)):
            letters[rng.randrange(len(letters))] = rng.choice('<>:,"\\[]{}\n\0\U0001f98a9')
        parse_infotext("".join(letters))
    assert since(start) < 10


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "a ",
        'ab:"',
        'ab:"x,',
        'ab:"\\"',
        "Civitai resources:[",
        "Steps: 1\n",
        " ",
        "<lora:a:1>",
        '"',
        "a: 12345678,",
        "Size: 9",
        "\\",
    ],
)
def test_long_texts_take_no_time_and_longer_ones_are_refused(piece: str) -> None:
    start = time.thread_time()
    parse_infotext("a\nSteps: 1, Sampler: x, Seed: 2, Lora hashes: " + (piece * text.MAX_CHARS)[: text.MAX_CHARS - 100])
    parse_infotext((piece * text.MAX_CHARS)[: text.MAX_CHARS])
    assert since(start) < 1.5
    with pytest.raises(DataError, match="allowed: up to 131072"):
        parse_infotext("a" * (text.MAX_CHARS + 1))


def test_our_headers_give_no_model_version(trained: Path) -> None:
    assert text.civitai_version(trained, lora_file.inspect(trained).sha256) is None
