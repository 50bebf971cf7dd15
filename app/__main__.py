"""`python -m app` opens the web UI; `velatura app` is the same."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from trainer.errors import ConfigError, UserError


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(prog="velatura app", description="Open the web UI.")
    parser.add_argument(
        "--workspace",
        type=Path,
        default=Path("outputs"),
        help="folder of datasets, runs and pictures (default: outputs)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; another than 127.0.0.1 needs --auth")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument(
        "--auth",
        metavar="NAME:PASSWORD",
        default=os.environ.get("VELATURA_AUTH"),
        help="ask for this login (or set VELATURA_AUTH, which others on this machine can't see)",
    )
    parser.add_argument(
        "--base",
        metavar="BASE",
        action="append",
        default=[],
        help="also offer this diffusers folder or downloaded hub id as a base; may be repeated",
    )
    parser.add_argument("--open", action="store_true", help="open the browser")
    options = parser.parse_args()
    try:
        auth = _auth(options.auth)
        from app.ui import serve  # loads Gradio, which `--help` must not

        serve(options.workspace, options.host, options.port, auth, options.open, options.base)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _auth(text: str | None) -> tuple[str, str] | None:
    if not text:
        return None
    name, colon, password = text.partition(":")
    if not colon or not name or len(password) < 8:
        raise ConfigError("--auth must be NAME:PASSWORD with a password of at least 8 characters.")
    return name, password


if __name__ == "__main__":
    main()
