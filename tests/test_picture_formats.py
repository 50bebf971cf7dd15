"""PNG, WebP and JPEG through real files: what each carries, for whom, and that damage is said in words."""

import io
import json
import random
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.timing import since
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ConfigError, DataError, UserError
from trainer.render import picture_metadata
from trainer.render.picture_metadata import Picture

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
SUFFIXES = [".png", ".webp", ".jpg", ".jpeg"]
DIGEST = "ab" * 32
# What piexif 1.1.3 makes of {"Exif": {UserComment: UserComment.dump("aé猫", encoding="unicode")}}, as A1111 does.
PIEXIF = (
    b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x87i\x00\x04\x00\x00\x00\x01\x00\x00\x00\x1a\x00\x00\x00\x00"
    b"\x00\x01\x92\x86\x00\x07\x00\x00\x00\x0e\x00\x00\x00(UNICODE\x00\x00a\x00\xe9s+"
)


def picture(**values: object) -> Picture:
    """Noise with a stack and its text, no engine needed."""
    adapter = {"name": "cat", "file": "/home/ann/secret/cat.safetensors", "sha256": DIGEST, "weight": 0.75}
    stack = StackConfig(
        **{
            "prompt": "mokka, „grüß“ 猫 🦊",
            "negative_prompt": "dark",
            "adapters": (AdapterChoice(**adapter),),
            **values,
        }
    )
    pixels = Image.frombytes("RGB", (48, 32), random.Random(0).randbytes(48 * 32 * 3))
    return Picture(pixels, stack, "imprimatura", DIGEST, "DDIM")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_carries_text_and_recipe(suffix: str, tmp_path: Path) -> None:
    made = picture()
    path = picture_metadata.save(made, tmp_path / "deep" / f"x{suffix}")
    carried = picture_metadata.read(path)
    assert carried == picture_metadata.Carried(picture_metadata.travelling(made.stack), made.infotext)
    with path.open("rb") as file:
        assert picture_metadata.read(file) == carried
    with Image.open(path) as opened:
        assert opened.format == picture_metadata.FORMATS[suffix]
        assert opened.format == "JPEG" or opened.convert("RGB").tobytes() == made.image.tobytes()
    assert picture_metadata.save(made, tmp_path / f"again{suffix}").read_bytes() == path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_path_travels(suffix: str, tmp_path: Path) -> None:
    adapter = AdapterChoice(
        name="cat", file="/home/ann/secret/cat.safetensors", sha256=DIGEST, region="mask /home/ann/secret/left.png"
    )
    raw = picture_metadata.save(picture(base=str(tmp_path), adapters=(adapter,)), tmp_path / f"x{suffix}").read_bytes()
    for text in ("ann", "secret", str(tmp_path.parent)):
        assert text.encode() not in raw and text.encode("utf-16-be") not in raw
    assert (
        picture_metadata.travelling(StackConfig(base="/gone/mine"))["base"] == "mine"
        and picture_metadata.travelling(StackConfig(base="owner/model"))["base"] == "owner/model"
    )


def test_the_comment_is_what_a1111_writes() -> None:
    """Byte for byte, but for the inner directory's end: four zeros that TIFF asks for and piexif leaves out."""
    end = PIEXIF.index(b"UNICODE")
    assert (
        picture_metadata._exif("aé猫", {}) == PIEXIF[: end - 4] + (40 + 4).to_bytes(4, "big") + b"\0" * 4 + PIEXIF[end:]
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_long_recipe_fits_every_format(suffix: str, tmp_path: Path) -> None:
    masks = tuple(
        AdapterChoice(name=f"a{number}", sha256=DIGEST, region="mask data:" + "A" * 60_000) for number in range(32)
    )
    made = picture(adapters=masks)
    assert picture_metadata.read(
        picture_metadata.save(made, tmp_path / f"x{suffix}")
    ).recipe == picture_metadata.travelling(made.stack)


def test_a_text_too_long_for_jpeg_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    made = picture(
        prompt="🦊" * 8000, negative_prompt="🦊" * 8000, adapters=(AdapterChoice(name="cat" * 133, sha256=DIGEST),)
    )
    with pytest.raises(ConfigError, match=r"a JPEG holds 65000: save it as .png or .webp"):
        picture_metadata.save(made, tmp_path / "x.jpg")
    assert not list(tmp_path.iterdir())
    assert picture_metadata.read(picture_metadata.save(made, tmp_path / "x.webp")).infotext == made.infotext


def test_another_kind_of_picture_is_refused_and_a_folder_gets_new_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'x.gif'; allowed: .png, .webp, .jpg, .jpeg, or a folder"):
        picture_metadata.save(picture(), tmp_path / "x.gif")
    assert (
        picture_metadata.format_of(tmp_path / "x.JPG") == "JPEG"
        and picture_metadata.format_of(tmp_path / "v1.5") is None
    )
    assert len({picture_metadata.save(picture(), tmp_path / "v1.5") for _ in range(3)}) == 3


def saved(form: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, form, **options)
    file.seek(0)
    return file


def test_the_texts_of_other_tools_are_read() -> None:
    info = PngInfo()
    info.add_text("parameters", "a fox")
    assert picture_metadata.read(saved("PNG", pnginfo=info)) == picture_metadata.Carried(None, "a fox")
    for form in ("JPEG", "WEBP", "PNG"):
        assert picture_metadata.read(saved(form, exif=PIEXIF)) == picture_metadata.Carried(None, "aé猫")
        assert picture_metadata.read(saved(form)) == picture_metadata.Carried(None, "")
    little = PIEXIF.replace("aé猫".encode("utf-16-be"), "aé猫".encode("utf-16-le"))
    assert picture_metadata.read(saved("JPEG", exif=little)).infotext == "aé猫"
    plain = PIEXIF.replace(b"UNICODE\0", b"ASCII\0\0\0").replace("aé猫".encode("utf-16-be"), b"Steps:")
    assert picture_metadata.read(saved("JPEG", exif=plain)).infotext == "Steps:"
    with pytest.raises(DataError, match="carries no Velatura recipe"):
        picture_metadata.read_stack(saved("WEBP", exif=PIEXIF), {})


@given(
    st.binary(max_size=200) | st.integers(0, len(PIEXIF)).map(lambda end: PIEXIF[6:end]),
    st.sampled_from(["JPEG", "WEBP", "PNG"]),
)
@settings(max_examples=200, deadline=None)
def test_any_exif_is_read_or_passed_over(exif: bytes, form: str) -> None:
    picture_metadata.read(saved(form, exif=b"Exif\0\0" + exif))


@pytest.mark.parametrize("suffix", SUFFIXES[:3])
def test_damaged_files_are_refused_in_words(suffix: str, tmp_path: Path) -> None:
    whole = picture_metadata.save(picture(), tmp_path / f"x{suffix}").read_bytes()
    rng, start = random.Random(1), time.thread_time()
    for _ in range(400):
        raw = bytearray(whole[: rng.randint(0, len(whole))] if rng.random() < 0.3 else whole)
        for _ in range(rng.randint(0, 20)):
            if raw:
                raw[rng.randrange(min(len(raw), rng.choice([64, len(raw)])))] = rng.randrange(256)
        try:
            picture_metadata.read_stack(io.BytesIO(bytes(raw)), {})
        except UserError as error:
            assert "picture" in str(error)
    assert since(start) < 20


def test_a_file_that_is_no_picture_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in (tmp_path / "nothing.png", tmp_path):
        with pytest.raises(DataError, match="can't be read as PNG, WebP or JPEG"):
            picture_metadata.read(source)
    path = picture_metadata.save(picture(), tmp_path / "x.webp")
    monkeypatch.setattr(picture_metadata, "_MAX_FILE_BYTES", 100)
    with pytest.raises(DataError, match="MiB; allowed"):
        picture_metadata.read(path)


@given(
    st.text(max_size=100)
    | st.recursive(st.none() | st.integers(), lambda inner: st.lists(inner), max_leaves=5).map(json.dumps)
)
@settings(max_examples=60, deadline=None)
def test_any_recipe_in_a_jpeg_is_read_or_refused_in_words(recipe: str) -> None:
    body = b"velatura_recipe\0" + recipe.encode()
    try:
        picture_metadata.read_stack(saved("JPEG", extra=b"\xff\xef" + struct.pack(">H", len(body) + 2) + body), {})
    except UserError as error:
        assert "picture" in str(error)
