#!/usr/bin/env bash
# Run the tests that need no GPU, in a virtual environment that is created where it is missing.
#
#   scripts/test.sh [--venv DIR] [--index-url URL] [arguments of pytest]
#
# An own "-m EXPRESSION" replaces the default choice "not gpu and not nightly"; with "not gpu and not nightly and not soak"
# minutes of load on servers are left out too. Two processes share the tests; those of a file, or of a server, run in the
# same one.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

parse_options "$@"
setup_env test,dev
cd "$ROOT"
# Every process of a server imports SGLang, and would compile it each time: 12 instead of 7 CPU seconds for a start.
unset PYTHONDONTWRITEBYTECODE
exec "$VENV_PYTHON" -m pytest -m "not gpu and not nightly" -n 2 --dist loadgroup --no-loadscope-reorder "${REST[@]+"${REST[@]}"}"
