# shellcheck shell=bash
# Sourced by the other scripts: a virtual environment with sala-sglang and the SGLang it is tested with.

shopt -s inherit_errexit

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

die() {
    echo "error: $*" >&2
    exit 1
}

# The newest of TESTED_SGLANG_VERSIONS, the last one in its line.
SGLANG_VERSION="$(sed -n 's/^TESTED_SGLANG_VERSIONS = .*"\([0-9.a-z]*\)",*)$/\1/p' "$ROOT/sala_sglang/__init__.py")"
[ -n "$SGLANG_VERSION" ] || die "sala_sglang/__init__.py names no tested version of SGLang"

# parse_options ARGUMENTS: take --venv DIR and --index-url URL out of the arguments. Sets VENV, INDEX_URL and the
# array REST of all other arguments.
parse_options() {
    VENV="$ROOT/.venv" INDEX_URL="" REST=()
    while [ $# -gt 0 ]; do
        case $1 in
            --venv | --index-url)
                [ -n "${2:-}" ] || die "$1 needs a value"
                if [ "$1" = --venv ]; then VENV=$2; else INDEX_URL=$2; fi
                shift
                ;;
            *) REST+=("$1") ;;
        esac
        shift
    done
    case $VENV in
        /*) ;;
        *) VENV="$PWD/$VENV" ;;
    esac
    VENV_PYTHON="$VENV/bin/python"
}

# Print the first interpreter that runs and is new enough. Later Pythons than 3.12 are tried last.
find_python() {
    local candidate
    for candidate in python3.12 python3.11 python3 python3.13 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python of version 3.11 or later found; install one (for example: apt install python3.12)"
}

# find_uv PYTHON: print the uv to use, the one on the PATH or else one installed with pip into the checkout.
find_uv() {
    local python=$1 tools="$ROOT/.cache/uv"
    if command -v uv; then
        return
    fi
    if [ ! -x "$tools/bin/uv" ]; then
        "$python" -m pip --version >/dev/null 2>&1 || die "$python has no pip; install it (for example: apt install python3-pip)"
        "$python" -m pip install --quiet --target "$tools" uv >&2
    fi
    echo "$tools/bin/uv"
}

# setup_env EXTRAS: create VENV where it is missing and install the project with EXTRAS (such as "test,dev") from
# INDEX_URL, if given. A second call with nothing changed returns at once.
setup_env() {
    local extras=$1 python uv stamp state
    stamp="$VENV/.sala-sglang-$extras"
    state="sglang==$SGLANG_VERSION $ROOT $(cksum <"$ROOT/pyproject.toml")"
    if [ -x "$VENV_PYTHON" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
        return
    fi
    python="$(find_python)"
    eval "$("$python" "$ROOT/scripts/pip_settings.py")"
    if [ -n "$INDEX_URL" ]; then
        export PIP_INDEX_URL="$INDEX_URL" UV_DEFAULT_INDEX="$INDEX_URL"
    fi
    uv="$(find_uv "$python")"
    if [ ! -x "$VENV_PYTHON" ]; then
        echo "Creating $VENV with $("$python" --version)" >&2
        "$uv" venv --quiet --seed --python "$python" "$VENV"
    fi
    echo "Installing sala-sglang and SGLang $SGLANG_VERSION into $VENV (several GB on a fresh machine)" >&2
    "$uv" pip install --python "$VENV_PYTHON" --editable "$ROOT[$extras]" "sglang==$SGLANG_VERSION"
    echo "$state" >"$stamp"
}
