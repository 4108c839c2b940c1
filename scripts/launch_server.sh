#!/usr/bin/env bash
# Serve MiniCPM-SALA from a fresh checkout: install what is missing, then start SGLang with the plugin.
usage() {
    cat <<'TEXT'
usage: scripts/launch_server.sh [--venv DIR] [--index-url URL] [arguments of sglang.launch_server]

  --venv DIR        virtual environment to create or reuse (default: .venv in the checkout)
  --index-url URL   package index to install from; otherwise the one that pip or uv is configured with

The checkpoint is taken from --model-path or from the environment variable MODEL_PATH. Without either it is
checkpoints/sala-tiny, a very small trained model that finds codes and numbers in long texts. Without an NVIDIA
driver the server runs on the CPU. The port is 31111 unless --port says otherwise. All other arguments go to SGLang:

  MODEL_PATH=/models/MiniCPM-SALA scripts/launch_server.sh --trust-remote-code --chunked-prefill-size 8192
TEXT
}
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

# given NAME: print the value of option NAME among the server's arguments; fails when it is not there.
given() {
    local name=$1 index
    for index in "${!REST[@]}"; do
        case ${REST[$index]} in
            "$name") echo "${REST[$((index + 1))]:-}"; return ;;
            "$name="*) echo "${REST[$index]#*=}"; return ;;
        esac
    done
    return 1
}

has_nvidia_driver() {
    "$VENV_PYTHON" -c 'import ctypes, sys; sys.exit(ctypes.CDLL("libcuda.so.1").cuInit(0))' 2>/dev/null
}

# announce URL: print a request to try once the server is ready. Runs as a child of the server and ends with it.
announce() {
    exec "$VENV_PYTHON" - "$1" <<'PYTHON'
import os
import sys
import time
import urllib.error
import urllib.request

url, server = sys.argv[1], os.getppid()
while os.getppid() == server:
    try:
        urllib.request.urlopen(f"{url}/health", timeout=30).close()
        break
    except (urllib.error.URLError, OSError):
        time.sleep(2)
else:
    sys.exit()
print(f"""
The server is ready. Try:

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{{"model": "default", "temperature": 0,
    "messages": [{{"role": "user", "content":
      "Text: The baker sings a song. The code of the red fox is 4711. The nurse drinks warm tea.\\n\\nWhat is the code of the red fox?"}}]}}'
""", flush=True)
PYTHON
}

parse_options "$@"
case " ${REST[*]-} " in
    *" --help "* | *" -h "*) usage; exit ;;
esac
setup_env eval

defaults=()
if ! given --model-path >/dev/null && ! given --model >/dev/null; then
    defaults+=(--model-path "${MODEL_PATH:-$ROOT/checkpoints/sala-tiny}")
fi
if ! given --device >/dev/null && ! has_nvidia_driver; then
    echo "No NVIDIA driver: serving on the CPU, for trying and testing only" >&2
    defaults+=(--device cpu)
fi
port="$(given --port || true)"
if [ -z "$port" ]; then
    port=31111
    defaults+=(--port "$port")
fi

announce "http://127.0.0.1:$port" &
exec "$VENV_PYTHON" -m sglang.launch_server "${defaults[@]+"${defaults[@]}"}" "${REST[@]+"${REST[@]}"}"
