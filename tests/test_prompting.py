"""The prompt language: A1111's own examples, the same words for a seed, and nothing hostile that grows, hangs or leaves
its folder.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.timing import since
from trainer.config import StackConfig
from trainer.errors import ConfigError, UserError
from trainer.families import registry
from trainer.families.contract import Family
from trainer.render import pipeline_call, prompting
from trainer.render.prompting import LoraTag

HOSTILE = st.lists(
    st.sampled_from([*"(){}[]|:<>_\\/.a b1-,\n", "lora", "BREAK", "__", "::", "1.3", "猫"]), max_size=200
).map("".join)
WEIGHTS = st.integers(-2000, 2000).map(lambda number: number / 100)
NAMES = (
    st.text(st.characters(categories=("L", "N"), include_characters="_-. "), min_size=1, max_size=20)
    .map(str.strip)
    .filter(bool)
)


@pytest.fixture(scope="module")
def family() -> Family:
    return registry()["sd"]


@pytest.fixture(scope="module", params=["tiny", "shifted", "imprimatura"])
def pipe(request: pytest.FixtureRequest, family: Family, tiny: Path, imprimatura_folder: Path) -> Any:
    """`shifted` has outputs with a mean to restore, as OpenAI's CLIP has; the others' means are next to nothing."""
    pipe = family.load(imprimatura_folder if request.param == "imprimatura" else tiny, "cpu", torch.float32)
    if request.param == "shifted":
        next(
            module for name, module in pipe.text_encoder.named_modules() if name.endswith("final_layer_norm")
        ).bias.data.fill_(0.3)
    return pipe


# Tags.


@pytest.mark.parametrize(
    ("text", "lora"),
    [
        ("<lora:cat:0.8>", LoraTag("cat", 0.8)),
        ("<lora:cat>", LoraTag("cat")),
        ("<lyco:my cat-2.5:-1>", LoraTag("my cat-2.5", -1.0)),
        ("<lora:cat:0.5:1>", LoraTag("cat", 1.0, 0.5)),  # A1111: the text encoder's first
        ("<lora:cat:te=0.5:unet=1>", LoraTag("cat", 1.0, 0.5)),
        ("<lora:cat:unet=0.3>", LoraTag("cat", 0.3, 1.0)),
        ("<lora:cat:te=0.3>", LoraTag("cat", 0.3)),
        ("<lora:cat:1:te=0.5:unet=1>", LoraTag("cat", 1.0, 0.5)),
    ],
)
def test_tags_mean_what_they_mean_in_a1111(text: str, lora: LoraTag) -> None:
    assert prompting.take_tags(f"a fox {text}, red") == prompting.Tagged("a fox, red", (lora,), ())


@pytest.mark.parametrize(
    "text",
    [
        "<hypernet:x:1>",
        "<lora:cat:lbw=IN02>",
        "<lora:cat:1:2:3>",
        "<lora::1>",
        "<lora:cat:99>",
        "<lora:cat:nan>",
        "<lora:cat:x>",
    ],
)
def test_a_tag_that_means_nothing_here_is_named(text: str) -> None:
    assert prompting.take_tags(f"a {text} b") == prompting.Tagged("a b", (), (text,))


@given(NAMES, WEIGHTS, st.none() | WEIGHTS)
def test_a_tag_that_was_written_is_read_again(name: str, weight: float, text_weight: float | None) -> None:
    written = LoraTag(name, weight, None if text_weight == weight else text_weight)
    assert prompting.take_tags(f"a{prompting.tag(written)}").loras == (written,)


def test_a_tag_within_a_tag_leaves_no_tag_behind() -> None:
    assert prompting.take_tags("<lora:<lora:a:1>b:1>") == prompting.Tagged("", (LoraTag("a"), LoraTag("b")), ())
    deep = prompting.take_tags("<lora:" * 50 + "a:1>" * 50)
    assert "<" in deep.unknown and prompting.take_tags(deep.prompt) == prompting.Tagged(deep.prompt, (), ())


# Wildcards.


@given(HOSTILE, st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_what_is_spelled_out_stays_as_it_is(prompt: str, seed: int) -> None:
    with suppress(ConfigError):
        expanded = prompting.spelled_out(prompt, seed).prompt
        assert prompting.spelled_out(expanded, seed + 1) == prompting.Tagged(expanded, (), ())


@given(st.lists(st.text(max_size=20), max_size=4).map(",".join) | HOSTILE, HOSTILE)
@settings(max_examples=300, deadline=None)
def test_trigger_words_never_become_tags_or_wildcards(phrase: str, prompt: str) -> None:
    words = prompting.split_triggers(phrase)
    with suppress(ConfigError):
        triggered = prompting.with_triggers(prompting.spelled_out(prompt, 1).prompt, words)
        assert prompting.with_triggers(prompting.spelled_out(triggered, 2).prompt, words) == triggered


def test_tags_may_come_from_wildcards() -> None:
    drawn = {prompting.spelled_out("a fox {<lora:cat:0.5>|} <lora:{x|y}:1>", seed) for seed in range(40)}
    assert {tagged.prompt.strip() for tagged in drawn} == {"a fox"} and {len(tagged.loras) for tagged in drawn} == {
        1,
        2,
    }
    assert {tagged.loras[-1].name for tagged in drawn} == {"x", "y"}


def test_more_wildcards_than_a_caption_has_are_drawn_too() -> None:
    assert set(prompting.expand("{a|b}" * 500, 1)) == {"a", "b"}


def wildcards(folder: Path) -> Path:
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    (folder / "colour.txt").write_text("# of foxes\nred\n\n {dark|light} blue \n", encoding="utf-8-sig")
    (folder / "deep" / "fox_kind.txt").write_text("__colour__ fox\n")
    (folder / "loop.txt").write_text("__loop__ __loop__\n")
    (folder / "wide.txt").write_text(" ".join(["__long__"] * 60) + "\n")
    (folder / "long.txt").write_text("x" * 7000 + "\n")
    return folder


def test_wildcards_are_drawn_from_braces_and_files_and_stay_for_a_seed(tmp_path: Path) -> None:
    folder = wildcards(tmp_path / "wildcards")
    drawn = [prompting.expand("a __deep/fox_kind__, {day|night}", seed, folder) for seed in range(40)]
    assert drawn == [prompting.expand("a __deep/fox_kind__, {day|night}", seed, folder) for seed in range(40)]
    assert set(drawn) == {
        f"a {colour} fox, {when}" for colour in ("red", "dark blue", "light blue") for when in ("day", "night")
    }
    two = {
        stream: [prompting.expand("{a|b}", seed, stream=stream) for seed in range(20)]
        for stream in ("prompt", "negative")
    }
    assert two["prompt"] != two["negative"]


def test_shares_weigh_the_alternatives() -> None:
    drawn = [prompting.expand("{3::a|b|0::c}", seed) for seed in range(300)]
    assert 190 < drawn.count("a") < 260 and drawn.count("b") == 300 - drawn.count("a")
    assert prompting.expand("2::a {b} c", 1) == "2::a {b} c"


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("__nothing__", "allowed: colour, deep/fox_kind, long, loop, wide"),
        ("__loop__", "without end"),
        ("__wide__", "characters long"),
        ("{0::a|0::b}", "share 0"),
    ],
)
def test_wildcards_beyond_their_bounds_are_refused(prompt: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        prompting.expand(prompt, 1, wildcards(tmp_path / "wildcards"))
    with pytest.raises(ConfigError, match="no folder|share 0"):
        prompting.expand(prompt, 1)


def test_no_wildcard_leaves_its_folder(tmp_path: Path) -> None:
    folder = wildcards(tmp_path / "wildcards")
    (tmp_path / "secret.txt").write_text("secret\n")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    for prompt in ("__../secret__", f"__{tmp_path}/secret__", "__deep/../../secret__", "__/secret__"):
        assert "secret\n" not in prompting.expand(prompt, 1, folder) and prompting.expand(prompt, 1, folder) == prompt
    with pytest.raises(ConfigError, match="link"):
        prompting.expand("__link__", 1, folder)


# Trigger words.


def test_trigger_words_are_put_in_front_where_they_are_lacking() -> None:
    assert prompting.with_triggers("a Mokka cat", ["mokka", "noto style", "noto style"]) == "noto style, a Mokka cat"
    assert prompting.with_triggers("", ["mokka"]) == "mokka"
    assert prompting.with_triggers("a party", ["art"]) == "art, a party"
    with pytest.raises(ConfigError, match="8009 characters long with its trigger words"):
        prompting.with_triggers("a" * 8000, ["mokka!!"])


def test_a_headers_trigger_phrase_is_split_into_words() -> None:
    assert prompting.split_triggers(" mokka ,mokka,\n big\tcat ") == ["mokka", "big cat"]
    assert prompting.split_triggers("a\0b, " + "x" * 300) == prompting.split_triggers("") == []


# Weights.


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0), ("house", 1.5730000000000004), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006), (".", 1.1),
            ],
        ),
        ("a BREAK (b:2)", [("a ", 1.0), prompting.BREAK, (" ", 1.0), ("b", 2.0)]),
        ("(a:1.1.1) b:2) (c:)", [("a:1.1.1", 1.1), (" b:2) ", 1.0), ("c:", 1.1)]),
        ("", [("", 1.0)]),
    ],
)  # fmt: skip
def test_weights_are_read_as_a1111_reads_them(prompt: str, pieces: list[tuple[str, float]]) -> None:
    weighted = prompting.parse_attention(prompt)
    assert [text for text, _ in weighted] == [text for text, _ in pieces]
    assert [weight for _, weight in weighted] == pytest.approx([weight for _, weight in pieces], rel=1e-12)


def test_weights_beyond_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="gives 'a' the weight 8000; allowed: -20 to 20"):
        prompting.parse_attention("(((a:20):20):20)")


@given(HOSTILE, st.integers(0, 2**32 - 1))
@settings(max_examples=400, deadline=None)
def test_any_prompt_is_read_or_refused_in_words(prompt: str, seed: int) -> None:
    tagged = prompting.take_tags(prompt)
    assert len(tagged.prompt) <= len(prompt)
    for call in (lambda: prompting.parse_attention(prompt), lambda: prompting.expand(prompt, seed)):
        try:
            call()
        except UserError as error:
            assert "prompt" in str(error) and "allowed" in str(error) or "no folder" in str(error)


@pytest.mark.parametrize(
    "piece", ["(", "(a", "[", "{", "{a|", "__", "__a_", "<a:", "<lora:a", "\\", ":1", "BREAK", " ", "{1::", "(a:"]
)
def test_long_prompts_take_no_time(piece: str) -> None:
    for call in (prompting.take_tags, prompting.parse_attention, lambda text: prompting.expand(text, 1)):
        call("{a|b}")  # what is imported at first use is not counted
    prompt, start = (piece * 8000)[:8000], time.thread_time()
    prompting.take_tags(prompt)
    for call in (lambda: prompting.parse_attention(prompt), lambda: prompting.expand(prompt, 1)):
        with suppress(ConfigError):
            call()
    assert since(start) < 1


# Embeddings.


def encoded(pipe: Any, prompt: str) -> torch.Tensor:
    return pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)[0]


def weighted_rows(pipe: Any, prompt: str) -> torch.Tensor:
    return prompting.weighted_embeddings(pipe, prompt)["encoder_hidden_states"][None]


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["", "a fox, night", "a (fox:1)", "grüße \\(x\\)"])
def test_without_weights_the_pipelines_own_embeddings_come_back_bitwise(prompt: str, pipe: Any) -> None:
    plain = prompting.parse_attention(prompt)[0][0]
    assert torch.equal(weighted_rows(pipe, prompt), encoded(pipe, plain))


@torch.no_grad()
def test_weights_multiply_each_tokens_output_and_keep_the_mean(pipe: Any) -> None:
    plain = encoded(pipe, "a red fox")
    num = [len(pipe.tokenizer(word, add_special_tokens=False).input_ids) for word in ("a", "red", "fox")]
    factors = torch.tensor(
        [1.0] + [1.0] * num[0] + [1.5] * num[1] + [0.5] * num[2] + [1.0] * (plain.shape[1] - 1 - sum(num))
    )
    wanted = plain * factors[None, :, None]
    if plain.mean().abs() > 0.1 * plain.std():
        wanted = wanted * (plain.mean() / wanted.mean())
    torch.testing.assert_close(weighted_rows(pipe, "a (red:1.5) (fox:0.5)"), wanted)


@torch.no_grad()
def test_long_prompts_are_encoded_window_by_window_as_in_training(pipe: Any, family: Family) -> None:
    prompt = ", ".join(["a red fox"] * 20)
    chunks = family.num_chunks(pipe, prompt)
    assert chunks > 1 and prompting.num_windows(pipe, prompt) == chunks
    wanted = family.encode_text(pipe, [prompt], chunks)[0]["encoder_hidden_states"][None]
    assert torch.equal(weighted_rows(pipe, prompt), wanted)


def test_a_prompt_of_few_characters_may_fill_several_windows(pipe: Any, family: Family) -> None:
    """In other scripts than the latin one a character is several tokens: nothing was said of what was cut off."""
    short = StackConfig(prompt="一只红色的狐狸在雪地里" * 5)
    assert len(short.prompt) < 75 and prompting.num_windows(pipe, short.prompt) > 1
    assert pipeline_call.is_weighted(pipe, family, short)
    assert not pipeline_call.is_weighted(pipe, family, StackConfig(prompt="a red fox " * 7))


@torch.no_grad()
def test_a_pair_has_as_many_windows_each_and_break_starts_one(pipe: Any) -> None:
    both = [
        row["encoder_hidden_states"][None] for row in prompting.weighted_pair(pipe, "a fox BREAK a (cat:1.2)", "dark")
    ]
    assert both[0].shape == both[1].shape == (1, 2 * pipe.tokenizer.model_max_length, both[0].shape[2])
    assert torch.equal(
        both[0][:, : pipe.tokenizer.model_max_length],
        weighted_rows(pipe, "a fox BREAK b")[:, : pipe.tokenizer.model_max_length],
    )
    assert all(torch.isfinite(embedding).all() for embedding in both)
