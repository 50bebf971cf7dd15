"""How Ray may be used: never by whoever can reach its ports, and telling nobody of it.

Whoever can talk to a Ray cluster can run any code on it, and Ray 2.60 listens on all of a machine's addresses, whatever
it is told (CVE-2023-48022). So every cluster here asks for a token (from Ray 2.54 on): one that is started for a batch
has a token of its own that nobody else knows, and one that is joined must refuse whoever comes without. The dashboard
stays off, and so do Ray's usage statistics. Ray reads all of that as it is imported, and must not have been before.
"""

from __future__ import annotations

import importlib
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

from trainer.errors import ConfigError

_ADDRESS = re.compile(r"[\w.-]{1,253}:\d{1,5}|\[[0-9a-fA-F:]{2,45}\]:\d{1,5}")
_MODE, _TOKEN, _TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_PROBE_S = 60.0
_LETS_IN, _REFUSES, _CANT_TELL = 0, 3, 5
# What asks a cluster for the names it keeps, as whoever has no token would, or with ours.
_PROBE = f"""
import sys
try:
    from ray._raylet import GcsClient
    from ray.exceptions import AuthenticationError
except ImportError:
    sys.exit({_CANT_TELL})
try:
    GcsClient(address=sys.argv[1]).internal_kv_keys(b"velatura", None, timeout=10)
except AuthenticationError:
    sys.exit({_REFUSES})
"""


def prepare(address: str, option: str = "--engine", part: str = "ray") -> None:
    """Have Ray ask for a token and keep to itself; for an `address`, only a cluster that does so is taken.

    `option` is how Ray was asked for, as a message has it, and `part` the module of it that is needed.

    Raises: ConfigError if that isn't installed, or the cluster can't be used safely.
    """
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DISABLE_IMPORT_WARNING="1")
    if address:
        _check_own_token(address)
    else:
        os.environ[_MODE] = "token"
        if _TOKEN_PATH not in os.environ:
            os.environ.setdefault(_TOKEN, secrets.token_hex(32))
    try:
        importlib.import_module(part)
    except ImportError as error:
        without = "Ray, which isn't" if error.name == "ray" else "Ray, not all of which is"
        raise ConfigError(
            f"{option} asks for {without} installed; install it: pip install 'velatura[ray]', or leave {option} out."
        ) from None
    if address:
        _check_cluster(address)


def _check_own_token(address: str) -> None:
    """Raises: ConfigError."""
    if not _ADDRESS.fullmatch(address):
        raise ConfigError(
            f"--address is {address[:300]!r}; it must be HOST:PORT of a Ray cluster's head, as `ray start --head` "
            f"prints it, and the command must run on a machine of that cluster."
        )
    if os.environ.get(_MODE) != "token":
        raise ConfigError(
            f"--address is {address}, and {_MODE} is {os.environ.get(_MODE, '')!r}; it must be 'token', here and on "
            f"every machine of the cluster: whoever reaches one without a token can run any code on it. "
            f"docs/scale.md says how to start one."
        )
    token = Path(os.environ.get(_TOKEN_PATH) or Path.home() / ".ray" / "auth_token")
    if not os.environ.get(_TOKEN) and not token.is_file():
        raise ConfigError(
            f"--address is {address}, and there is no token: neither {_TOKEN} nor a file at {token}; copy the "
            f"cluster's token there."
        )


def _check_cluster(address: str) -> None:
    """Raises: ConfigError if the cluster lets in whoever has no token, or doesn't let us in."""
    stranger = {name: value for name, value in os.environ.items() if name not in (_TOKEN, _TOKEN_PATH)}
    answers = [_asked(address, stranger | {_MODE: "disabled"}), _asked(address, dict(os.environ))]
    if answers[0] == _LETS_IN:
        raise ConfigError(
            f"--address is {address}, a cluster that asks for no token: whoever reaches it can run any code on it and "
            f"on this machine. Start it with {_MODE}=token (Ray 2.54 or newer)."
        )
    if answers[0] != _REFUSES:
        raise ConfigError(f"--address is {address}, where no Ray cluster answers that could be asked for its token.")
    if answers[1] != _LETS_IN:
        raise ConfigError(f"--address is {address}, a cluster that doesn't take this token; copy the cluster's own.")


def _asked(address: str, environment: dict[str, str]) -> int:
    """What a process with this environment is answered, as the probe's exit status."""
    try:
        return subprocess.run(
            [sys.executable, "-c", _PROBE, address],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PROBE_S,
        ).returncode
    except subprocess.TimeoutExpired:
        return _CANT_TELL
