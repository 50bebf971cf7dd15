"""Dynamic prompts against what dynamicprompts 0.31.0 itself gives, and against everything that could grow, hang or
leave its folder.
"""

import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.timing import since
from trainer.config import StackConfig
from trainer.errors import ConfigError, UserError
from trainer.render import prompting, wildcards
from trainer.render.tags import LoraTag

# Every prompt that 300 draws of dynamicprompts' RandomPromptGenerator gave over the files below.
THEIRS = {
    "{a|b}": ["a", "b"],
    "{2$$a|b|c}": ["a,b", "a,c", "b,a", "b,c", "c,a", "c,b"],
    "{1-2$$a|b|c}": ["a", "a,b", "a,c", "b", "b,a", "b,c", "c", "c,a", "c,b"],
    "{2$$ and $$a|b|c}": ["a and b", "a and c", "b and a", "b and c", "c and a", "c and b"],
    "{1-2$$ and $$a|b}": ["a", "a and b", "b", "b and a"],
    "{2-$$a|b|c}": ["a,b", "a,b,c", "a,c", "a,c,b", "b,a", "b,a,c", "b,c", "b,c,a", "c,a", "c,a,b", "c,b", "c,b,a"],
    "{-2$$a|b|c}": ["a", "a,b", "a,c", "b", "b,a", "b,c", "c", "c,a", "c,b"],
    "{0-1$$a|b}": ["", "a", "b"],
    "{3$$a|b}": ["a,b", "b,a"],
    "{2-1$$a|b}": ["a", "a,b", "b", "b,a"],
    "{2$$ | $$a|b}": ["a | b", "b | a"],
    "{0.3::a|0.7::b}": ["a", "b"],
    "{0::a|1::b}": ["b"],
    "{2$$1::a|0::b|3::c}": ["a,c", "c,a"],
    "{2$$ a | b }": ["a ,b ", "b ,a "],
    "{2$${a|b}|c}": ["a,c", "b,c", "c,a", "c,b"],
    "{2$$a}": ["a"],
    "{~a|b}": ["a", "b"],
    "{{a|b}|c}": ["a", "b", "c"],
    "{|a}": ["", "a"],
    "${c=red} a ${c} car": [" a red car"],
    "${c={red|blue}}${c}-${c}": ["blue-blue", "blue-red", "red-blue", "red-red"],
    "${c=!{red|blue}}${c}-${c}": ["blue-blue", "red-red"],
    "${c:green} x": ["green x"],
    "${c:{a|b}} x": ["a x", "b x"],
    "${c} ${c=red}": ["red "],
    "${ c = red }${c}": ["red "],
    "${c=red}{x ${c}|y ${c}}": ["x red", "y red"],
    "${a=x${b}}${b={1|2}}${a}": ["x1", "x2"],
    "${c=!__style__}${c}-${c}": ["ink-ink", "oil-oil"],
    "${c=__style__} ${c} ${c}": [" ink ink", " ink oil", " oil ink", " oil oil"],
    "__style__": ["ink", "oil"],
    "__~style__": ["ink", "oil"],
    "__st*__": ["ink", "jade", "oil"],
    "__animals/*__": ["hound", "lynx"],
    "__cat__": ["lynx"],
    "{2$$__style__}": ["ink,oil", "oil,ink"],
    "{2$$__style__|x}": ["ink,x", "oil,x", "x,ink", "x,oil"],
    "${c=red}__use__": ["a red hat"],
    "__use__": ["a grey hat"],
    "__${w:style}__": ["ink", "oil"],
    "${w=style}__${w}__": ["ink", "oil"],
}
FILES = {
    "style": "oil\n# no\nink\n",
    "stone": "jade\n",
    "animals/cat": "lynx\n",
    "animals/dog": "hound\n",
    "shares": "0::never\n1::always\n",
    "use": "a ${c:grey} hat\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("wildcards")
    for name, text in FILES.items():
        (made / name).parent.mkdir(exist_ok=True)
        (made / f"{name}.txt").write_text(text)
    return made


@pytest.mark.parametrize("prompt", THEIRS)
def test_a_prompt_is_drawn_as_dynamicprompts_draws_it(prompt: str, folder: Path) -> None:
    drawn = [wildcards.expand(prompt, seed, folder) for seed in range(300)]
    assert sorted(set(drawn)) == THEIRS[prompt]
    assert drawn[:20] == [wildcards.expand(prompt, seed, folder) for seed in range(20)]


def test_shares_hold_among_several_and_in_files(folder: Path) -> None:
    """Two of three by 1 : 0 : 3 without putting back: c comes first in 3 of 4. Of the lines of a file only those with a
    share.
    """
    firsts = [wildcards.expand("{2$$1::a|0::b|3::c}", seed)[0] for seed in range(400)]
    assert 270 < firsts.count("c") < 330
    assert {wildcards.expand("__shares__", seed, folder) for seed in range(20)} == {"always"}


def test_a_variable_that_keeps_what_it_was_is_set_only_where_it_has_no_value() -> None:
    assert wildcards.expand("${c=red}${c?=blue}${c}", 1) == "red" and wildcards.expand("${c?=blue}${c}", 1) == "blue"


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("${c} x", r"\$\{c\}, which has no value"),
        ("${c=red} ${colour}", r"\$\{colour\}, which has no value; allowed: \$\{c\}"),
        ("${a=${b}}${b=${a}}${a}", "without end"),
        ("${5}", "begins with a letter"),
        ("{x|${c=red}}", "set outside other braces"),
        ("${c=red", r"\$\{ without its \}"),
        ("%{a ...$$b}", "wraps words"),
        ("{@a|b}", "take turns"),
        ("{!a|b}", "take turns"),
        ("{x$$a|b}", "follows a number"),
        ("__nothing*__", "has no nothing"),
        (
            "${a=xxxxxxxxxxxxxxxx}"
            + "".join(f"${{{b}=${{{a}}}${{{a}}}${{{a}}}${{{a}}}}}" for a, b in zip("abcde", "bcdef", strict=True))
            + "${f}",
            "without end",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(prompt: str, says: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        wildcards.expand(prompt, 1, folder)
    assert "prompt has" in str(refused.value) and "allowed:" in str(refused.value)


def test_a_name_with_a_star_leaves_its_folder_no_more_than_another(folder: Path, tmp_path: Path) -> None:
    inner = tmp_path / "wildcards"
    inner.mkdir()
    (tmp_path / "secret.txt").write_text("secret\n")
    (inner / "link.txt").symlink_to(tmp_path / "secret.txt")
    for prompt in ("__l*__", "__*__", "__**/secret__", "__..*__", "__*/../secret__", "__../*__"):
        with suppress(ConfigError):
            assert "secret\n" not in wildcards.expand(prompt, 1, inner) and wildcards.expand(prompt, 1, inner) == prompt


# Tags.


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_file_of_wildcards_is_read_as_editors_save_it(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "beasts.txt").write_bytes("猫\r\n".encode(encoding))
    assert wildcards.expand("__beasts__", 1, tmp_path) == "猫"


def test_a_file_of_wildcards_in_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "beasts.txt").write_bytes("cat\nélève\n".encode("cp1252"))
    with pytest.raises(
        ConfigError, match=r"beasts.txt of the wildcards .* is not UTF-8 \(line 2, byte 4: it looks like Windows-1252\)"
    ):
        wildcards.expand("__beasts__", 1, tmp_path)


@pytest.mark.parametrize("name", ["my__style__v1", "a__b__c", "x__y", "__init__ner"])
def test_a_file_name_with_underscores_is_no_wildcard_in_a_tag(name: str) -> None:
    assert prompting.spelled_out(f"a <lora:{name}:0.8> fox", 1).loras == (LoraTag(name, 0.8),)


def test_a_tag_may_be_drawn_and_a_name_of_nothing_but_a_wildcard_is_one(tmp_path: Path) -> None:
    (tmp_path / "styles.txt").write_text("ink_v1\n")
    assert prompting.spelled_out("<lora:__styles__:0.5>", 1, tmp_path).loras == (LoraTag("ink_v1", 0.5),)
    assert (
        prompting.spelled_out("{<lora:my__x__1:1>|<lora:my__x__1:1>} __styles__", 1, tmp_path).prompt.strip()
        == "ink_v1"
    )


# Hostile.

HOSTILE = st.lists(
    st.sampled_from([*"{}|$%=:!?~@_*-.ab12 <>\\", "${", "$$", "2$$", "__", "${a=", "${a}", "1-2$$", "::", "<lora:"]),
    max_size=120,
).map("".join)


def is_drawn_or_refused(prompt: str, seed: int, folder: Path) -> None:
    try:
        drawn = wildcards.expand(prompt, seed, folder)
    except UserError as error:
        assert "prompt" in str(error) or "wildcards" in str(error)
        return
    assert len(drawn) <= max(wildcards.MAX_CHARS, len(prompt)) and wildcards.expand(drawn, seed + 1, folder) == drawn


@given(HOSTILE, st.integers(0, 2**32 - 1))
@settings(max_examples=300, deadline=None)
def test_any_prompt_is_drawn_or_refused_in_words(folder: Path, prompt: str, seed: int) -> None:
    is_drawn_or_refused(prompt, seed, folder)


PIECES = [
    "{",
    "${",
    "{a|",
    "$$",
    "2$$",
    "{2$$a|",
    "${a",
    "${a=",
    "__*",
    "__a*",
    "{{",
    "}",
    "{}",
    "|",
    "{a|b}",
    "${a:",
    "{1::",
    "__~",
    "<lora:__a",
    "%{",
    "$${",
]


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("end", ["", "}", "__"])
def test_long_prompts_take_no_time(piece: str, end: str, folder: Path) -> None:
    wildcards.expand("{a|b}", 1)
    count = 8000 // (len(piece) + len(end))
    start = time.thread_time()
    for prompt in (piece * count + end * count, (piece + end) * count):
        with suppress(ConfigError):
            wildcards.expand(prompt, 1, folder)
    assert since(start) < 2


def test_the_whole_path_of_a_stack_draws_what_it_says(tmp_path: Path) -> None:
    made = prompting.without_tags(
        StackConfig(prompt="${c=!{red|blue}}a ${c} fox, {2$$ and $$day|night}", seed=3), tmp_path, dict
    )
    assert made.prompt in {f"a {c} fox, {when}" for c in ("red", "blue") for when in ("day and night", "night and day")}
    assert prompting.without_tags(made, tmp_path, dict) == made
