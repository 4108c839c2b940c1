"""Serving speed of the plugin and of stock SGLang's dense path, with random weights, as CSV rows.

    python benchmarks/serving.py --model DIR --lengths 8192,32768 --output benchmarks/results/serving.csv

DIR needs a config.json only. Each engine runs in a process of its own, one after the other. Per prompt length one
request at a time: time to first token and milliseconds per further token, medians over the repetitions after one
warm-up. Then ``--batch`` requests at once: output tokens per second from submission to the last token.
"""

import argparse
import csv
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

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
# Engine name: (its own options, its environment). Stock SGLang cannot capture prefill graphs of this model.
ENGINES = {
    "plugin": ({}, {}),
    "stock-dense": (
        {"attention_backend": "minicpm_flashinfer", "cuda_graph_backend_prefill": "disabled"},
        {"SALA_DISABLE": "1", "SGLANG_PLUGINS": "none", "SGLANG_MINICPM_FORCE_DENSE": "1"},
    ),
}
# fmt: off
COLUMNS = (
    "date", "engine", "requests", "prompt_tokens", "new_tokens", "repetitions", "ttft_s", "decode_ms_per_token",
    "output_tokens_per_s", "peak_memory_mib", "gpu", "driver", "torch", "sglang", "triton", "python", "commit",
    "dtype", "weights", "options",
)
# fmt: on


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory with a config.json")
    parser.add_argument("--lengths", required=True, type=positive_integers, help="prompt lengths, such as 8192,32768")
    parser.add_argument("--output", required=True, type=Path, help="CSV file; rows are appended")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--new-tokens", type=int, default=65, help="tokens to generate per request (default: 65)")
    parser.add_argument("--repetitions", type=int, default=3, help="measured requests per length (default: 3)")
    parser.add_argument(
        "--batch", type=int, default=32, help="concurrent requests; 0 leaves the mode out (default: 32)"
    )
    parser.add_argument("--batch-length", type=int, default=2048, help="their prompt length (default: 2048)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--engine-options", type=json.loads, default={}, help="further sglang.Engine options, as JSON")
    parser.add_argument("--commit", default=current_commit(), help="commit to record (default: that of the checkout)")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name, least in (("new_tokens", 2), ("repetitions", 3), ("batch", 0), ("batch_length", 1)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; allowed: {least} or more")
    return arguments


def positive_integers(text: str) -> list[int]:
    values = [int(word) for word in text.split(",")]
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not possible; allowed: positive integers, separated by commas")
    return values


def main() -> int:
    arguments = parse_arguments()
    if arguments.worker:
        measure(arguments)
        return 0
    failed = []
    for name in arguments.engines:
        environment = os.environ | ENGINES[name][1] | {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", name, "--commit", arguments.commit]
        if subprocess.run(command, env=environment).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def measure(arguments: argparse.Namespace) -> None:
    """Measure one engine and append its rows."""
    import sglang

    longest = max(*arguments.lengths, arguments.batch_length) + arguments.new_tokens
    options = SHARED_OPTIONS | ENGINES[arguments.worker][0] | {"context_length": longest + 64}
    options |= {"device": arguments.device} | arguments.engine_options
    engine = sglang.Engine(model_path=arguments.model, **options)
    config = json.loads(Path(arguments.model, "config.json").read_text())
    common = {"engine": arguments.worker, **surroundings(arguments)}
    common |= {"dtype": options.get("dtype") or config.get("dtype"), "weights": "random"}
    common |= {"options": json.dumps(options, sort_keys=True), "new_tokens": arguments.new_tokens}
    try:
        for length in arguments.lengths:
            append(arguments.output, common | measure_single(engine, config, length, arguments))
        if arguments.batch:
            append(arguments.output, common | measure_batch(engine, config, arguments))
    finally:
        engine.shutdown()


def measure_single(engine, config: dict, length: int, arguments: argparse.Namespace) -> dict:
    ttfts, decodes = [], []
    with peak_memory(arguments.device) as memory:
        for repetition in range(arguments.repetitions + 1):
            ttft, decode = one_request(engine, random_prompt(config, length), arguments.new_tokens)
            if repetition:  # the first one warms up
                ttfts.append(ttft)
                decodes.append(decode)
    return {
        "requests": 1,
        "prompt_tokens": length,
        "repetitions": arguments.repetitions,
        "ttft_s": round(statistics.median(ttfts), 4),
        "decode_ms_per_token": round(statistics.median(decodes) * 1e3, 3),
        "output_tokens_per_s": round(1 / statistics.median(decodes), 2),
        "peak_memory_mib": memory["peak_mib"],
    }


def measure_batch(engine, config: dict, arguments: argparse.Namespace) -> dict:
    rates = []
    with peak_memory(arguments.device) as memory:
        for repetition in range(arguments.repetitions + 1):
            prompts = [random_prompt(config, arguments.batch_length) for _ in range(arguments.batch)]
            start = time.perf_counter()
            engine.generate(input_ids=prompts, sampling_params=greedy(arguments.new_tokens))
            if repetition:
                rates.append(arguments.batch * arguments.new_tokens / (time.perf_counter() - start))
    return {
        "requests": arguments.batch,
        "prompt_tokens": arguments.batch_length,
        "repetitions": arguments.repetitions,
        "output_tokens_per_s": round(statistics.median(rates), 2),
        "peak_memory_mib": memory["peak_mib"],
    }


def one_request(engine, prompt: list[int], new_tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and seconds per token after it."""
    start = time.perf_counter()
    arrivals = stream(engine, [prompt], new_tokens)
    return arrivals[0][0][0] - start, decode_seconds(arrivals)


def stream(engine, prompts: list[list[int]], new_tokens: int) -> list[list[tuple[float, int]]]:
    """Run the prompts at once; for each, when how many of its tokens had come: (seconds, tokens) in order."""
    arrivals = [[] for _ in prompts]
    for chunk in engine.generate(input_ids=prompts, sampling_params=greedy(new_tokens), stream=True):
        arrivals[chunk["index"]].append((time.perf_counter(), chunk["meta_info"]["completion_tokens"]))
    counts = [seen[-1][1] if seen else 0 for seen in arrivals]
    if set(counts) != {new_tokens}:
        raise RuntimeError(f"expected streams of {new_tokens} tokens, got {counts}")
    return arrivals


def decode_seconds(arrivals: list[list[tuple[float, int]]]) -> float:
    """Seconds per token and request while all requests generate: from the last first token to the first last one."""
    start, end = max(seen[0][0] for seen in arrivals), min(seen[-1][0] for seen in arrivals)
    steps = statistics.mean(tokens_at(seen, end) - tokens_at(seen, start) for seen in arrivals)
    if steps <= 0:
        raise RuntimeError("no request generated while all others did; allowed: more new tokens")
    return (end - start) / steps


def tokens_at(seen: list[tuple[float, int]], moment: float) -> int:
    return max(count for when, count in seen if when <= moment)


def greedy(new_tokens: int) -> dict:
    return {"max_new_tokens": new_tokens, "ignore_eos": True, "temperature": 0}


def random_prompt(config: dict, length: int) -> list[int]:
    return random.choices(range(10, config["vocab_size"]), k=length)


def surroundings(arguments: argparse.Namespace) -> dict:
    """Machine and versions, for every row."""
    found = {"date": time.strftime("%Y-%m-%d"), "commit": arguments.commit, "gpu": "none", "driver": "none"}
    found |= {package: version(package) for package in ("torch", "sglang", "triton")}
    if arguments.device == "cuda":
        with first_gpu() as (nvml, gpu):
            found |= {"gpu": nvml.nvmlDeviceGetName(gpu), "driver": nvml.nvmlSystemGetDriverVersion()}
    return found | {"python": platform.python_version()}


def current_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


@contextmanager
def first_gpu():
    """NVML and its handle of the first GPU; unlike torch it takes no memory there."""
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
    finally:
        pynvml.nvmlShutdown()


@contextmanager
def peak_memory(device: str):
    """Sample the memory in use on the first GPU; ``peak_mib`` is set at the end, empty on a CPU."""
    result = {"peak_mib": ""}
    if device == "cpu":
        yield result
        return
    samples, stop = [], threading.Event()

    def sample() -> None:
        with first_gpu() as (nvml, gpu):
            while not stop.is_set():
                samples.append(nvml.nvmlDeviceGetMemoryInfo(gpu).used)
                stop.wait(0.1)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield result
    finally:
        stop.set()
        sampler.join()
    result["peak_mib"] = max(samples) >> 20


def append(path: Path, row: dict, columns: tuple[str, ...] = COLUMNS) -> None:
    """Append a row to the CSV file, and print what it says besides its surroundings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerow(row)
    measured = columns[1 : columns.index("gpu")]
    print(", ".join(f"{name}={row[name]}" for name in measured if name in row), flush=True)


if __name__ == "__main__":  # SGLang spawns workers that import this file
    sys.exit(main())
