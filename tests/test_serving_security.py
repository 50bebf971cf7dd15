"""Who may ask a server for what: keys, quotas, hosts, hostile requests, and what one key never learns of another."""

from __future__ import annotations

import base64
import hmac
import http.client
import io
import json
import pickle
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from serving_parts import Served, asked, made_keys, openai, picture, random_lora, serving, with_loras
from typer.testing import CliRunner

from trainer import cli
from trainer.errors import ConfigError
from trainer.render import picture_metadata
from trainer.render.engine import Engine
from trainer.serving import image_request, keys, server
from trainer.serving.api_error import ApiError
from trainer.serving.quotas import Quotas
from trainer.serving.settings import ServeSettings


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def workspace(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_loras(engine, tmp_path_factory.mktemp("served"), "cat")


@pytest.fixture(scope="module")
def two(engine: Engine, workspace: Path) -> Iterator[tuple[Served, str, str]]:
    """A server with uploads, and the keys of two tenants."""
    file = workspace / "keys.toml"
    first, second = made_keys(file, "ann", "ben", upload_bytes=3_000_000)
    with serving(engine, workspace, keys=file, uploads=True) as running:
        yield running, first, second


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def upload(served: Served, key: str, raw: bytes, name: str = "mine") -> tuple[int, Any, dict[str, str]]:
    return asked(served, f"/v1/loras?name={name}", raw, **bearer(key))


# Keys.


def test_a_key_is_printed_once_and_kept_as_a_digest(tmp_path: Path) -> None:
    file = tmp_path / "serve" / "keys.toml"
    runner = CliRunner()
    added = runner.invoke(cli.app, ["serve", "keys", "add", "ann", "--keys", str(file), "--weight", "2"])
    key = added.output.strip()
    assert added.exit_code == 0 and len(key) > 40
    assert key not in file.read_text() and keys.digest(key) in file.read_text()
    listed = runner.invoke(cli.app, ["serve", "keys", "list", "--keys", str(file)])
    assert "ann: weight 2" in listed.output and key not in listed.output
    if sys.platform != "win32":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    ring = keys.KeyRing(file)
    assert getattr(ring.of(f"Bearer {key}"), "name", "") == "ann"
    keys.add(file, keys.Key(name="ben"))
    runner.invoke(cli.app, ["serve", "keys", "remove", "ann", "--keys", str(file)])
    assert ring.of(f"Bearer {key}") is None


def test_every_digest_is_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.toml"
    first, *_ = made_keys(file, "a", "b", "c")
    ring, compared, real = keys.KeyRing(file), [], hmac.compare_digest

    def counted(left: str, right: str) -> bool:
        compared.append(left)
        return real(left, right)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    assert getattr(ring.of(f"Bearer {first}"), "name", "") == "a"
    assert len(compared) == 3


@pytest.mark.parametrize("name", ["", "../x", "a b", "x" * 65, "a\n", "local"])
def test_a_name_that_is_none_makes_no_key(name: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ValueError)):
        keys.add(tmp_path / "keys.toml", keys.Key(name=name))


def test_a_file_of_keys_that_is_damaged_meanwhile_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    (key,) = made_keys(file, "ann")
    ring = keys.KeyRing(file)
    file.write_text("not = [toml")
    assert ring.of(f"Bearer {key}") is not None and "TOML" in ring.problem
    with pytest.raises(ConfigError):
        keys.KeyRing(file)
    with pytest.raises(ConfigError, match="has no key"):
        keys.KeyRing(tmp_path / "none.toml")


def test_another_host_needs_keys(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "192.168.1.1", "::", "example.org"):
        with pytest.raises(ConfigError, match="keys"):
            server.check(ServeSettings(base="imprimatura", workspace=tmp_path, host=host))
    server.check(ServeSettings(base="imprimatura", workspace=tmp_path, host="0.0.0.0", keys=tmp_path / "keys.toml"))


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}])
def test_without_a_key_nothing_is_said(two: tuple[Served, str, str], headers: dict[str, str]) -> None:
    served = two[0]
    for path in ("/v1/models", "/v1/models/imprimatura", "/v1/loras", "/metrics"):
        status, body, _ = asked(served, path, **headers)
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    assert asked(served, "/v1/images/generations", {"prompt": "x"}, **headers)[0] == 401
    assert asked(served, "/v1/loras?name=x", b"x", **headers)[0] == 401
    assert asked(served, "/health")[0] == 200


def test_the_client_says_that_a_key_is_wrong(two: tuple[Served, str, str]) -> None:
    with pytest.raises(openai.AuthenticationError):
        two[0].client("wrong").models.list()


# Quotas.


def test_requests_a_minute_are_counted_and_come_back(tmp_path: Path) -> None:
    now = [1_700_000_000.0]
    quotas = Quotas(tmp_path / "x.json", lambda: now[0])
    key = keys.Key(name="ann", requests_per_minute=2, pictures_per_day=5)
    quotas.ask(key)
    quotas.ask(key)
    with pytest.raises(ApiError) as refused:
        quotas.ask(key)
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert 29 <= int(refused.value.headers["retry-after"]) <= 30
    quotas.ask(keys.Key(name="ben", requests_per_minute=2))
    now[0] += 31
    quotas.ask(key)


def test_pictures_a_day_outlast_a_new_start_and_end_with_the_day(tmp_path: Path) -> None:
    now = [1_700_000_000.0]
    key = keys.Key(name="ann", pictures_per_day=5)
    quotas = Quotas(tmp_path / "x.json", lambda: now[0])
    quotas.give_back(key, 1, quotas.take(key, 4))
    quotas.save()
    again = Quotas(tmp_path / "x.json", lambda: now[0])
    again.take(key, 2)
    with pytest.raises(ApiError) as refused:
        again.take(key, 1)
    assert (refused.value.status, refused.value.code) == (429, "insufficient_quota")
    now[0] += 86_400
    again.take(key, 5)


def test_a_quota_is_answered_with_retry_after(engine: Engine, workspace: Path) -> None:
    file = workspace / "few.toml"
    (key,) = made_keys(file, "few", requests_per_minute=3, pictures_per_day=1)
    with serving(engine, workspace, keys=file) as running:
        assert picture(running, key, steps=1)[0] == 200
        status, body, headers = picture(running, key, steps=1)
        assert (status, body["error"]["code"]) == (429, "insufficient_quota") and int(headers["retry-after"]) > 0
        assert picture(running, key)[0] == 429
        status, body, headers = picture(running, key)
        assert body["error"]["code"] == "rate_limit_exceeded" and int(headers["retry-after"]) >= 1


# Hosts, sites and bodies.


def test_another_host_name_and_another_sites_page_are_refused(two: tuple[Served, str, str]) -> None:
    served, key, _ = two
    assert asked(served, "/v1/models", host="evil.example", **bearer(key))[0] == 400
    values = {"prompt": "x", "steps": 1}
    status, body, headers = asked(served, "/v1/images/generations", values, origin="http://evil.example", **bearer(key))
    assert (status, body["error"]["code"]) == (403, "cross_origin")
    assert not any(name.startswith("access-control") for name in headers)
    assert headers["x-content-type-options"] == "nosniff"
    assert asked(served, "/v1/images/generations", method="OPTIONS", origin="http://evil.example")[0] == 405


def test_a_large_body_is_refused_before_it_is_read(two: tuple[Served, str, str]) -> None:
    served, key, _ = two
    status, body, _ = asked(served, "/v1/images/generations", b"x" * (2 << 20), **bearer(key))
    assert (status, body["error"]["code"]) == (413, "body_too_large")
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    pieces = (b"y" * 65536 for _ in range(40))  # without a length
    connection.request("POST", "/v1/images/generations", pieces, bearer(key), encode_chunked=True)
    assert connection.getresponse().status == 413


HOSTILE = [
    "../../etc/passwd", "/etc/passwd", "..\\..\\x", "C:\\x", "cat\u0000", "cat.safetensors\u0000.png", "file:///etc/passwd",
    "http://169.254.169.254/", "\ud800", "\u202egnp.cat", "~", ".", "..", "", "cat/../cat", "%2e%2e%2f", "a" * 5000,
    "<script>", "'; DROP TABLE x", "$(id)", "-rf", "\n", "\x1b[31m",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_from_a_request_is_never_a_path(two: tuple[Served, str, str], name: str) -> None:
    served, key, _ = two
    for values in ({"loras": [{"name": name}]}, {"model": name or "x"}, {"lora": {"name": name}}):
        status, body, _ = picture(served, key, **values)
        assert status in (400, 404), values
        assert "error" in body
    # In a tag, folders before a name are other tools' and are not looked at.
    status, body, _ = picture(served, key, prompt=f"x <lora:{name or 'x'}:1>", steps=1)
    if status == 200:
        carried = picture_metadata.read(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"]))).recipe
        assert carried is not None and [lora["name"] for lora in carried["adapters"]] in ([], ["cat"])
    else:
        assert status in (400, 404)


@pytest.mark.parametrize(
    "region", ["mask /etc/passwd", "mask data:file:///etc/passwd", "mask data:AAAA", "box 1 2", "mask  x"]
)
def test_a_region_opens_no_file(two: tuple[Served, str, str], region: str) -> None:
    served, key, _ = two
    status, body, _ = picture(served, key, loras=[{"name": "cat", "region": region}])
    assert status == 400 and "error" in body


def test_wildcards_of_the_server_are_not_read(two: tuple[Served, str, str]) -> None:
    served, key, _ = two
    assert picture(served, key, prompt="a __colours__ fox")[0] == 400


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(image_request.ImageRequest.model_fields)) | st.text(), VALUES))
def test_any_body_is_a_request_or_refused_in_words(values: dict[str, Any]) -> None:
    try:
        image_request.read(json.dumps(values).encode())
    except ApiError as error:
        assert error.status == 400 and error.message


# What one key has is nobody else's.


def test_uploads_are_off_by_default(engine: Engine, workspace: Path) -> None:
    with serving(engine, workspace) as running:
        status, body, _ = asked(running, "/v1/loras?name=x", b"x")
        assert (status, body["error"]["code"]) == (403, "uploads_off")


def test_an_upload_is_its_keys_alone(two: tuple[Served, str, str], engine: Engine, tmp_path: Path) -> None:
    served, ann, ben = two
    raw = random_lora(engine, tmp_path / "x.safetensors", 77).read_bytes()
    status, lora, _ = upload(served, ann, raw, "secret.safetensors")
    assert (status, lora["name"], lora["own"]) == (201, "secret", True)
    assert "path" not in lora and "uploads" not in json.dumps(lora)
    assert upload(served, ann, raw)[1]["error"]["code"] == "already_there"

    # Its own key names it in every way.
    for values in (
        {"loras": [{"name": "secret"}]},
        {"loras": [{"sha256": lora["sha256"]}]},
        {"model": "imprimatura+secret"},
        {"prompt": "x <lora:secret:1>"},
    ):
        assert picture(served, ann, steps=1, **values)[0] == 200
        status, body, _ = picture(served, ben, steps=1, **values)
        assert status == 404, values
        assert "secret" not in body["error"]["message"].replace("'secret'", "").replace("+secret", "")
    names = [model["id"] for model in asked(served, "/v1/models", **bearer(ben))[1]["data"]]
    assert "imprimatura+secret" not in names
    assert asked(served, "/v1/models/imprimatura+secret", **bearer(ben))[0] == 404
    listed = asked(served, "/v1/loras", **bearer(ben))[1]["data"]
    assert lora["sha256"] not in json.dumps(listed)
    assert asked(served, f"/v1/loras/{lora['sha256']}", method="DELETE", **bearer(ben))[0] == 404

    # Another's of the same content is that key's own.
    assert upload(served, ben, raw, "other")[0] == 201
    assert asked(served, f"/v1/loras/{lora['sha256']}", method="DELETE", **bearer(ann))[0] == 200
    assert picture(served, ann, steps=1, loras=[{"name": "secret"}])[0] == 404
    assert picture(served, ben, steps=1, loras=[{"name": "other"}])[0] == 200


def test_an_upload_goes_before_a_shared_lora_of_its_name(
    two: tuple[Served, str, str], engine: Engine, tmp_path: Path
) -> None:
    served, ann, ben = two
    own = upload(served, ann, random_lora(engine, tmp_path / "x.safetensors", 5).read_bytes(), "cat")[1]
    for values in ({"loras": [{"name": "cat"}]}, {"prompt": "x <lora:cat:1>"}, {"model": "imprimatura+cat"}):
        pictures = [picture(served, key, steps=1, seed=1, **values)[1]["data"][0]["b64_json"] for key in (ann, ben)]
        assert own["sha256"].encode() in base64.b64decode(pictures[0])
        assert own["sha256"].encode() not in base64.b64decode(pictures[1])


def hostile_files(engine: Engine, folder: Path) -> dict[str, bytes]:
    good = random_lora(engine, folder / "good.safetensors", 8)
    tensors = load_file(good)
    first = next(name for name in tensors if name.endswith("lora_up.weight"))
    save_file(tensors | {first: tensors[first] * torch.nan}, folder / "nan.safetensors")
    narrow = {name: tensor[..., :3].contiguous() if "lora_down" in name else tensor for name, tensor in tensors.items()}
    save_file(narrow, folder / "shape.safetensors")
    save_file({f"transformer.blocks.0.x.{part}": torch.ones(4, 4) for part in ("lora_A.weight", "lora_B.weight")},
              folder / "family.safetensors")  # fmt: skip
    return {
        "nan": (folder / "nan.safetensors").read_bytes(),
        "shape": (folder / "shape.safetensors").read_bytes(),
        "family": (folder / "family.safetensors").read_bytes(),
        "pickle": pickle.dumps({"x": 1}),
        "cut": good.read_bytes()[:-100],
        "huge header": (1 << 60).to_bytes(8, "little") + b"{}",
        "empty": b"",
        "html": b"<html>",
    }


def test_what_is_no_lora_for_this_base_is_refused_and_leaves_nothing(
    two: tuple[Served, str, str], engine: Engine, tmp_path: Path
) -> None:
    served, ann, _ = two
    folder = served.state.views.folder(next(key.owner for key in served.state.ring.all if key.name == "ann"))
    before = sorted(folder.rglob("*")) if folder.exists() else []
    for name, raw in hostile_files(engine, tmp_path).items():
        status, body, _ = upload(served, ann, raw, name.replace(" ", ""))
        assert (status, body["error"]["code"]) == (400, "lora_refused"), name
        assert str(served.state.settings.workspace) not in body["error"]["message"]
    assert (sorted(folder.rglob("*")) if folder.exists() else []) == before


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a%00b", "x" * 300, "..%5Cx"])
def test_an_uploads_name_is_no_path(two: tuple[Served, str, str], name: str) -> None:
    served, ann, _ = two
    assert upload(served, ann, b"x", name)[0] == 400


def test_an_upload_has_a_quota(two: tuple[Served, str, str]) -> None:
    served, ann, _ = two
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.putrequest("POST", "/v1/loras?name=x")
    for name, value in {**bearer(ann), "content-length": "3000001"}.items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())["error"]["code"]) == (413, "quota_exceeded")
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    pieces = (b"y" * 60_000 for _ in range(51))  # without a length
    connection.request("POST", "/v1/loras?name=x", pieces, bearer(ann), encode_chunked=True)
    assert connection.getresponse().status == 413


def test_metrics_are_for_keys_that_may_read_them(engine: Engine, workspace: Path) -> None:
    file = workspace / "metrics.toml"
    plain, *_ = made_keys(file, "plain")
    reads, *_ = made_keys(file, "reads", metrics=True)
    with serving(engine, workspace, keys=file) as running:
        picture(running, plain, steps=1)
        assert asked(running, "/metrics", **bearer(plain))[0] == 403
        assert b'key="plain"' in asked(running, "/metrics", **bearer(reads))[1]


def test_no_key_is_in_the_log(two: tuple[Served, str, str]) -> None:
    served, ann, _ = two
    picture(served, ann, steps=1)
    picture(served, "wrong-key-here")
    text = served.log.getvalue()
    assert ann not in text and "wrong-key-here" not in text and '"key": "ann"' in text


def test_a_token_is_in_no_log_line(two: tuple[Served, str, str]) -> None:
    served, ann, _ = two
    url = picture(served, ann, steps=1, response_format="url")[1]["data"][0]["url"]
    assert asked(served, url.removeprefix(served.url))[0] == 200
    assert url.rsplit("/", 1)[1].removesuffix(".png") not in served.log.getvalue()
