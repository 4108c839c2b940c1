"""What prefill apart from decode costs a single request: times to the first token beside one server, as CSV rows.

    sala-sglang make-checkpoint --preset full --out DIR
    python -m benchmarks.serving.apart --model DIR --backends mooncake_tcp \\
        --output benchmarks/results/serving/apart.csv

From the root of the repository, on two GPUs of one host. First one server answers on the first GPU, then for each
backend one prefills there and another decodes on the second. Both are asked over HTTP for one token and for more, one
request at a time, and never twice for the same prompt. Medians after one warm-up; a table with what was sent, which is
computed, ends the run. On a CPU (--device cpu) the engine of the tests copies, for a dry run.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from random import Random

from benchmarks.common import results_file
from benchmarks.common.options import add_commit, check_least
from sala_sglang.cards.memory import cache_bytes_per_token, state_bytes
from sala_sglang.config import SALAConfig
from testing.server import Server
from testing.server_pair import COPYING_ENGINE, ServerPair

ALONE = "one server"
SGLANG = ("-m", "sglang.launch_server")
# fmt: off
COLUMNS = (
    "date", "servers", "backend", "prompt_tokens", "new_tokens", "repetitions", "ttft_s", "decode_ms_per_token",
    "sent_bytes", "all_values", *results_file.SURROUNDINGS,
)
# fmt: on
SHOWN = ("servers", "backend", "prompt_tokens", "ttft_s", "decode_ms_per_token", "sent_bytes")
LEAST = {"new_tokens": 2, "repetitions": 1}


def parse_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="directory with config.json and weights")
    parser.add_argument("--output", required=True, type=Path, help="CSV file; rows are appended")
    parser.add_argument("--backends", nargs="+", default=["mooncake_tcp"], help="of SGLang (default: mooncake_tcp)")
    parser.add_argument("--lengths", nargs="+", type=int, default=[8192, 131_072, 524_288], help="tokens of prompts")
    parser.add_argument("--new-tokens", type=int, default=65, help="of the longer answer (default: 65)")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--arguments", default="", help="further arguments of all servers, as one text")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    add_commit(parser)
    arguments = parser.parse_args(words)
    check_least(parser, arguments, LEAST)
    return arguments


def main() -> int:
    arguments = parse_arguments(sys.argv[1:])
    known = len(results_file.read(arguments.output))
    options = ["--disable-radix-cache", *arguments.arguments.split()]
    with Server(arguments.model, *options) as server:
        measure(server, ALONE, "", arguments)
    for backend in arguments.backends:
        both = [*options, "--disaggregation-transfer-backend", backend]
        second = ("--base-gpu-id", "1") if arguments.device == "cuda" else ()
        program = SGLANG if arguments.device == "cuda" else COPYING_ENGINE
        with ServerPair(arguments.model, *both, decode=second, program=program) as pair:
            measure(pair, "prefill and decode apart", backend, arguments)
    print(results_file.table(results_file.read(arguments.output)[known:], SHOWN))
    return 0


def measure(server: Server | ServerPair, servers: str, backend: str, arguments: argparse.Namespace) -> None:
    """Append a row for every length."""
    config = SALAConfig.from_pretrained(arguments.model)
    for length in arguments.lengths:
        draw = Random(f"{servers} {backend} {length}")
        first, per_token = [], []
        for _ in range(arguments.repetitions + 1):
            one, more = (
                seconds(server, [draw.randrange(10, config.vocab_size) for _ in range(length)], tokens)
                for tokens in (1, arguments.new_tokens)
            )
            first.append(one)
            per_token.append(1e3 * (more - one) / (arguments.new_tokens - 1))
        row = {"servers": servers, "backend": backend, "prompt_tokens": length, "new_tokens": arguments.new_tokens}
        row |= {"repetitions": arguments.repetitions, "ttft_s": round(statistics.median(first[1:]), 4)}
        row |= {"decode_ms_per_token": round(statistics.median(per_token[1:]), 3)}
        row |= {"sent_bytes": sent_bytes(config, length) if backend else 0}
        row |= {"all_values": " ".join(f"{one:.4f}" for one in first[1:]), "dtype": config.dtype}
        row |= {"weights": "random", "options": arguments.arguments, **results_file.surroundings(arguments)}
        results_file.record(arguments.output, row, COLUMNS)


def seconds(server: Server | ServerPair, prompt: list[int], tokens: int) -> float:
    sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    began = time.perf_counter()
    answer = server.post("/generate", {"input_ids": prompt, "sampling_params": sampling})
    if (got := answer["meta_info"]["completion_tokens"]) != tokens:
        raise RuntimeError(f"expected {tokens} tokens, got {got}")
    return time.perf_counter() - began


def sent_bytes(config: SALAConfig, tokens: int) -> int:
    """Bytes of whole pages of keys and values in bfloat16, and of one state; computed."""
    page = config.sparse_geometry.block_size
    return -(-tokens // page) * page * cache_bytes_per_token(config, "bf16") + state_bytes(config)


if __name__ == "__main__":
    sys.exit(main())
