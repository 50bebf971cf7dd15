"""The door of the page: who is let in, what the environment may not widen, and what the page may load."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from app import request_guard
from tests.page_fixtures import NEEDS_CHROMIUM
from tests.test_browser import _free_port

ROOT = Path(__file__).parents[1]
PASSWORD = "a long enough one"
ENVIRONMENT = {
    "GRADIO_ALLOWED_PATHS": "/etc,/tmp", "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": "1",
    "GRADIO_ROOT_PATH": "/elsewhere", "GRADIO_SHARE": "True",
    "GRADIO_ANALYTICS_ENABLED": "True", "GRADIO_MCP_SERVER": "True", "GRADIO_VIBE_MODE": "1",
    "GRADIO_WATCH_DIRS": "/tmp", "GRADIO_SSR_MODE": "True",
    "GRADIO_RUN_HISTORY": "True", "GRADIO_LOCAL_DEV_MODE": "1", "GRADIO_DEBUG": "1", "GRADIO_PROFILING": "1",
    "SYSTEM": "spaces", "SPACE_ID": "a/b",
    "FORWARDED_ALLOW_IPS": "*", "GRADIO_TEMP_DIR": "/etc", "GRADIO_HISTORY_BUCKET": "a/b", "GRADIO_BLOCKED_PATHS": "/",
    "GRADIO_EXAMPLES_CACHE": "/etc",
}  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a login, started in an environment that would open it to all."""
    folder = tmp_path_factory.mktemp("guard")
    port = _free_port()
    command = [sys.executable, "-m", "app", "--workspace", str(folder / "workspace"), "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env=os.environ | ENVIRONMENT | {"VELATURA_AUTH": f"me:{PASSWORD}"},
        )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(f"{url}/", timeout=5).read()
            break
        except urllib.error.HTTPError:
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.2)
    yield url
    process.kill()
    process.wait(20)
    server_log = (folder / "log").read_text()
    assert "Traceback" not in server_log and "gradio.live" not in server_log, server_log[-3000:]


def ask(
    address: str, method: str, path: str, body: str = "", source: str = "127.0.0.1", **headers: str
) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of an answer, asked from one of this machine's own addresses."""
    where = urlsplit(address)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=20, source_address=(source, 0))
    try:
        connection.request(
            method, path, body.encode(), {name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        return (
            answer.status,
            {name.lower(): value for name, value in answer.getheaders()},
            answer.read().decode("utf-8", "replace"),
        )
    finally:
        connection.close()


def login(address: str, password: str, source: str, **headers: str) -> tuple[int, str]:
    body = f"username=me&password={password.replace(' ', '+')}"
    status, answer_headers, _ = ask(
        address, "POST", "/login", body, source, Content_Type="application/x-www-form-urlencoded", **headers
    )
    return status, answer_headers.get("set-cookie", "").split(";")[0]


def test_a_stranger_who_guesses_keeps_nobody_out_not_even_at_his_own_address(address: str) -> None:
    stranger, owner = "127.0.0.66", "127.0.0.67"
    codes = [login(address, f"wrong {number}", stranger)[0] for number in range(13)]
    assert codes[0] != 429 and codes[-1] == 429 and codes.index(429) == 10
    assert login(address, "wrong", owner)[0] == 400, "another address is not counted with it"
    assert login(address, PASSWORD, owner)[0] == 200
    began = time.monotonic()
    assert login(address, "wrong again", stranger)[0] == 429
    status, cookie = login(address, PASSWORD, stranger)
    assert status == 200 and time.monotonic() - began >= request_guard._PAUSE_S, (
        "the right one is let in, but not before its turn"
    )
    assert ask(address, "GET", "/config", source=stranger, Cookie=cookie)[0] == 200
    assert login(address, "wrong", stranger)[0] == 400, "a right login begins the count anew"


def test_right_logins_are_not_counted(address: str) -> None:
    assert {login(address, PASSWORD, "127.0.0.68")[0] for _ in range(14)} == {200}


def test_an_address_that_is_claimed_does_not_count(address: str) -> None:
    """A header says another address each time; from this machine a proxy may say so, from elsewhere nobody."""
    assert [
        request_guard.address_of({"client": (host, 1)})
        for host in ("10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "2001:db8::2", "fe80::1%eth0", "x")
    ] == ["10.0.0.1", "10.0.0.1", "2001:db8::/64", "2001:db8::/64", "fe80::/64", "x"]


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/hostname", "/tmp", "/elsewhere/config"])
def test_the_environment_widens_nothing_that_is_served(address: str, path: str) -> None:
    _, cookie = login(address, PASSWORD, "127.0.0.69")
    for door in ("/gradio_api/file=", "/file=", "/gradio_api/file/"):
        assert ask(address, "GET", door + path, source="127.0.0.69", Cookie=cookie)[0] in (403, 404), (door, path)


def test_the_environment_opens_no_other_door(address: str) -> None:
    _, cookie = login(address, PASSWORD, "127.0.0.70")
    config = ask(address, "GET", "/config", source="127.0.0.70", Cookie=cookie)[2]
    assert (
        '"root":"/elsewhere' not in config
        and '"is_space":true' not in config
        and '"vibe_mode":true' not in config
        and '"dev_mode":true' not in config
    )
    for path in (
        "/gradio_api/mcp/sse",
        "/gradio_api/mcp/",
        "/gradio_api/vibe-code/",
        "/gradio_api/runs",
        "/monitoring",
    ):
        assert ask(address, "GET", path, source="127.0.0.70", Cookie=cookie)[0] in (401, 403, 404, 405, 307), path


def test_the_page_says_what_it_may_load_on_every_answer(address: str) -> None:
    for path in ("/", "/nothing", "/login_check"):
        headers = ask(address, "GET", path)[1]
        policy = headers["content-security-policy"]
        assert (
            "frame-ancestors 'none'" in policy
            and "object-src 'none'" in policy
            and "http:" not in policy
            and "https:" not in policy
            and "*" not in policy
        )
        assert headers["x-content-type-options"] == "nosniff"
    assert "content-security-policy" in ask(address, "POST", "/gradio_api/upload", Origin="http://evil.example")[1]


def test_a_browser_asks_once_for_a_script_of_the_page_and_again_for_one_that_is_missing(address: str) -> None:
    script = re.findall(r"assets/[\w-]+\.js", ask(address, "GET", "/")[2])[0]
    assert ask(address, "GET", f"/{script}")[1]["cache-control"] == "public,max-age=31536000,immutable"
    assert "immutable" not in ask(address, "GET", "/assets/missing.js")[1].get("cache-control", "")
    assert "immutable" not in ask(address, "GET", "/")[1].get("cache-control", "")


@NEEDS_CHROMIUM
def test_the_policy_holds_in_a_real_browser_and_breaks_nothing_of_the_login(address: str, browser: Any) -> None:
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: (
            problems.append(message.text)
            if "Content Security Policy" in message.text and address in message.text
            else None
        ),
    )
    page.goto(address)
    page.get_by_label("username").fill("me")
    page.get_by_label("password").fill(PASSWORD)
    page.get_by_role("button", name="Login").click()
    page.locator("#dataset").wait_for(timeout=60_000)
    assert not problems, problems
    fetched = """async url => {
        try { await fetch(url, {mode: 'no-cors'}); return 'sent' } catch (error) { return 'kept' }
    }"""
    assert page.evaluate(fetched, "http://localhost:9/x") == "kept"
    blocked = page.evaluate("""() => new Promise(done => {
        document.addEventListener('securitypolicyviolation', event => done(event.violatedDirective));
        const image = new Image();
        image.src = 'http://localhost:9/a.png';
        setTimeout(() => done('loaded'), 5000);
    })""")
    assert blocked == "img-src"


def test_importing_the_page_forgets_what_the_environment_says_to_gradio() -> None:
    code = (
        "import app.ui, os, gradio; print(sorted(name for name in os.environ if name.startswith('GRADIO_')), "
        "gradio.utils.get_space())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "['GRADIO_ANALYTICS_ENABLED', 'GRADIO_RUN_HISTORY', 'GRADIO_TEMP_DIR'] None", (
        done.stderr
    )
