#!/usr/bin/env bash
# Run the tests that need an NVIDIA GPU.
#
#   scripts/gpu_test.sh [--venv DIR] [--index-url URL] [arguments of pytest]
#
# Uses the current python3 (or $PYTHON) when its torch sees a GPU, else the virtual environment of scripts/test.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

parse_options "$@"
current="${PYTHON:-python3}"
if "$current" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    VENV_PYTHON="$current"
else
    setup_env test,dev
fi
cd "$ROOT"
exec "$VENV_PYTHON" -m pytest -m gpu "${REST[@]+"${REST[@]}"}"
