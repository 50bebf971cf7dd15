"""What a file really is that is called `.safetensors`: a web page, a pointer of Git LFS, an archive, half a download.

Its first bytes tell; nothing is run or unpacked.
"""

from __future__ import annotations

import string

MOST_BYTES = 512  # of a file's start that are looked at
_AGAIN = "Download the file itself again"
_UNPACK = "Unpack it, and take the .safetensors file that is in it."
_PICKLE = (
    "a pickle (.pt, .ckpt, .bin), which can run anything and is not opened. Take the same file as .safetensors, "
    "or convert it with its own tool."
)
# First bytes -> what the file is, and what to do.
_KINDS = (
    (
        b"version https://git-lfs",
        f"a pointer of Git LFS, of a repository that was copied without its large files. {_AGAIN}: run `git lfs pull` "
        f"in it.",
    ),
    (
        b"PK\x03\x04",
        f"a zip archive, or a PyTorch file (.pt, .ckpt, .bin), which is one too. {_UNPACK} PyTorch files are pickles "
        f"and not opened.",
    ),
    (b"\x1f\x8b", f"a gzip archive. {_UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive. {_UNPACK}"),
    (b"Rar!", f"a RAR archive. {_UNPACK}"),
    (b"BZh", f"a bzip2 archive. {_UNPACK}"),
    (b"\xfd7zXZ", f"an xz archive. {_UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"a zstd archive. {_UNPACK}"),
    (b"GGUF", "a GGUF model, of llama.cpp or ComfyUI-GGUF. LoRAs are read as .safetensors; take that one."),
    (b"\x93NUMPY", "a NumPy array. LoRAs are read as .safetensors; take that one."),
    (b"\x89HDF", "an HDF5 file, as Keras writes them. LoRAs are read as .safetensors; take that one."),
    (b"\x89PNG", "a PNG picture, perhaps the preview of the LoRA. Take the file beside it."),
    (b"\xff\xd8\xff", "a JPEG picture, perhaps the preview of the LoRA. Take the file beside it."),
    (b"RIFF", "a WebP picture or a recording, perhaps the preview of the LoRA. Take the file beside it."),
    (b"GIF8", "a GIF picture, perhaps the preview of the LoRA. Take the file beside it."),
    (b"%PDF", "a PDF document. Take the file with the LoRA itself."),
    *((bytes([0x80, protocol]), _PICKLE) for protocol in (2, 3, 4, 5)),
)


def explain(name: str, size: int, start: bytes, length: int, limit: int) -> str:
    """A sentence on what the file `name` of `size` bytes is, and what to do.

    `start` are its first bytes, `length` the length of the header by them, and `limit` the longest that is allowed.
    """
    # Empty, by its first bytes, or a tar archive, which is marked further on.
    if not size:
        return f"{name} is empty: its download was not finished. {_AGAIN}."
    if not start.strip(b"\x00"):
        return f"{name} starts with nothing but zeros: its download was not finished. {_AGAIN}."
    for first, kind in _KINDS:
        if start.startswith(first):
            return f"{name} is not a safetensors file but {kind}"
    if start[257:262] == b"ustar":
        return f"{name} is not a safetensors file but a tar archive. {_UNPACK}"
    # Texts.
    text = _text(start)
    if text.lower().startswith(("<!doctype", "<html", "<head", "<?xml", "<error", "<!--", "<script")):
        page = "a page of a website (HTML), mostly of one that asks to sign in"
        return f"{name} is not a safetensors file but {page}. {_AGAIN}, signed in, from its download button."
    if text.startswith(("{", "[")):
        return (
            f"{name} is not a safetensors file but JSON: {text[:80]!r}. {_AGAIN}; a website's answer or a settings "
            f"file was saved in its place."
        )
    if text:
        return f"{name} is not a safetensors file but a text: {text[:80]!r}. {_AGAIN}."
    # A safetensors file that ends in its header, or no such file.
    if start[8:9] == b"{" and length <= limit:
        return (
            f"{name} is cut off in its header: {size} bytes are there, and its header alone has {8 + length}. {_AGAIN}."
        )
    return (
        f"{name} is not a safetensors file: its header claims {length} bytes of {size}; allowed: up to {limit}. "
        f"{_AGAIN}, or take another."
    )


def _text(start: bytes) -> str:
    """The first bytes as text; nothing if they are none."""
    has_utf16_mark = start[:2] in (b"\xff\xfe", b"\xfe\xff")
    for encoding in ("utf-16", "utf-8-sig") if has_utf16_mark else ("utf-8-sig",):
        whole = start[: len(start) // 4 * 4] if encoding == "utf-16" else start  # no half of a character at the end
        text = whole.decode(encoding, "ignore")
        if text.strip() and sum(char in string.printable or char.isalpha() for char in text) > 0.97 * len(text):
            return text.strip()
    return ""
