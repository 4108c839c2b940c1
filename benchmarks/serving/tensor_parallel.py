"""The same model on one GPU and on several: whether the answers agree, and how much faster they come, as CSV rows.

    sala-sglang make-checkpoint --preset full --out DIR
    python -m benchmarks.serving.tensor_parallel --model DIR --sizes 1 2 1x2 \\
        --output benchmarks/results/serving/tensor_parallel.csv

A size is a number of tensor-parallel ranks, or TPxPP with so many pipeline stages of them. Each size runs in a process
of its own, one after the other, from the root of the repository. Fixed random prompts are continued greedily, and
tokens and log-probabilities compared with those of the first size. Then, as medians over the repetitions after one
warm-up: time to first token and milliseconds per further token for one request at a time, and milliseconds per token of
a batch while all of its requests generate. A table of both ends the run.

DIR needs weights: SGLang's dummy ones are drawn for every rank by itself and would make another model of every size.
In bfloat16 another order of sums may decide between two almost equal tokens, and then all that follow differ.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from benchmarks.common import results_file, streams
from benchmarks.common.options import add_engine_options, check_least
from benchmarks.serving import speed

if TYPE_CHECKING:  # imported where an engine runs
    from sglang import Engine

SIZE = re.compile(r"[1-9]\d*(x[1-9]\d*)?")
OPTIONS = speed.SHARED_OPTIONS | {"load_format": "auto"}
# fmt: off
COLUMNS = (
    "date", "tp", "pp", "measured", "requests", "prompt_tokens", "new_tokens", "repetitions", "ttft_s",
    "decode_ms_per_token", "equal_tokens", "max_logprob_difference", "peak_memory_mib", "gpu", "driver", "torch",
    "sglang", "triton", "python", "commit", "dtype", "weights", "shapes", "options",
)
SHAPES = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "lightning_nh", "lightning_head_dim", "vocab_size",
)
# fmt: on


def parse_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lengths = speed.positive_integers
    parser.add_argument("--model", required=True, type=Path, help="directory with a config.json and weights")
    parser.add_argument("--output", required=True, type=Path, help="CSV file; rows are appended")
    parser.add_argument("--sizes", nargs="+", default=["1", "2"], help="sizes, as 2 or 2x4 (default: 1 2)")
    parser.add_argument(
        "--answer-lengths",
        type=lengths,
        default=[500, 4000, 8192, 12000, 32768],
        help="lengths of the prompts whose answers are compared (default: 500,4000,8192,12000,32768)",
    )
    parser.add_argument(
        "--lengths", type=lengths, default=[32768, 131072], help="timed prompts (default: 32768,131072)"
    )
    parser.add_argument("--batches", type=lengths, default=[1, 32], help="timed batches (default: 1,32)")
    parser.add_argument("--batch-length", type=int, default=2048, help="their prompt length (default: 2048)")
    parser.add_argument("--new-tokens", type=int, default=65, help="tokens to generate per request (default: 65)")
    parser.add_argument("--repetitions", type=int, default=3, help="measured requests of each kind (default: 3)")
    parser.add_argument("--weights", default="random", help="what the weights are, to record (default: random)")
    add_engine_options(parser)
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # the size that this process measures
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)  # where it writes Results as JSON
    arguments = parser.parse_args(words)
    check(parser, arguments)
    return arguments


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End the process with an error that names argument, value and what is allowed."""
    check_least(parser, arguments, {"batch_length": 1, "new_tokens": 2, "repetitions": 1})
    if not all(map(SIZE.fullmatch, arguments.sizes)) or len(set(arguments.sizes)) < len(arguments.sizes):
        parser.error(
            f"--sizes is {arguments.sizes}; allowed: different numbers of GPUs, or of those and stages, as 2x4"
        )
    if not (arguments.model / "config.json").is_file() or not list(arguments.model.glob("*.safetensors")):
        parser.error(f"--model is {arguments.model}; allowed: a directory with config.json and *.safetensors")


def main() -> int:
    arguments = parse_arguments(sys.argv[1:])
    if arguments.worker:
        measure(arguments)
        return 0
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            file = Path(folder, f"{size}.json")
            if run_worker(size, file, arguments.commit):
                print(f"failed: {size}", file=sys.stderr)
                return 1
            results[size] = json.loads(file.read_text())
    for row in compared_answers(results):
        results_file.record(arguments.output, row, COLUMNS)
    print(table(results))
    return 0


def run_worker(size: str, file: Path, commit: str) -> int:
    """Measure one size in a process of its own; its exit code."""
    command = [sys.executable, "-m", "benchmarks.serving.tensor_parallel", *sys.argv[1:], "--commit", commit]
    environment = os.environ | {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}
    return subprocess.run([*command, "--worker", size, "--results", str(file)], env=environment).returncode


def measure(arguments: argparse.Namespace) -> None:
    """Run one size: append its timings to the CSV file, and write them and its answers to the results file."""
    import sglang

    config = json.loads((arguments.model / "config.json").read_text())
    longest = max(*arguments.lengths, *arguments.answer_lengths, arguments.batch_length) + arguments.new_tokens
    ranks, _, stages = arguments.worker.partition("x")
    sizes = {"tp": int(ranks), "pp": int(stages or 1)}
    options = OPTIONS | {"context_length": longest + 64, "device": arguments.device}
    options |= {f"{name}_size": number for name, number in sizes.items()} | arguments.engine_options
    common = {**sizes, "new_tokens": arguments.new_tokens, **results_file.surroundings(arguments)}
    common |= {"dtype": options.get("dtype") or config.get("dtype"), "weights": arguments.weights}
    common |= {"shapes": " ".join(f"{name}={config[name]}" for name in SHAPES)}
    common |= {"options": json.dumps(options, sort_keys=True)}
    engine = sglang.Engine(model_path=str(arguments.model), **options)
    try:
        answers = [answer(engine, prompt, arguments.new_tokens) for prompt in fixed_prompts(config, arguments)]
        timings = []
        for timing in timed(engine, config, arguments):
            timings.append({name: value for name, value in (common | timing).items() if name in COLUMNS})
            results_file.record(arguments.output, timings[-1], COLUMNS)
    finally:
        engine.shutdown()
    arguments.results.write_text(json.dumps({"common": common, "answers": answers, "timings": timings}))


def fixed_prompts(config: dict, arguments: argparse.Namespace) -> list[list[int]]:
    random = Random(0)
    return [random.choices(range(10, config["vocab_size"]), k=length) for length in arguments.answer_lengths]


def answer(engine: Engine, prompt: list[int], new_tokens: int) -> dict:
    """Greedy tokens and the log-probability of each."""
    found = engine.generate(input_ids=prompt, sampling_params=streams.greedy(new_tokens), return_logprob=True)
    logprobs, tokens = zip(*(entry[:2] for entry in found["meta_info"]["output_token_logprobs"]), strict=True)
    return {"prompt_tokens": len(prompt), "tokens": tokens, "logprobs": logprobs}


def timed(engine: Engine, config: dict, arguments: argparse.Namespace) -> Iterator[dict]:
    """Timings of single requests by prompt length, then of batches by size."""
    for length in arguments.lengths:
        yield {"measured": "one request", **speed.measure_single(engine, config, length, arguments)}
    for size in arguments.batches:
        yield {"measured": "batch", **speed.measure_batch(engine, config, size, arguments)}


def compared_answers(results: dict[str, dict]) -> list[dict]:
    """A row for every answer of every size but the first, which the others are compared with."""
    first, *others = results.values()
    return [
        result["common"] | {"measured": "answer", "requests": 1} | compare(expected, given)
        for result in others
        for expected, given in zip(first["answers"], result["answers"], strict=True)
    ]


def compare(expected: dict, given: dict) -> dict:
    """Tokens up to the first that differs, and the largest difference of log-probabilities up to and with that one.

    Where the two runs part at a near-tie, the log-probabilities of what each of them chose are almost equal too.
    """
    pairs = zip(expected["tokens"], given["tokens"], strict=True)
    equal = next((index for index, (left, right) in enumerate(pairs) if left != right), len(given["tokens"]))
    differences = [abs(left - right) for left, right in zip(expected["logprobs"], given["logprobs"], strict=True)]
    return {
        "prompt_tokens": given["prompt_tokens"],
        "equal_tokens": equal,
        "max_logprob_difference": round(max(differences[: equal + 1]), 6),
    }


def table(results: dict[str, dict]) -> str:
    """Markdown: a row per size, a column per timing."""
    first = next(iter(results.values()))["timings"]
    titles = ["size"]
    for row in first:
        if row["measured"] == "one request":
            titles += [f"TTFT at {row['prompt_tokens']} s", f"decode at {row['prompt_tokens']} ms/token"]
        else:
            titles.append(f"decode of {row['requests']} ms/token")
    lines = [titles, ["---"] * len(titles)]
    for tp, result in results.items():
        values = [row[name] for row in result["timings"] for name in ("ttft_s", "decode_ms_per_token") if name in row]
        lines.append([str(value) for value in (tp, *values)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":  # SGLang spawns workers that import this file
    sys.exit(main())
