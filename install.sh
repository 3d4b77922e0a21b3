#!/bin/sh
# Makes the virtual environment and installs what requirements.lock pins, by hash.
set -eu
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}

say() { printf 'install: %s\n' "$*" >&2; }

"$PYTHON" - <<'EOF' || { say "Python 3.11 to 3.14 is needed; set PYTHON=/path/to/python3.12"; exit 1; }
import sys
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
EOF

# Debian and Ubuntu ship python3 without ensurepip; their package python3-venv brings it.
if ! "$PYTHON" -c 'import ensurepip' 2>/dev/null; then
    minor=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    if command -v apt-get >/dev/null && { [ -z "$sudo" ] || command -v sudo >/dev/null; }; then
        say "this Python has no ensurepip: installing Debian's python$minor-venv"
        $sudo apt-get update -qq
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "python$minor-venv" >/dev/null ||
            $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y python3-venv >/dev/null
    else
        say "this Python cannot make virtual environments; install python3-venv (or ensurepip)"
        exit 1
    fi
fi

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
say "installing into $VENV (about a minute the first time)"
# The lock is whole, so pip has nothing to resolve; and it cannot, since it takes a package that is
# asked for with an extra (`pydantic[email]`) for one that is not pinned.
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
    -r requirements.lock
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --no-build-isolation --editable .
touch "$VENV/.installed"
