"""Serving speed of the plugin and of stock SGLang's dense path, with random weights, as CSV rows.

    python -m benchmarks.serving.speed --model DIR --lengths 8192,32768 --output benchmarks/results/serving/speed.csv

From the root of the repository. DIR needs a config.json, and weights too with --engine-options
'{"load_format":"auto"}'. Each engine runs in a process of its own, one after the other, and starts once for everything.
Per prompt length one request at a time: time to first token and milliseconds per further token, medians over the
repetitions after one warm-up; lengths from 500,000 tokens on are asked once, with no warm-up of that length. Then
batches: output tokens per second from submission to the last token, and milliseconds per token while all requests
generate. ``--memory`` and ``--profile`` write what takes the memory and the time of a step to files of their own. Rows
are appended as they are measured, and a table of them ends the run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import device_memory, results_file
from benchmarks.common.options import add_engine_options, check_least
from benchmarks.common.streams import decode_seconds, one_request, random_prompt, stream
from benchmarks.serving import step_profile

if TYPE_CHECKING:  # imported where an engine runs
    from sglang import Engine

SHARED_OPTIONS = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "disable_radix_cache": True,
    "chunked_prefill_size": 8192,
    "max_running_requests": 32,
    "mem_fraction_static": 0.80,
    "grammar_backend": "none",
    "sampling_backend": "pytorch",
    "skip_server_warmup": True,
}
OWN_ROWS = {"SALA_OWN_PRODUCTS": "rows"}
# Engine name: (its own options, its environment). Stock SGLang cannot capture prefill graphs of this model.
ENGINES: dict[str, tuple[dict, dict[str, str]]] = {
    "plugin": ({}, {}),
    "plugin-fp8": ({"quantization": "fp8"}, {}),
    "plugin-fp8-kv": ({"kv_cache_dtype": "fp8_e4m3"}, {}),
    "plugin-fp8-sglang": ({"quantization": "fp8"}, {"SALA_PATHS": "float8_rows=off"}),
    "plugin-own-rows": ({}, OWN_ROWS),
    "plugin-fp8-own-rows": ({"quantization": "fp8"}, OWN_ROWS),
    "stock-dense": (
        {"attention_backend": "minicpm_flashinfer", "cuda_graph_backend_prefill": "disabled"},
        {"SALA_DISABLE": "1", "SGLANG_PLUGINS": "none", "SGLANG_MINICPM_FORCE_DENSE": "1"},
    ),
}
DEFAULT_ENGINES = ["plugin", "stock-dense"]
COLUMNS = (
    "date", "engine", "requests", "prompt_tokens", "new_tokens", "repetitions", "ttft_s", "decode_ms_per_token",
    "output_tokens_per_s", "peak_memory_mib", *results_file.SURROUNDINGS,
)  # fmt: skip
SHOWN = COLUMNS[1 : COLUMNS.index("gpu")]
ONCE_FROM = 500_000  # tokens; a minute and more each
ONCE = "1, no warm-up"


def parse_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory with a config.json")
    parser.add_argument("--lengths", required=True, type=positive_integers, help="prompt lengths, such as 8192,32768")
    parser.add_argument("--output", required=True, type=Path, help="CSV file; rows are appended")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=DEFAULT_ENGINES)
    parser.add_argument("--new-tokens", type=int, default=65, help="tokens to generate per request (default: 65)")
    parser.add_argument("--repetitions", type=int, default=3, help="measured requests per length (default: 3)")
    parser.add_argument(
        "--batch", type=batch_sizes, default="32", help="sizes such as 1,32; 0 leaves batches out (default: 32)"
    )
    parser.add_argument("--batch-length", type=int, default=2048, help="their prompt length (default: 2048)")
    parser.add_argument("--memory", type=Path, help="CSV file; what takes the GPU's memory is appended")
    parser.add_argument(
        "--profile",
        type=Path,
        help="CSV file; what the steps of prefill and of --batch consist of is appended",
    )
    parser.add_argument("--weights", default="random", help="what the weights are, to record (default: random)")
    parser.add_argument("--profile-steps", type=int, default=32, help="decode steps to profile (default: 32)")
    add_engine_options(parser)
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    check_least(parser, arguments, {"new_tokens": 2, "repetitions": 3, "batch_length": 1, "profile_steps": 8})
    return arguments


def batch_sizes(text: str) -> list[int]:
    return [] if text == "0" else positive_integers(text)


def positive_integers(text: str) -> list[int]:
    values = [int(word) for word in text.split(",")]
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not possible; allowed: positive integers, separated by commas")
    return values


def main() -> int:
    arguments = parse_arguments(sys.argv[1:])
    if arguments.worker:
        measure(arguments)
        return 0
    before, failed = len(results_file.read(arguments.output)), []
    for name in arguments.engines:
        environment = os.environ | ENGINES[name][1] | {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}
        command = [sys.executable, "-m", "benchmarks.serving.speed", *sys.argv[1:], "--worker", name]
        if subprocess.run([*command, "--commit", arguments.commit], env=environment).returncode:
            failed.append(name)
    print(results_file.table(results_file.read(arguments.output)[before:], SHOWN))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def measure(arguments: argparse.Namespace) -> None:
    """Measure one engine and append its rows."""
    import sglang

    config = json.loads(Path(arguments.model, "config.json").read_text())
    options = engine_options(arguments)
    common = {"engine": arguments.worker, **results_file.surroundings(arguments), "weights": arguments.weights}
    common |= {"dtype": options.get("dtype") or config.get("dtype"), "options": json.dumps(options, sort_keys=True)}
    free_engine = device_memory.used_mib(arguments.device)
    engine = sglang.Engine(model_path=arguments.model, **options)
    try:
        if arguments.memory:
            for row in device_memory.after_start(engine, free_engine, arguments.device):
                results_file.record(arguments.memory, common | row, device_memory.COLUMNS)
        for row in timed(engine, config, arguments):
            results_file.record(arguments.output, common | row, COLUMNS)
        if arguments.profile:
            for row in step_profile.measure(engine, config, arguments, options["chunked_prefill_size"]):
                results_file.record(arguments.profile, common | row, step_profile.COLUMNS)
    finally:
        engine.shutdown()


def engine_options(arguments: argparse.Namespace) -> dict:
    """Arguments of sglang.Engine: a context with room for the longest prompt and its answer."""
    options = SHARED_OPTIONS | ENGINES[arguments.worker][0] | {"device": arguments.device} | arguments.engine_options
    longest = max(*arguments.lengths, arguments.batch_length) + arguments.new_tokens
    if arguments.profile:
        longest = max(longest, step_profile.longest(arguments, options["chunked_prefill_size"]))
    return {"context_length": longest + 64} | options


def timed(engine: Engine, config: dict, arguments: argparse.Namespace) -> Iterator[dict]:
    """Rows of single requests by prompt length, then of batches by size."""
    for length in arguments.lengths:
        yield measure_single(engine, config, length, arguments)
    for size in arguments.batch:
        yield measure_batch(engine, config, size, arguments)


def measure_single(engine: Engine, config: dict, length: int, arguments: argparse.Namespace) -> dict:
    """Medians of requests one at a time, after a warm-up that does not count; of long ones, a single request."""
    once = length >= ONCE_FROM
    with results_file.peak_memory(arguments.device) as memory:
        found = [
            one_request(engine, random_prompt(config, length), arguments.new_tokens)
            for _ in range(1 if once else arguments.repetitions + 1)
        ]
    return single_row(length, found if once else found[1:], memory["peak_mib"], arguments.new_tokens) | {
        "repetitions": ONCE if once else arguments.repetitions
    }


def single_row(length: int, found: list[tuple[float, float]], peak_mib: int | str, new_tokens: int) -> dict:
    """Medians of what ``one_request`` told about requests of this length, one at a time."""
    ttfts, decodes = zip(*found, strict=True)
    return {
        "requests": 1,
        "prompt_tokens": length,
        "new_tokens": new_tokens,
        "ttft_s": round(statistics.median(ttfts), 4),
        "decode_ms_per_token": round(statistics.median(decodes) * 1e3, 3),
        "output_tokens_per_s": round(1 / statistics.median(decodes), 2),
        "peak_memory_mib": peak_mib,
    }


def measure_batch(engine: Engine, config: dict, size: int, arguments: argparse.Namespace) -> dict:
    """Medians of ``size`` requests at once, after a warm-up that does not count."""
    rates, decodes = [], []
    with results_file.peak_memory(arguments.device) as memory:
        for _ in range(arguments.repetitions + 1):
            prompts = [random_prompt(config, arguments.batch_length) for _ in range(size)]
            start = time.perf_counter()
            arrivals = stream(engine, prompts, arguments.new_tokens)
            rates.append(size * arguments.new_tokens / (time.perf_counter() - start))
            decodes.append(decode_seconds(arrivals))
    return {
        "requests": size,
        "prompt_tokens": arguments.batch_length,
        "new_tokens": arguments.new_tokens,
        "repetitions": arguments.repetitions,
        "decode_ms_per_token": round(statistics.median(decodes[1:]) * 1e3, 3),
        "output_tokens_per_s": round(statistics.median(rates[1:]), 2),
        "peak_memory_mib": memory["peak_mib"],
    }


if __name__ == "__main__":  # SGLang spawns workers that import this file
    sys.exit(main())
