"""One request at a time by prompt length: the plugin, stock SGLang's dense path and Qwen3-8B, on one GPU.

    sala-sglang make-checkpoint --preset full --out DIR
    python -m benchmarks.serving.side_by_side --model DIR --lengths 8K,32K,128K,256K,1M,2M \\
        --output benchmarks/results/serving/side_by_side.csv

From the root of the repository. Each engine runs in a process of its own, one after the other, and starts once, with a
pool of keys and values for the longest prompt and two running requests, without a prefix cache. Per length: time to
first token and milliseconds per further token, medians over the repetitions after one warm-up; requests that will take
more than 12 seconds are asked once, without warm-up of that length. What an engine cannot hold or does not survive
stands in its row, and lengths that ``--minutes`` has no time for are left out. Rows are appended as they are measured,
and what the CSV file has for an engine, length, commit and GPU is not measured again. A table, how many times faster
than the baselines, and a plot beside the CSV file end the run; ``--plot`` makes them from rows of earlier runs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import results_file
from benchmarks.common.options import add_engine_options, check_least
from benchmarks.common.streams import one_request, random_prompt
from benchmarks.serving import qwen3, speed
from sala_sglang.cli import TOKEN_UNITS

if TYPE_CHECKING:  # imported where an engine runs
    from sglang import Engine

STOCK = {"SALA_DISABLE": "1", "SGLANG_PLUGINS": "none"}
QWEN3 = "qwen3-8b"
QWEN3_ENGINES = {
    f"{QWEN3}-{backend}": (
        {"attention_backend": backend, "cuda_graph_backend_prefill": "disabled", "load_format": "dummy"},
        STOCK,
    )
    for backend in ("flashinfer", "fa3", "triton")
}
# Engine name: (its own options, its environment).
ENGINES = {
    "plugin": speed.ENGINES["plugin"],
    "plugin-fp8": ({"quantization": "fp8"}, {}),
    "stock-dense": speed.ENGINES["stock-dense"],
    **QWEN3_ENGINES,
}
OPTIONS = speed.SHARED_OPTIONS | {"load_format": "auto", "max_running_requests": 2, "mem_fraction_static": 0.88}
SLOTS_BESIDE = 128  # tokens of two pages, which SGLang wants free beside prompt and answer
SLACK_TOKENS = 1024  # of the pool, beyond the longest request
WARM_UP_TOKENS = 32_768  # beyond what this model attends to densely
LONG_SECONDS = 12.0  # of requests that are asked once
MEASURED = "measured"
COLUMNS = (
    "date", "engine", "outcome", "prompt_tokens", "new_tokens", "repetitions", "ttft_s", "decode_ms_per_token",
    "output_tokens_per_s", "peak_memory_mib", "needed_memory_mib", "pool_tokens", *results_file.SURROUNDINGS,
)  # fmt: skip
SHOWN = COLUMNS[1 : COLUMNS.index("gpu")]
PLOTTED = {"ttft_s": "seconds to the first token", "decode_ms_per_token": "ms per further token"}


def parse_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--model", type=Path, help="MiniCPM-SALA: a directory with weights; of Qwen3-8B none is needed")
    action.add_argument("--plot", action="store_true", help="only print and draw what --output has")
    parser.add_argument("--output", required=True, type=Path, help="CSV file; rows are appended")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument(
        "--lengths", type=lengths, default="8K,32K,64K,128K,256K,512K,1M,2M", help="of prompts (default: %(default)s)"
    )
    parser.add_argument("--new-tokens", type=int, default=65, help="tokens to generate per request (default: 65)")
    parser.add_argument("--repetitions", type=int, default=3, help="measured requests per length (default: 3)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="per engine, start included (default: no end)")
    add_engine_options(parser)
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    check_least(parser, arguments, {"new_tokens": 2, "repetitions": 1})
    return arguments


def lengths(text: str) -> list[int]:
    """Tokens, in order, of words such as 8192, 16K and 2M."""
    found = []
    for word in text.split(","):
        number = re.fullmatch(r"([1-9]\d*)([KM]?)", word)
        if not number:
            raise argparse.ArgumentTypeError(f"{word!r} is not possible; allowed: tokens, such as 8192, 16K or 2M")
        found.append(int(number[1]) * TOKEN_UNITS.get(number[2], 1))
    return sorted(found)


def main() -> int:
    arguments = parse_arguments(sys.argv[1:])
    if arguments.worker:
        measure(arguments)
        return 0
    failed = [] if arguments.plot else [name for name in arguments.engines if not run(name, arguments)]
    rows = results_file.read(arguments.output)
    print(results_file.table(rows, SHOWN))
    for ratio in ratios(rows):
        print("{engine}: {ttft_times} times sooner and {decode_times} times faster per token than {baseline} "
              "at {prompt_tokens:,} tokens".format_map(ratio))  # fmt: skip
    draw(arguments.output.with_suffix(".png"), rows)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def run(name: str, arguments: argparse.Namespace) -> bool:
    """Measure an engine in a process of its own; the length at which it ended, if it did, becomes a row."""
    if not missing(name, arguments):
        print(f"{name}: every length is in {arguments.output}", flush=True)
        return True
    environment = os.environ | ENGINES[name][1] | {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}
    command = [sys.executable, "-m", "benchmarks.serving.side_by_side", *sys.argv[1:], "--worker", name]
    command += ["--commit", arguments.commit]
    error = "no error was printed"
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        for line in process.stderr or ():
            sys.stderr.write(line)
            if re.match(r"[\w.]*(Error|Exception|Killed)\b", line):
                error = line.strip()
    if process.returncode and (left := missing(name, arguments)):
        row = {"engine": name, **results_file.surroundings(arguments), "prompt_tokens": left[0], "weights": "random"}
        row |= {"outcome": f"failed: {error}", "options": json.dumps(engine_options(name, arguments), sort_keys=True)}
        results_file.record(arguments.output, row, COLUMNS)
    return not process.returncode


def missing(name: str, arguments: argparse.Namespace) -> list[int]:
    """Lengths that the CSV file has no row of for this engine, commit and GPU."""
    here = results_file.surroundings(arguments)
    had = {
        int(row["prompt_tokens"])
        for row in results_file.read(arguments.output)
        if (row["engine"], row["commit"], row["gpu"]) == (name, here["commit"], here["gpu"])
    }
    return [length for length in arguments.lengths if length not in had]


def engine_options(name: str, arguments: argparse.Namespace) -> dict:
    """Arguments of sglang.Engine: context and pool with room for the longest prompt and its answer."""
    context = arguments.lengths[-1] + arguments.new_tokens + SLOTS_BESIDE
    sizes = {"context_length": context, "max_total_tokens": context + SLACK_TOKENS, "device": arguments.device}
    return OPTIONS | sizes | ENGINES[name][0] | arguments.engine_options


def measure(arguments: argparse.Namespace) -> None:
    """Measure one engine and append its rows."""
    import sglang

    started, name = time.monotonic(), arguments.worker
    options = engine_options(name, arguments)
    with tempfile.TemporaryDirectory() as folder:
        if name in QWEN3_ENGINES:
            arguments.model = Path(folder)
            qwen3.write(arguments.model)
        config = json.loads((arguments.model / "config.json").read_text())
        common = {"engine": name, **results_file.surroundings(arguments), "weights": "random"}
        common |= {"dtype": options.get("dtype") or config.get("dtype"), "options": json.dumps(options, sort_keys=True)}
        engine = sglang.Engine(model_path=str(arguments.model), **options)
        print(f"{name}: started after {time.monotonic() - started:.0f} s", flush=True)
        try:
            for row in measured(engine, config, started + 60 * arguments.minutes, arguments):
                results_file.record(arguments.output, common | row, COLUMNS)
        finally:
            engine.shutdown()


def measured(engine: Engine, config: dict, deadline: float, arguments: argparse.Namespace) -> Iterator[dict]:
    """Rows by prompt length, as far as pool and time reach."""
    info = engine.get_server_info()
    pool_tokens = info["max_total_num_tokens"]
    pool_mib = info["internal_states"][0]["memory_usage"]["kvcache"] * 1024
    left = missing(arguments.worker, arguments)
    room = arguments.new_tokens + SLOTS_BESIDE
    seen = warm_up(engine, config, min(WARM_UP_TOKENS, left[-1], pool_tokens - room), arguments.new_tokens)
    for number, length in enumerate(left, start=1):
        common = {"prompt_tokens": length, "new_tokens": arguments.new_tokens, "pool_tokens": pool_tokens}
        if length + room > pool_tokens:
            yield common | {"outcome": f"does not fit: the memory holds {pool_tokens} tokens"}
            continue
        expected, remaining = expected_seconds(seen, length), deadline - time.monotonic()
        print(f"{arguments.worker}: {number} of {len(left)}, {length} tokens, about {expected:.1f} s", flush=True)
        if expected > remaining:
            print(f"{arguments.worker}: {length} tokens are left out, {remaining:.0f} s remain", flush=True)
            continue
        row = measure_length(engine, config, length, expected > LONG_SECONDS, arguments)
        seen[length] = row["ttft_s"]
        if row["peak_memory_mib"]:
            row["needed_memory_mib"] = round(row["peak_memory_mib"] - pool_mib * (1 - (length + room) / pool_tokens))
        yield common | {"outcome": MEASURED} | row


def warm_up(engine: Engine, config: dict, length: int, new_tokens: int) -> dict[int, float]:
    """Compile what is compiled at the first request; seconds to the first token of one after it, by length."""
    for _ in range(2):
        seconds, _ = one_request(engine, random_prompt(config, length), new_tokens)
    return {length: seconds}


def expected_seconds(seen: dict[int, float], length: int) -> float:
    """To the first token, from the two longest so far: it grows with a power of the length between 1 and 2.

    With one so far, as if it grew with the length: that is the least it takes.
    """
    *others, (last, seconds) = sorted(seen.items())
    power = 1.0
    if others:
        before, earlier = others[-1]
        power = min(2.0, max(1.0, math.log(seconds / earlier) / math.log(last / before)))
    return seconds * (length / last) ** power


def measure_length(engine: Engine, config: dict, length: int, once: bool, arguments: argparse.Namespace) -> dict:
    """Medians of requests after one that does not count, or of a single one."""
    with results_file.peak_memory(arguments.device) as memory:
        prompts = [random_prompt(config, length) for _ in range(1 if once else arguments.repetitions + 1)]
        found = [one_request(engine, prompt, arguments.new_tokens) for prompt in prompts]
    row = speed.single_row(length, found if once else found[1:], memory["peak_mib"], arguments.new_tokens)
    del row["requests"]
    return row | {"repetitions": speed.ONCE if once else arguments.repetitions}


def best(rows: list[dict], name: str, length: int, figure: str) -> float | None:
    """Lowest value among engines whose name begins so; None where none was measured."""
    values = [
        float(row[figure])
        for row in rows
        if row["engine"].startswith(name) and int(row["prompt_tokens"]) == length and row["outcome"] == MEASURED
    ]
    return min(values, default=None)


def ratios(rows: list[dict]) -> list[dict]:
    """How many times the plugin is faster than stock's dense path, and than Qwen3-8B with the fastest attention."""
    found = []
    for length in sorted({int(row["prompt_tokens"]) for row in rows}):
        for baseline in ("stock-dense", QWEN3):
            for engine in sorted({row["engine"] for row in rows if row["engine"].startswith("plugin")}):
                times = {}
                for times_name, figure in (("ttft_times", "ttft_s"), ("decode_times", "decode_ms_per_token")):
                    own = [row for row in rows if row["engine"] == engine]
                    ours, theirs = best(own, engine, length, figure), best(rows, baseline, length, figure)
                    if ours and theirs:
                        times[times_name] = round(theirs / ours, 1)
                if times:
                    found.append({"prompt_tokens": length, "engine": engine, "baseline": baseline, **times})
    return found


def draw(path: Path, rows: list[dict]) -> None:
    """Time to first token and per further token over the prompt length, a line per engine."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullLocator
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed; --plot draws it from the CSV file elsewhere")
        return
    good = [row for row in rows if row["outcome"] == MEASURED]
    ticks = sorted({int(row["prompt_tokens"]) for row in good})
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axis, (column, label) in zip(figure.subplots(1, 2), PLOTTED.items(), strict=True):
        for name in dict.fromkeys(row["engine"] for row in good):
            points = sorted((int(row["prompt_tokens"]), float(row[column])) for row in good if row["engine"] == name)
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens of the prompt", ylabel=label)
        axis.set_xticks(ticks, [short(tokens) for tokens in ticks], minor=False)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        for side in (axis.xaxis, axis.yaxis):
            side.set_minor_locator(NullLocator())
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def short(tokens: int) -> str:
    """Such as 16K or 2M, where the number is a whole one."""
    units = [(unit, name) for name, unit in TOKEN_UNITS.items() if tokens % unit == 0]
    unit, name = max(units, default=(1, ""))
    return f"{tokens // unit}{name}"


if __name__ == "__main__":  # SGLang spawns workers that import this file
    sys.exit(main())
