"""What the prefix cache saves where prompts share a prefix, and what it costs where they do not, as CSV rows.

    python -m benchmarks.serving.prefix_cache --model DIR --output benchmarks/results/serving/prefix_cache.csv

From the root of the repository. DIR needs a config.json only; weights are random. Two engines run one after the other,
each in a process of its own: without the cache, then with it, as is SGLang's default. Both answer batches of prompts
that share nothing: output tokens per second from submission to the last token. The one with the cache is also asked two
questions about each of some long documents: time to the first token of the first and of the second question, and how
many of its tokens came from the cache. Medians after one warm-up of each kind; a table ends the run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import results_file
from benchmarks.common.options import add_engine_options, check_least
from benchmarks.common.streams import greedy, random_prompt
from benchmarks.serving.speed import SHARED_OPTIONS

if TYPE_CHECKING:  # imported where an engine runs
    from sglang import Engine

CACHES = {"off": {"disable_radix_cache": True}, "on": {"disable_radix_cache": False}}
COLUMNS = (
    "date", "cache", "measured", "requests", "prompt_tokens", "new_tokens", "repetitions", "ttft_s", "cached_tokens",
    "output_tokens_per_s", "all_values", "compared_percent", "peak_memory_mib", *results_file.SURROUNDINGS,
)  # fmt: skip
SHOWN = COLUMNS[1 : COLUMNS.index("peak_memory_mib")]
LEAST = {"document": 1, "documents": 1, "question": 1, "requests": 1, "length": 1, "new_tokens": 1, "repetitions": 1}


def parse_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory with a config.json")
    parser.add_argument("--output", required=True, type=Path, help="CSV file; rows are appended")
    parser.add_argument("--document", type=int, default=131_072, help="tokens of a document (default: 131072)")
    parser.add_argument("--documents", type=int, default=3, help="measured documents (default: 3)")
    parser.add_argument("--question", type=int, default=64, help="tokens of a question (default: 64)")
    parser.add_argument("--requests", type=int, default=64, help="prompts that share nothing (default: 64)")
    parser.add_argument("--length", type=int, default=4096, help="tokens of each (default: 4096)")
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens to generate for each (default: 128)")
    parser.add_argument("--repetitions", type=int, default=3, help="measured batches (default: 3)")
    add_engine_options(parser)
    parser.add_argument("--worker", choices=CACHES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    check_least(parser, arguments, LEAST)
    return arguments


def main() -> int:
    arguments = parse_arguments(sys.argv[1:])
    if arguments.worker:
        measure(arguments)
        return 0
    before = len(results_file.read(arguments.output))
    environment = os.environ | {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}
    for cache in CACHES:
        command = [sys.executable, "-m", "benchmarks.serving.prefix_cache", *sys.argv[1:], "--worker", cache]
        if subprocess.run([*command, "--commit", arguments.commit], env=environment).returncode:
            print(f"failed: cache {cache}", file=sys.stderr)
            return 1
    for row in comparisons(results_file.read(arguments.output)[before:]):
        results_file.record(arguments.output, row, COLUMNS)
    print(results_file.table(results_file.read(arguments.output)[before:], SHOWN))
    return 0


def measure(arguments: argparse.Namespace) -> None:
    """Measure one engine and append its rows."""
    import sglang

    config = json.loads(Path(arguments.model, "config.json").read_text())
    longest = max(arguments.document + arguments.question, arguments.length) + arguments.new_tokens
    options = SHARED_OPTIONS | CACHES[arguments.worker] | {"context_length": longest + 64, "device": arguments.device}
    options |= arguments.engine_options
    common = {"cache": arguments.worker, **results_file.surroundings(arguments), "weights": "random"}
    common |= {"dtype": options.get("dtype") or config.get("dtype"), "options": json.dumps(options, sort_keys=True)}
    engine = sglang.Engine(model_path=arguments.model, **options)
    try:
        results_file.record(arguments.output, common | measure_throughput(engine, config, arguments), COLUMNS)
        if arguments.worker == "on":
            for row in measure_questions(engine, config, arguments):
                results_file.record(arguments.output, common | row, COLUMNS)
    finally:
        engine.shutdown()


def measure_throughput(engine: Engine, config: dict, arguments: argparse.Namespace) -> dict:
    rates = []
    with results_file.peak_memory(arguments.device) as memory:
        for _ in range(arguments.repetitions + 1):
            prompts = [random_prompt(config, arguments.length) for _ in range(arguments.requests)]
            start = time.perf_counter()
            engine.generate(input_ids=prompts, sampling_params=greedy(arguments.new_tokens))
            rates.append(arguments.requests * arguments.new_tokens / (time.perf_counter() - start))
    return {
        "measured": "nothing shared",
        "requests": arguments.requests,
        "prompt_tokens": arguments.length,
        "new_tokens": arguments.new_tokens,
        "repetitions": arguments.repetitions,
        "output_tokens_per_s": round(statistics.median(rates[1:]), 2),
        "all_values": " ".join(f"{rate:.2f}" for rate in rates[1:]),
        "peak_memory_mib": memory["peak_mib"],
    }


def measure_questions(engine: Engine, config: dict, arguments: argparse.Namespace) -> list[dict]:
    """A row of the first questions about all documents, and one of the second."""
    asked: dict[str, list[tuple[float, int]]] = {"first question": [], "second question": []}
    with results_file.peak_memory(arguments.device) as memory:
        for _ in range(arguments.documents + 1):
            document = random_prompt(config, arguments.document)
            for answers in asked.values():
                answers.append(first_token(engine, document + random_prompt(config, arguments.question)))
    found = []
    for measured, answers in asked.items():
        seconds, cached = zip(*answers[1:], strict=True)
        row = {"measured": measured, "requests": 1, "new_tokens": 1, "repetitions": arguments.documents}
        row |= {"prompt_tokens": arguments.document + arguments.question, "peak_memory_mib": memory["peak_mib"]}
        row |= {"ttft_s": round(statistics.median(seconds), 4), "cached_tokens": statistics.median_low(cached)}
        found.append(row | {"all_values": " ".join(f"{second:.4f}" for second in seconds)})
    return found


def first_token(engine: Engine, prompt: list[int]) -> tuple[float, int]:
    """Seconds to the first token, and how many of the prompt came from the cache."""
    start = time.perf_counter()
    answer = engine.generate(input_ids=prompt, sampling_params=greedy(1))
    return time.perf_counter() - start, answer["meta_info"]["cached_tokens"]


def comparisons(found: list[dict]) -> list[dict]:
    """Two rows: throughput with the cache in percent of that without, and the second question of the first one's."""
    by_name = {(row["cache"], row["measured"]): row for row in found}
    without, cached = by_name["off", "nothing shared"], by_name["on", "nothing shared"]
    first, second = by_name["on", "first question"], by_name["on", "second question"]
    kept = ("date", "cache", "requests", "prompt_tokens", "new_tokens", "repetitions", *results_file.SURROUNDINGS)
    return [
        {name: of[name] for name in kept}
        | {"measured": measured, "compared_percent": round(100 * float(of[value]) / float(to[value]), 2)}
        for measured, of, to, value in (
            ("nothing shared, against off", cached, without, "output_tokens_per_s"),
            ("second question, against the first", second, first, "ttft_s"),
        )
    ]


if __name__ == "__main__":  # SGLang spawns workers that import this file
    sys.exit(main())
