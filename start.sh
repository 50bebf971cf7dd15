#!/bin/sh
# Opens Velatura's page in the browser. The first start makes what it needs: a virtual environment in .venv with the exact
# versions of constraints.txt. Options of the page may follow: ./start.sh --port 7861
#
# torch is the one large download. Linux: PyPI serves the CUDA build. Without an NVIDIA GPU take the small one, once:
#
#   PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" ./start.sh
#
# Another interpreter: PYTHON=/usr/bin/python3.11 ./start.sh
set -eu
CDPATH= cd "$(dirname "$0")"

fail() {
    echo "$1" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null || fail "There is no '$PYTHON' here. Name yours: PYTHON=/usr/bin/python3.11 ./start.sh"
        is_new_enough "$PYTHON" || fail "Velatura needs Python 3.10 or newer; '$PYTHON' is $("$PYTHON" --version 2>&1)."
        return
    fi
    for PYTHON in python3 python3.12 python3.13 python3.11 python3.10 python; do
        if is_new_enough "$PYTHON"; then return; fi
    done
    fail "Velatura needs Python 3.10 or newer, and there is none here. Install it from https://www.python.org/downloads,
or name yours: PYTHON=/usr/bin/python3.11 ./start.sh"
}

# .begun stays behind when an install is cut off; the environment is then made afresh, since half a package can look like a
# whole one to pip. .stamp is written last. The Makefile keeps both too.
make_environment() {
    find_python
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || fail "$PYTHON can't make virtual environments. Debian and Ubuntu: apt-get install python3-venv"
    if [ -e .venv/.begun ]; then
        echo "The last install was cut off; starting afresh."
        rm -rf .venv
    fi
    echo "Making the environment, once. Most of it is torch, which takes some minutes to download."
    "$PYTHON" -m venv .venv || fail "The environment in .venv could not be made; the reason stands above."
    : >.venv/.begun
    # PIP_ARGS is several words.
    # shellcheck disable=SC2086
    .venv/bin/python -m pip install --disable-pip-version-check ${PIP_ARGS:-} -c constraints.txt setuptools &&
        .venv/bin/python -m pip install --disable-pip-version-check ${PIP_ARGS:-} -c constraints.txt --no-build-isolation -e '.[dev]' ||
        fail "The install failed; the reason stands above. The next start makes the environment afresh."
    rm -f .venv/.begun
    : >.venv/.stamp
}

if [ ! -e .venv/.stamp ] || [ -n "$(find pyproject.toml constraints.txt -newer .venv/.stamp)" ]; then
    make_environment
fi
exec .venv/bin/python -m trainer app --open "$@"
