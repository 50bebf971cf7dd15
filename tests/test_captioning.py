"""Captions by a local model: what becomes of what it says, which pictures get them, and that none is lost."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests import captioners
from trainer.captioning import kinds, rules, wd_tagger, writing
from trainer.data import edits
from trainer.errors import ConfigError, DataError, ModelError

ROOT = Path(__file__).parents[1]
WORDS = st.sampled_from(
    ["red scarf", "scarf", "red", "brown hair", "a", "and", "with", "fox", "in", "the", "snow", "of"]
)
JOINS = st.sampled_from([" ", ", ", ". ", " and ", ", and "])
PROSE = st.lists(st.tuples(WORDS, JOINS), max_size=14).map(lambda parts: "".join(word + join for word, join in parts))
LEFT_OUT = ("red scarf", "brown hair")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny random model of a kind, made once."""
    home = tmp_path_factory.mktemp("captioners")

    def model(name: str) -> Path:
        folder = home / name
        return folder if folder.is_dir() else getattr(captioners, name)(folder)

    return model


def draw(folder: Path, num: int, captions: dict[int, str] | None = None) -> Path:
    """A set of small pictures, some with captions."""
    folder.mkdir(parents=True)
    for number in range(num):
        Image.new("RGB", (40, 32), (number * 40 % 255, 90, 200)).save(folder / f"{number}.png")
        if text := (captions or {}).get(number):
            (folder / f"{number}.txt").write_text(text)
    return folder


def texts(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.txt"))}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer", "dataset", "caption", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)


# What becomes of what a model says.


@pytest.mark.parametrize(
    ("raw", "made"),
    [
        ("a woman with brown hair and a red scarf, standing in a park.", "mokka, a woman, standing in a park."),
        ("a woman with a red scarf and a hat", "mokka, a woman with a hat"),
        ("a woman with a hat, a red scarf, and boots", "mokka, a woman with a hat, and boots"),
        ("1girl, solo, red_scarf, long brown hair, Brown Hair, park", "mokka, 1girl, solo, long brown hair, park"),
        ("A girl. She has brown hair and is wearing a red scarf. She smiles.", "mokka, A girl. She smiles."),
        ("Red scarf.", "mokka"),
        ("Red scarf. Red scarf. A scarf.", "mokka, A scarf."),
        ("mokka, in the snow", "mokka, in the snow"),
        ("a girl\nin the  snow ,", "mokka, a girl in the snow"),
    ],
)
def test_what_a_characters_trigger_means_is_left_out(raw: str, made: str) -> None:
    assert rules.caption(raw, rules.rules("character", "mokka", "red scarf, brown hair")) == made


@pytest.mark.parametrize(
    ("raw", "made"),
    [
        ("a painting of a fox in the snow", "a fox in the snow"),
        ("A fox in the style of Van Gogh, with a tree", "A fox, with a tree"),
        ("This is a digital painting of a fox", "This is a fox"),
        ("fox, snow, watercolor, in the style of monet", "fox, snow"),
        ("an illustration", ""),
    ],
)
def test_a_styles_own_words_are_left_out(raw: str, made: str) -> None:
    assert rules.caption(raw, rules.rules("style", "", None)) == made


@settings(max_examples=300, deadline=None)
@given(PROSE)
def test_no_phrase_that_is_left_out_remains_and_nothing_else_is_hurt(raw: str) -> None:
    assume(not rules.looks_like_tags(rules.tidied(raw)))
    made = rules.caption(raw, rules.Rules("character", "", LEFT_OUT))
    assert not any(re.search(rf"(?<!\w){phrase}(?!\w)", made, re.IGNORECASE) for phrase in LEFT_OUT)
    assert "  " not in made and ",," not in made and "\x00" not in made and not made.startswith((",", " ", "."))
    left, said = made.lower().split(), raw.lower().split()
    for word in ("fox", "snow"):  # no lead, no part of a phrase
        assert sum(word in part for part in left) == sum(word in part for part in said)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200), st.lists(st.text(max_size=12), max_size=4), st.sampled_from(["", "mokka", "sks dog"]))
def test_any_text_gives_one_line_with_the_trigger_once_in_front(raw: str, unwanted: list[str], trigger: str) -> None:
    asked = rules.Rules("character", trigger, tuple(unwanted))
    made = rules.caption(raw, asked)
    assert "\n" not in made and made == made.strip()
    assert made.startswith(trigger) and not made.startswith(f"{trigger}, {trigger}, " if trigger else "\n")
    assert rules.with_trigger(made, trigger) == made


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["1girl", "red scarf", "red_scarf", "scarf", "long hair", "^_^"]), min_size=3, max_size=9)
)
def test_of_tags_exactly_the_whole_ones_go(tags: list[str]) -> None:
    made = rules.caption(", ".join(tags), rules.Rules("character", "", ("red scarf",)))
    assert made == ", ".join(tag for tag in tags if tag not in ("red scarf", "red_scarf"))


def test_a_purpose_and_a_list_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="character or style"):
        rules.rules("animal", "", None)
    with pytest.raises(ConfigError, match="allowed: up to 200"):
        rules.rules("style", "", ",".join(map(str, range(300))))


# Models.


@pytest.mark.parametrize("name", ["blip", "florence2", "llava", "qwen_vl"])
def test_every_kind_of_model_captions_what_has_none(name: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    folder = draw(tmp_path / "set", 3, {1: "mine"})
    asked = rules.rules("character", "mokka", "")
    wanted = writing.Wanted(folder, asked, False, "Captions", "captions x")
    events = list(writing.write(wanted, kinds.opener(models(name), "character", ""), lambda: False))
    captioned = [event for event in events if isinstance(event, writing.Captioned)]
    assert [event.name for event in captioned] == ["0.png", "2.png"] and captioned[-1].left_s == 0
    assert texts(folder) == {"0": f"{captioned[0].caption}\n", "1": "mine", "2": f"{captioned[1].caption}\n"}
    assert all(event.caption.startswith("mokka") for event in captioned)
    # One edit, and one undo takes it back.
    assert [edit.num_pictures for edit in edits.history(folder)] == [2]
    edits.undo(folder)
    assert texts(folder) == {"1": "mine"}


def test_an_instruction_reaches_a_chat_model_and_changes_what_it_says(
    models: Callable[[str], Path], tmp_path: Path
) -> None:
    picture = Image.new("RGB", (40, 32), "navy")
    said = {told: kinds.opener(models("llava"), "style", told)()(picture) for told in ("", "Say tags.", "zzzz 9 9 9")}
    assert len(set(said.values())) > 1
    assert all("assistant" not in text and "<image>" not in text for text in said.values())  # the answer alone


@pytest.mark.parametrize(
    ("name", "instruction", "words"),
    [
        ("blip", "tell me all", "takes no instruction"),
        ("florence2", "<OD>", "<MORE_DETAILED_CAPTION>"),
        ("llava", "x" * 5000, "1 to 4,000"),
    ],
)
def test_an_instruction_that_a_kind_cannot_take_is_refused_before_it_is_opened(
    name: str, instruction: str, words: str, models: Callable[[str], Path]
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        kinds.opener(models(name), "style", instruction)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no config.json"),
        ({"config.json": "{"}, "can't be read"),
        ({"config.json": "[" * 100_000}, "can't be read"),
        ({"config.json": '{"model_type": "bert"}'}, "allowed: .*blip"),
        ({"config.json": '{"model_type": ["blip"]}'}, "allowed: .*blip"),
        ({"config.json": '{"model_type": "blip"}'}, "no weights"),
        ({"config.json": '{"model_type": "florence2"}', "pytorch_model.bin": "x"}, "run any code.*florence-community"),
        ({"config.json": '{"model_type": "llava"}', "model.safetensors.index.json": '{"weight_map": {"a": "../x"}}'},
         "lacks ../x"),
        ({"config.json": '{"model_type": "llava"}', "model.safetensors.index.json": '{"weight_map": 1}'},
         "can't be read"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_such_model_is_refused_in_words(files: dict[str, str], words: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=words):
        kinds.opener(tmp_path, "character", "")


def test_code_that_comes_with_a_model_is_never_run(models: Callable[[str], Path], tmp_path: Path) -> None:
    """A folder that names code of its own for everything, of a kind that transformers has too."""
    folder = captioners.blip(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    names = ("AutoConfig", "AutoProcessor", "AutoModel", "AutoModelForImageTextToText")
    config["auto_map"] = {name: "evil.Evil" for name in names}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\nclass Evil: pass\n")
    assert kinds.opener(folder, "character", "")()(Image.new("RGB", (40, 32)))
    assert not (tmp_path / "owned").exists()


def test_damaged_weights_end_in_a_sentence(models: Callable[[str], Path], tmp_path: Path) -> None:
    folder = captioners.blip(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"\xff" * 200)
    with pytest.raises(ModelError, match="can't be opened"):
        kinds.opener(folder, "character", "")()


# WD taggers: the list of tags and what is made of the answers. The network itself needs timm or onnxruntime.


def tagger(folder: Path) -> Path:
    folder.mkdir()
    rows = [("general", 9), ("explicit", 9), ("1girl", 0), ("long_hair", 0), ("^_^", 0), ("mokka_(fox)", 4), ("hat", 0)]
    with (folder / "selected_tags.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["tag_id", "name", "category", "count"])
        out.writerows([number, *row, 1] for number, row in enumerate(rows))
    return folder


def test_tags_are_chosen_by_how_sure_the_model_is(tmp_path: Path) -> None:
    tags = wd_tagger.tags_of(tagger(tmp_path / "wd"))
    assert wd_tagger.tag_caption(tags, [0.9, 0.8, 0.99, 0.36, 0.7, 0.86, 0.34]) == "mokka (fox), 1girl, ^_^, long hair"
    assert wd_tagger.tag_caption(tags, [0.9, 0.8, 0.99, 0.1, 0.1, 0.84, 0.1]) == "1girl"
    with pytest.raises(ModelError, match="another model"):
        wd_tagger.tag_caption(tags, [0.5])


def test_a_picture_is_squared_on_white_and_blue_comes_first() -> None:
    pixels = wd_tagger.prepared(Image.new("RGB", (64, 32), (250, 100, 10)), 64)
    assert pixels.shape == (64, 64, 3) and pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[32, 32].tolist() == [10, 100, 250]


def test_a_tagger_says_which_library_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tagger(tmp_path / "wd")
    monkeypatch.setattr(wd_tagger, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="no weights"):
        kinds.opener(folder, "style", "")
    (folder / "model.onnx").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"not installed: onnxruntime \(pip install onnxruntime\)\.$"):
        kinds.opener(folder, "style", "")
    (folder / "model.safetensors").write_bytes(b"x")
    (folder / "config.json").write_text('{"architecture": "vit_base_patch16_224"}')
    with pytest.raises(ModelError, match="timm .* or onnxruntime"):
        kinds.opener(folder, "style", "")
    (folder / "selected_tags.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ModelError, match="selected_tags.csv that can't be read"):
        kinds.opener(folder, "style", "")


def test_a_tagger_runs_by_onnxruntime(tmp_path: Path) -> None:
    """A network of one layer: blue gives the third tag, red the sixth; bytes that are none are refused."""
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    folder, make = tagger(tmp_path / "wd"), onnx.helper
    weights = numpy.zeros((3, 7), dtype=numpy.float32)
    weights[0, 2] = weights[2, 5] = 0.02
    bias = numpy.array([9, 9, -2, -2, -2, -2, -2], dtype=numpy.float32)
    nodes = [
        make.make_node("ReduceMean", ["input"], ["mean"], axes=[1, 2], keepdims=0),
        make.make_node("Gemm", ["mean", "weights", "bias"], ["logits"]),
        make.make_node("Sigmoid", ["logits"], ["output"]),
    ]
    ends = [
        make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("input", ["batch", 448, 448, 3]), ("output", ["batch", 7]))
    ]
    constants = [onnx.numpy_helper.from_array(weights, "weights"), onnx.numpy_helper.from_array(bias, "bias")]
    graph = make.make_graph(nodes, "tagger", ends[:1], ends[1:], constants)
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 13)], ir_version=8), folder / "model.onnx")
    describe = kinds.opener(folder, "character", "")()
    assert describe(Image.new("RGB", (64, 64), (0, 0, 250))) == "1girl"
    assert describe(Image.new("RGB", (64, 64), (250, 0, 0))) == "mokka (fox)"
    (folder / "model.onnx").write_bytes(b"junk")
    with pytest.raises(ModelError, match="model.onnx that can't be opened"):
        kinds.opener(folder, "character", "")()


# Which pictures.


def saying(*answers: str) -> Callable[[], Callable[[Image.Image], str]]:
    """What opens a model that gives these answers, one after the other."""
    left = iter(answers)
    return lambda: lambda picture: next(left)


def write(
    folder: Path, opener: Callable[[], Callable[[Image.Image], str]], every: bool = False, stop: int = 99
) -> list:
    wanted = writing.Wanted(folder, rules.rules("character", "mokka", ""), every, "Captions by x", "captions 1")
    events = []
    for event in writing.write(wanted, opener, lambda: len(events) > stop):
        events.append(event)
    return events


def test_a_stop_and_going_on_looks_at_no_picture_twice_and_is_one_edit(tmp_path: Path) -> None:
    folder = draw(tmp_path / "set", 4, {0: "old", 3: "old"})
    assert write(folder, saying("a", "b"), every=True, stop=2)[-1].stopped
    assert [event.name for event in write(folder, saying("c", "d"), every=True)[1:-1]] == ["2.png", "3.png"]
    assert texts(folder) == {str(number): f"mokka, {said}\n" for number, said in enumerate("abcd")}
    edit = edits.undo(folder)
    assert edit and edit.edit.num_pictures == 4 and not edit.left and texts(folder) == {"0": "old", "3": "old"}


def test_a_caption_written_meanwhile_stays(tmp_path: Path) -> None:
    folder = draw(tmp_path / "set", 3)

    def opener() -> Callable[[Image.Image], str]:
        def describe(picture: Image.Image) -> str:
            (folder / "0.txt").write_text("a person's")  # while the model looks at it
            (folder / "1.txt").write_text("a person's")  # before it does
            return "a fox"

        return describe

    events = write(folder, opener)
    assert [event.name for event in events if isinstance(event, writing.Skipped)] == ["0.png", "1.png"]
    assert texts(folder) == {"0": "a person's", "1": "a person's", "2": "mokka, a fox\n"}
    edits.undo(folder)
    assert texts(folder) == {"0": "a person's", "1": "a person's"}


def test_a_kill_between_the_log_and_the_file_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = draw(tmp_path / "set", 2)
    write(folder, saying("a", "b"), stop=1)
    with monkeypatch.context() as patch:
        patch.setattr(edits, "_put", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write(folder, saying("b"))
    assert texts(folder) == {"0": "mokka, a\n"}
    assert write(folder, saying())[0] == writing.Planned(2, 2, 2)
    assert texts(folder) == {"0": "mokka, a\n", "1": "mokka, b\n"}


def test_a_picture_that_does_not_open_is_named_and_the_others_are_captioned(tmp_path: Path) -> None:
    folder = draw(tmp_path / "set", 2)
    (folder / "0.png").write_bytes(b"\x89PNG not")
    skipped, captioned = write(folder, saying("a"))[1:3]
    assert skipped.name == "0.png" and "not a picture" in skipped.why and captioned.name == "1.png"


def test_a_file_is_no_set(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(DataError, match="must be a folder"):
        write(tmp_path / "x.zip", saying())


# The command.


def test_the_command_writes_captions_and_a_dry_run_none(models: Callable[[str], Path], tmp_path: Path) -> None:
    folder = draw(tmp_path / "set", 2)
    hostile = "$(touch owned)\x1b[31m"
    arguments = (folder, "--model", models("blip"), "--trigger", hostile, "--leave-out=-x, .*", "--dry-run")
    done = run(*arguments)
    assert done.returncode == 0 and "2 captioned, 0 not" in done.stdout and "\x1b" not in done.stdout, done.stderr
    assert not texts(folder) and not (folder / ".edits").exists()
    done = run(*arguments[:-1], "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["planned", "captioned", "captioned", "ended"]
    assert set(texts(folder)) == {"0", "1"}
    assert edits.history(folder)[0].what == "Captions by blip"


def test_the_command_says_in_words_what_is_wrong(tmp_path: Path) -> None:
    done = run(draw(tmp_path / "set", 1), "--model", tmp_path / "none", "--for", "style")
    assert done.returncode == 2 and "is no folder" in done.stderr and "Traceback" not in done.stderr
