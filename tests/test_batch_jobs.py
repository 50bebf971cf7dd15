"""What a batch is told: CSV and TOML from anywhere, names that stay in the folder, and the options of the command."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.batches import defaults, jobs, plan_of
from trainer import families
from trainer.config import BatchConfig, StackConfig, parse
from trainer.config.batch import adapter, check_name, seeds
from trainer.errors import ConfigError, UserError
from trainer.render import jobs_file, picture_names

# Reading.


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("promt,seed\na,1\n", "column 1 is 'promt'; did you mean prompt?"),
        ("seed,seed\n1,1\n", "for the second time"),
        ("prompt:seed\na:1\n", "prompt:seed"),
        ("prompt;sed\na;1\n", "column 2 is 'sed'; did you mean seed?"),
        ("", "is empty"),
        ("\n,,\n", "is empty"),
        ("seed\n1\nx\n-3\n", "row 2 (line 3)"),
        ("seed\n1\nx\n-3\n", "row 3 (line 4)"),
        ("seed,steps\n1,2,3\n", "3 cells; there are 2 columns"),
        ('prompt,seed\n"a\n\nb",x\n', "row 1 (line 2)"),
        ('prompt\n"' + "a" * 200_000, "is a quote left open"),
        ('prompt\n"' + "a\n" * 100_000, "is a quote left open"),
        ('prompt\n"a"b\n', "is not CSV"),
        ("prompt\n\xff\xfe\n", "is not UTF-8 (line 2, byte 7: "),
        ("prompt\na\nun \xe9l\xe8ve\n", "is not UTF-8 (line 3, byte 12: it looks like Windows-1252)"),
        (
            "prompt\n" + "a\n" * 70_000 + "\x83l\x83R\x82\xcc\n",
            "is not UTF-8 (line 70002, byte 140007: it looks like an older encoding, such as Shift-JIS",
        ),
        ("p\0r\0o\0m\0p\0t\0\n\0a\0\n\0", "it looks like UTF-16 without a mark"),
        ("\xff\xfep\0r\0o\0m\0p\0t\0\n\0\0\xd8a\0", "is damaged UTF-16 (line 2, byte 16)"),
        ("size\n12by12\n", "12by12"),
        ("size\n36x32\n", "36"),
        ("name\n../x\n", "'../x'"),
        ("lora\na.safetensors:9\n", "weight is 9"),
        ("steps\n0\n", "steps is '0'"),
        ("base\nno/such\n", "no/such"),
        ("sampler\nnone\n", "'none'"),
        ("mode\nnone\n", "'none'"),
        ("guidance\nnan\n", "guidance_scale"),
    ],
)
def test_a_csv_that_cannot_be_used_says_where_and_why(tmp_path: Path, tiny: Path, text: str, problem: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        plan_of(path, tiny)
    assert problem in str(caught.value)


EXCEL = {  # up to the separator, and the encoding
    "CSV": (",", "utf-8"),
    "CSV UTF-8": (",", "utf-8-sig"),
    "CSV where the comma is the decimal mark": (";", "utf-8-sig"),
    "Unicode text": ("\t", "utf-16"),
    "UTF-16 the other way round": (";", "utf-16-be"),
    "UTF-32": (",", "utf-32"),
    "sep=": ("sep=;", "utf-8"),
}


@pytest.mark.parametrize("kind", EXCEL)
def test_a_csv_is_read_as_spreadsheet_programs_write_it(kind: str, tmp_path: Path) -> None:
    begin, encoding = EXCEL[kind]
    rows = [
        ("prompt", "seed", "negative"),
        ("eine Küche, 猫; hell", "7", ""),
        ("\u0431\u0435\u043b\u043a\u0430", "8", 'a "b"'),
    ]
    written = io.StringIO()
    written.write("sep=;\r\n" if begin.startswith("sep") else "")
    csv.writer(written, delimiter=begin[-1]).writerows(rows)
    bom = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    (tmp_path / "x.csv").write_bytes(bom + written.getvalue().encode(encoding))
    read = list(jobs_file.read(tmp_path / "x.csv", jobs_file.Defaults()))
    assert [(row.stack.prompt, row.stack.seed, row.stack.negative_prompt) for row in read if row.stack] == [
        ("eine Küche, 猫; hell", 7, ""), ("белка", 8, 'a "b"'),
    ]  # fmt: skip
    assert [row.where for row in read] == (
        ["row 1 (line 3)", "row 2 (line 4)"] if begin.startswith("sep") else ["row 1 (line 2)", "row 2 (line 3)"]
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("promts = ['a']", "did you mean prompts?"),
        ("seeds = ['1-x']", "'1-x'"),
        ("seeds = ['0-4294967295']", "4294967296 pictures"),
        ("weights = [nan]", "weights"),
        ("weights = [50]", "50"),
        ("stacks = [['a:1', 'b:2', 3]]", "stacks.0.2"),
        ("stacks = [[{file = 'a', wieght = 1}]]", "wieght"),
        ("name = '/etc/x'", "/etc/x"),
        ("name = '{nmae}'", "{nmae}"),
        ("steps = 0", "steps is 0"),
        ("a = " + "[" * 5000, "not TOML"),
        ("a = " + "9" * 5000, "not TOML"),
        ("version = 2", "version"),
    ],
)
def test_a_toml_that_cannot_be_used_says_why(tmp_path: Path, tiny: Path, text: str, problem: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        plan_of(path, tiny)
    assert problem in str(caught.value)


def test_a_toml_is_every_prompt_with_every_stack_weight_and_seed(tmp_path: Path, tiny: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(
        "prompts=['a','b']\nstacks=[[],['f.safetensors:0.8',{file='g',weight=0.5,text_weight=1}]]\nweights=[0.1,1]\nseeds=[3,'7-8']\nsteps=4\n"
    )
    rows = list(jobs_file.read(path, defaults(tiny, guidance=2.0)))
    stacks = [row.stack for row in rows if row.stack]
    assert len(stacks) == 24 and [row.number for row in rows] == list(range(1, 25))
    assert [(recipe.prompt, recipe.seed) for recipe in stacks[:4]] == [("a", 3), ("a", 7), ("a", 8), ("a", 3)]
    assert {(recipe.steps, recipe.guidance_scale, recipe.width_px) for recipe in stacks} == {(4, 2.0, 32)}
    assert [
        [(adapter.weight, adapter.text_weight) for adapter in stack.adapters]
        for stack in (stacks[0], stacks[6], stacks[9])
    ] == [[], [(0.08, None), (0.05, 0.1)], [(0.8, None), (0.5, 1.0)]]


def test_a_row_leaves_out_what_the_options_say(tmp_path: Path, tiny: Path) -> None:
    path = jobs(
        tmp_path / "x.csv", [("Prompt", "seed", "lora", "size"), ("", 5, "", ""), ("b", "", "g:0.2; h", "64x32")]
    )
    rows = jobs_file.read(path, defaults(tiny, prompt="a", seed=9, lora=("f.safetensors:0.5",)))
    first, second = (row.stack for row in rows)
    assert (
        first and second and (first.prompt, first.seed, first.width_px, first.adapters[0].weight) == ("a", 5, 32, 0.5)
    )
    assert (second.prompt, second.seed, second.width_px, second.height_px) == ("b", 9, 64, 32)
    assert [(adapter.file, adapter.weight) for adapter in second.adapters] == [("g", 0.2), ("h", 1.0)]


# Another value than the default of each setting, and where a batch says it otherwise than by its name: (CSV column,
# TOML key), or why it can't.
OTHER = {
    "family": list(families.registry())[-1], "base": "elsewhere", "mode": "switch", "wide_weights": True, "prompt": "a",
    "negative_prompt": "b",
    "seed": 7, "sampler": "euler", "steps": 3, "guidance_scale": 2.0, "guidance_rescale": 0.25,
    "true_guidance_scale": 2.5, "width_px": 64, "height_px": 64,
}  # fmt: skip
ELSEWHERE = {"prompt": "prompts", "seed": "seeds"}
SIZED = {"width_px": "size", "height_px": "size"}
NOT_SAID = {
    "version": "of the file's own form",
    "adapters": "CSV: lora, by FILE:WEIGHT; TOML: stacks, with all settings; tested above",
}


def test_every_setting_of_a_picture_can_be_said_by_column_by_key_and_by_option(tmp_path: Path, tiny: Path) -> None:
    assert set(OTHER) | set(NOT_SAID) == set(StackConfig.model_fields)
    columns = {setting: column for column, setting in jobs_file.COLUMNS.items() if setting} | SIZED
    for key, value in OTHER.items():
        defaults = jobs_file.Defaults(
            size="32x32", others=(f"{key}={str(value).lower() if isinstance(value, bool) else value}",)
        )
        csv_path = jobs(tmp_path / "x.csv", [("name", columns[key]), ("x", "64x64" if key in SIZED else value)])
        toml = f"{[value]!r}" if key in ELSEWHERE else str(value).lower() if isinstance(value, bool) else repr(value)
        (tmp_path / "x.toml").write_text(f"{ELSEWHERE.get(key, key)} = {toml}\n")
        empty = jobs(tmp_path / "y.csv", [("name",), ("x",)])
        for path, options in (
            (csv_path, jobs_file.Defaults(size="32x32")),
            (tmp_path / "x.toml", jobs_file.Defaults(size="32x32")),
            (empty, defaults),
        ):
            (row,) = jobs_file.read(path, options)
            assert row.stack and getattr(row.stack, key) == value, (key, path, row.problem)


def test_a_row_goes_before_an_option_and_an_option_that_is_none_is_refused(tmp_path: Path) -> None:
    path = jobs(tmp_path / "x.csv", [("mode", "seed"), ("composite", 1), ("", 2)])
    assert [
        row.stack.mode for row in jobs_file.read(path, jobs_file.Defaults(others=("mode=switch",))) if row.stack
    ] == ["composite", "switch"]
    for wrong in ("adapters.0.weight=2", "wieght=1", "version=1"):
        with pytest.raises(ConfigError, match="a batch has no such setting"):
            list(jobs_file.read(path, jobs_file.Defaults(others=(wrong,))))


def test_text_means_a_lora_and_a_seed_range(tmp_path: Path) -> None:
    assert adapter(r"C:\loras\fox.safetensors:-0.5") == {
        "file": r"C:\loras\fox.safetensors",
        "name": "fox",
        "weight": -0.5,
    }
    assert adapter(r"C:\fox.safetensors")["file"] == r"C:\fox.safetensors"
    assert list(seeds("1-3")) == [1, 2, 3] and list(seeds(4)) == [4]


def only_user_errors(path: Path, tiny: Path) -> None:
    try:
        plan_of(path, tiny)
    except UserError as error:
        assert len(str(error)) < 20_000


HOSTILE = st.text(
    st.sampled_from("abc019-+=.,;:/\\\"'\n\r\t\0[]{}é＝\u202e") | st.characters(codec="utf-8"), max_size=60
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(HOSTILE, max_size=6), max_size=6),
    head=st.lists(st.sampled_from([*jobs_file.COLUMNS, "x"]), unique=True, max_size=6),
)
def test_a_hostile_csv_never_gives_a_traceback(
    tmp_path: Path, tiny: Path, rows: list[list[str]], head: list[str]
) -> None:
    only_user_errors(jobs(tmp_path / "x.csv", [head, *rows]), tiny)


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=300))
@pytest.mark.parametrize("ending", ["csv", "toml"])
def test_hostile_bytes_never_give_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, raw: bytes, ending: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"hostile.{ending}"
    path.write_bytes(b"seed,prompt\n" * (ending == "csv") + raw)
    only_user_errors(path, tiny)


VALUES = st.recursive(
    st.integers() | st.floats() | st.booleans() | HOSTILE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3),
)


@settings(max_examples=150, deadline=None)
@given(values=st.dictionaries(st.sampled_from(list(BatchConfig.model_fields)), VALUES, max_size=5))
def test_hostile_settings_are_a_config_or_a_user_error(values: dict[str, object]) -> None:
    with contextlib.suppress(ConfigError):
        assert parse(BatchConfig, values, "x").num_pictures <= 1_000_000


@settings(max_examples=300, deadline=None)
@given(
    template=st.lists(
        st.sampled_from(["{prompt}", "{stack}", "{base}", "{number}", "/", "..", ".", "x", "\\", "{", "~"]) | HOSTILE,
        max_size=8,
    ).map("".join),
    prompt=HOSTILE | st.sampled_from(["../../x", "/etc/passwd", "..", "CON", "a" * 400]),
)
def test_no_name_leads_out_of_the_folder(template: str, prompt: str) -> None:
    try:
        check_name(template)
    except ValueError as error:
        assert str(error).startswith("name is ")
        assume(False)  # what follows is of names that are taken
    stack = StackConfig(prompt=prompt, base=prompt or "x", adapters=({"file": "f", "name": prompt, "weight": 1.0},))  # type: ignore[arg-type]
    name = picture_names.of_row(template, 7, stack, "0" * 32)
    path = PurePosixPath(name)
    assert not path.is_absolute() and path.suffix.lower() in picture_names.ENDINGS
    assert all(
        part not in ("", ".", "..") and not part.startswith(".") and "\\" not in part and len(part.encode()) <= 255
        for part in name.split("/")
    )
    assert path.parts[0] != "contact-sheets"


# The command.


def test_a_dry_run_says_what_there_is_to_do_and_makes_nothing(run_velatura, tmp_path: Path, tiny: Path) -> None:
    path = jobs(tmp_path / "x.csv", [("seed", "lora"), (1, ""), (2, ""), (2, ""), (3, "gone.safetensors:1")])
    result = run_velatura("batch", path, "--base", tiny, "--size", "32x32", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert (
        "4 rows, 3 pictures: 0 already there, 2 to draw" in result.stdout
        and "gone.safetensors" in result.stdout
        and "32x32, 25 steps" in result.stdout
    )
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["x.txt"], "a .toml or a .csv"),
        (["x.csv"], "no such file"),
        (["y.csv", "--out", "x.png"], "a folder"),
        (["y.csv", "--name", "../x"], "'../x'"),
        (["y.csv", "--size", "1"], "--size is '1'"),
        (["y.csv", "--out", "y.csv"], "no folder can be made"),
    ],
)
def test_options_that_cannot_be_used_exit_with_2(
    run_velatura, tmp_path: Path, arguments: list[str], problem: str
) -> None:
    jobs(tmp_path / "y.csv", [("seed",), (1,)])
    result = run_velatura("batch", *arguments)
    assert result.returncode == 2 and problem in result.stderr and "Traceback" not in result.stderr
