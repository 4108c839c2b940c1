"""How long a server takes from its command until it is ready, and until its first answer, as CSV rows.

    python -m benchmarks.serving.start --model DIR --output benchmarks/results/serving/start.csv

DIR is a checkpoint; its files are read once before, so that they are in the page cache. Servers start one after the
other, each with the caches of compiled kernels in a home directory of its own:

* ``empty``: nothing was ever compiled there;
* ``warmed``: ``sala-sglang warm`` alone ran there, as when an image is built;
* ``full``: a server with the same arguments has started there and answered.

Each is started with SGLang's own warm-up request and without (``--skip-server-warmup``). Seconds: ``ready_s`` from the
command to the first good answer of /health; ``first_s`` and ``later_s`` of prompts of ``tokens`` random tokens with one
new token, the first one and the median of three later ones; ``sampled_s`` of a first request with a temperature; the
others are what the log says of the phases. Rows are appended. Arguments behind ``--`` go to the server.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.common import results_file
from benchmarks.common.options import add_commit, check_least
from testing.server import Server

PHASES = {
    "load_s": r"Load weight end\. elapsed=([\d.]+)",
    "sparse_s": r"Kernels of sparse prefill are compiled, after ([\d.]+)",
    "lightning_s": r"Kernels of lightning prefill are compiled, after ([\d.]+)",
    "graphs_s": r"Capture .* end\. elapsed=([\d.]+)",
}
COLUMNS = (
    *("date", "cache", "server_warm_up", "repetition", "tokens", "warm_s", "ready_s", "first_s", "later_s"),
    *("sampled_s", *PHASES, *results_file.SURROUNDINGS),
)
LATER, SHORT_TOKENS = 3, 16
FIRST_WORD = 10  # token IDs below are special


def main() -> int:
    arguments, server_arguments = parse_arguments(sys.argv[1:])
    known = results_file.surroundings(arguments) | {"weights": arguments.weights, "dtype": "bfloat16"}
    vocabulary = json.loads((arguments.model / "config.json").read_text())["vocab_size"]
    known |= {"options": " ".join(server_arguments), "tokens": arguments.tokens}
    for path in sorted(arguments.model.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
    for repetition in range(arguments.repetitions):
        for warm_up in ("on", "off"):
            extra = [*server_arguments, *(["--skip-server-warmup"] if warm_up == "off" else [])]
            common = known | {"repetition": repetition, "server_warm_up": warm_up}
            with TemporaryDirectory() as home:
                for cache in ("empty", "full"):
                    row = common | {"cache": cache} | start(arguments, extra, home, vocabulary)
                    results_file.record(arguments.output, row, COLUMNS)
            with TemporaryDirectory() as home:
                warmed = {"cache": "warmed", "warm_s": round(warm(arguments, home), 1)}
                row = common | warmed | start(arguments, extra, home, vocabulary)
                results_file.record(arguments.output, row, COLUMNS)
    return 0


def parse_arguments(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint")
    parser.add_argument("--weights", default="random", help="what the checkpoint's are (default: random)")
    parser.add_argument("--tokens", type=int, default=8192, help="of a prompt (default: 8192)")
    parser.add_argument("--repetitions", type=int, default=2, help="of all starts (default: 2)")
    parser.add_argument("--warm-arguments", type=json.loads, default=[], help="of sala-sglang warm, as a JSON list")
    add_commit(parser)
    parser.add_argument("--output", type=Path, required=True, help="CSV file; rows are appended")
    here = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:here])
    check_least(parser, arguments, {"tokens": 1, "repetitions": 1})
    arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    return arguments, words[here + 1 :]


def warm(arguments: argparse.Namespace, home: str) -> float:
    """Seconds of ``sala-sglang warm`` with this home directory."""
    command = [sys.executable, "-m", "sala_sglang.cli", "warm", "--model", str(arguments.model)]
    began = time.perf_counter()
    subprocess.run([*command, *arguments.warm_arguments], env=in_home(home), check=True)
    return time.perf_counter() - began


def in_home(home: str) -> dict[str, str]:
    """Variables by which every cache of compiled kernels lies in ``home``."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_CACHE_DIR"}
    return kept | {"HOME": home, "TRITON_HOME": home, "FLASHINFER_WORKSPACE_BASE": home, "XDG_CACHE_HOME": home}


def start(
    arguments: argparse.Namespace, server_arguments: list[str], home: str, vocabulary: int
) -> dict[str, float | str]:
    """Seconds of one start and of the first prompts after it."""
    began = time.perf_counter()
    with Server(arguments.model, *server_arguments, environment=in_home(home), anew=True) as server:
        found: dict[str, float | str] = {"ready_s": round(time.perf_counter() - began, 1)}
        found["first_s"] = prompt(server, arguments.tokens, vocabulary)
        found["later_s"] = round(
            statistics.median(prompt(server, arguments.tokens, vocabulary) for _ in range(LATER)), 3
        )
        found["sampled_s"] = prompt(server, SHORT_TOKENS, vocabulary, temperature=1)
        for name, pattern in PHASES.items():
            seconds = re.findall(pattern, server.log)
            found[name] = round(sum(map(float, seconds)), 2) if seconds else ""
    return found


def prompt(server: Server, tokens: int, vocabulary: int, temperature: float = 0) -> float:
    """Seconds until the answer of one token to a prompt that no cache has."""
    ids = [random.randrange(FIRST_WORD, vocabulary) for _ in range(tokens)]
    began = time.perf_counter()
    server.post("/generate", {"input_ids": ids, "sampling_params": {"temperature": temperature, "max_new_tokens": 1}})
    return round(time.perf_counter() - began, 3)


if __name__ == "__main__":
    sys.exit(main())
