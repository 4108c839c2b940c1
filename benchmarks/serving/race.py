"""A mixed load on any server with the OpenAI API: how long it takes with 1, 8 and 64 requests at once.

    python -m benchmarks.serving.race --base-url http://127.0.0.1:30000 --engine plugin \\
        --output benchmarks/results/serving/race.csv

From the root of the repository. Prompt lengths are mixed as in the SOAR race for this model: 25 % below 4,096 tokens,
10 % to 16,384, 15 % to 32,768, 35 % to 131,072, 15 % to 163,840; answers are an eighth of its lengths, 8 to 4,096
tokens. The same seed gives the same requests, whatever the server. Prompts are random token ids, or random words with
``--prompts text`` for servers that take no ids; answers are greedy and of fixed length (``ignore_eos``), and one that
is shorter ends the run. A level's duration counts from the first request sent to the last token received, after a
warm-up that does not count. Rows are appended as levels end; what the CSV file has for an engine, level, seed, commit
and GPU is not measured again. A table and a plot beside the CSV file end the run. OPENAI_API_KEY is sent where it is
set.
"""

import argparse
import json
import math
import statistics
import sys
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from benchmarks.common import results_file
from benchmarks.common.options import add_commit, check_least
from benchmarks.serving.mixed_load import FIRST_ID, WARM_UP, Answered, Request, body, get, requests, scaled, send

COLUMNS = (
    "date", "engine", "at_once", "requests", "prompt_tokens", "new_tokens", "duration_s", "ttft_mean_s", "ttft_p95_s",
    "output_tokens_per_s", "total_tokens_per_s", "seed", "longest", "prompts", *results_file.SURROUNDINGS,
)  # fmt: skip
SHOWN = COLUMNS[1 : COLUMNS.index("seed")]
COLOURS = [f"C{number}" for number in range(10)]  # of engines, by turns
# What an SGLang server says about itself that decides how fast it is.
OPTIONS = (
    "attention_backend", "chunked_prefill_size", "context_length", "cuda_graph_backend_prefill", "disable_radix_cache",
    "kv_cache_dtype", "load_format", "max_running_requests", "mem_fraction_static", "pp_size", "quantization",
    "speculative_algorithm", "tp_size",
)  # fmt: skip


def parse_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--base-url", help="of the server, such as http://127.0.0.1:30000")
    action.add_argument("--plot", action="store_true", help="only print and draw what --output has")
    parser.add_argument("--output", required=True, type=Path, help="CSV file; rows are appended")
    parser.add_argument("--engine", default="plugin", help="name to record for the server (default: %(default)s)")
    parser.add_argument("--model", help="served name (default: the first that the server lists)")
    parser.add_argument(
        "--levels",
        type=levels,
        default="1:4,8:16,64:48",
        help="requests at once, and how many in all (default: %(default)s)",
    )
    parser.add_argument(
        "--longest",
        type=int,
        default=163_840,
        help="prompt of the mix in tokens; all its lengths are scaled to it (default: %(default)s)",
    )
    parser.add_argument("--prompts", choices=("ids", "text"), default="ids", help="default: ids")
    parser.add_argument(
        "--vocabulary", type=int, default=70_000, help="ids are drawn below this (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=7, help="of lengths and prompts (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="of the server's machine, to record")
    parser.add_argument("--dtype", help="to record (default: what an SGLang server says)")
    parser.add_argument("--options", help="to record (default: what an SGLang server says)")
    parser.add_argument("--weights", default="random", help="to record (default: %(default)s)")
    add_commit(parser)
    arguments = parser.parse_args(words)
    check_least(parser, arguments, {"longest": 64, "vocabulary": FIRST_ID + 1})
    return arguments


def levels(text: str) -> list[tuple[int, int]]:
    found = []
    for word in text.split(","):
        at_once, _, count = word.partition(":")
        if not (at_once.isdecimal() and count.isdecimal() and int(at_once) and int(count)):
            raise argparse.ArgumentTypeError(f"{word!r} is not possible; allowed: at once:in all, such as 8:16")
        found.append((int(at_once), int(count)))
    return found


def main() -> int:
    arguments = parse_arguments(sys.argv[1:])
    if arguments.base_url:
        for row in measured(arguments):
            results_file.record(arguments.output, row, COLUMNS)
    rows = results_file.read(arguments.output)
    print(results_file.table(rows, SHOWN))
    draw(arguments.output.with_suffix(".png"), rows)
    return 0


def measured(arguments: argparse.Namespace) -> Iterator[dict]:
    """Rows of the levels that the CSV file lacks."""
    base_url = arguments.base_url.rstrip("/").removesuffix("/v1")
    common, had = about(base_url, arguments), results_file.read(arguments.output)
    left = [level for level in arguments.levels if not any(is_same(row, common, *level) for row in had)]
    print(f"{arguments.engine}: {len(left)} of {len(arguments.levels)} levels to measure", flush=True)
    model = arguments.model or get(base_url, "/v1/models")["data"][0]["id"]
    vocabulary = arguments.vocabulary if arguments.prompts == "ids" else None
    if left:
        send(base_url, body(Request(*scaled(WARM_UP, arguments.longest), "warm-up"), model, vocabulary))
    for at_once, count in left:
        asked = requests(count, arguments.seed, arguments.longest)
        bodies = [body(request, model, vocabulary) for request in asked]
        answers, duration = run_level(base_url, at_once, asked, bodies, arguments.engine)
        yield common | {"at_once": at_once, "requests": count} | figures(answers, duration)


def about(base_url: str, arguments: argparse.Namespace) -> dict:
    """Columns that all levels share."""
    try:
        server = get(base_url, "/server_info")
    except urllib.error.HTTPError:  # not SGLang: which libraries it has is not known
        server = {}
    except urllib.error.URLError as error:
        raise SystemExit(f"--base-url is {base_url!r}; no server answers there: {error.reason}") from None
    found = results_file.surroundings(arguments) | {"engine": arguments.engine, "weights": arguments.weights}
    found |= {"seed": arguments.seed, "longest": arguments.longest, "prompts": arguments.prompts}
    found |= {} if server else {"torch": "", "sglang": "", "triton": ""}
    told = json.dumps({name: server[name] for name in OPTIONS if name in server}, sort_keys=True)
    return found | {"dtype": arguments.dtype or dtype(server), "options": arguments.options or told}


def dtype(server: dict) -> str:
    """What an SGLang server says; where that is the checkpoint's, what its configuration says, if it is at hand."""
    config = Path(server.get("model_path", ""), "config.json")
    if server.get("dtype") == "auto" and config.is_file():
        return json.loads(config.read_text())["dtype"]
    return server.get("dtype", "")


def is_same(row: dict, common: dict, at_once: int, count: int) -> bool:
    """Whether a row of the CSV file is this level of this engine."""
    names = "engine", "seed", "longest", "prompts", "commit", "gpu"
    wanted = [str(common[name]) for name in names] + [str(at_once), str(count)]
    return wanted == [row[name] for name in (*names, "at_once", "requests")]


def run_level(
    base_url: str, at_once: int, asked: list[Request], bodies: list[bytes], engine: str
) -> tuple[list[Answered], float]:
    """Answers and seconds of the requests, of which ``at_once`` are open at any time.

    Raises RuntimeError where one is refused, or ends before its length.
    """
    answers = []
    with ThreadPoolExecutor(at_once) as pool:
        start = time.perf_counter()
        sent = {pool.submit(send, base_url, body): request for request, body in zip(asked, bodies, strict=True)}
        try:
            for done in tqdm(as_completed(sent), total=len(sent), desc=f"{engine}, {at_once} at once"):
                answers.append(done.result())
                if answers[-1].new_tokens != sent[done].new_tokens:
                    raise RuntimeError(
                        f"the server ended an answer of {sent[done].new_tokens} tokens after {answers[-1].new_tokens}; "
                        "it must take ignore_eos, and its context must hold prompt and answer"
                    )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return answers, time.perf_counter() - start


def figures(answers: list[Answered], duration: float) -> dict:
    """Columns of a level; the 95th percentile is that of the nearest rank."""
    ttfts = sorted(answer.ttft_s for answer in answers)
    prompt_tokens = sum(answer.prompt_tokens for answer in answers)
    new_tokens = sum(answer.new_tokens for answer in answers)
    return {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "duration_s": round(duration, 2),
        "ttft_mean_s": round(statistics.mean(ttfts), 3),
        "ttft_p95_s": round(ttfts[math.ceil(0.95 * len(ttfts)) - 1], 3),
        "output_tokens_per_s": round(new_tokens / duration, 1),
        "total_tokens_per_s": round((prompt_tokens + new_tokens) / duration, 1),
    }


def draw(path: Path, rows: list[dict]) -> None:
    """Durations by level, a bar per engine; of an engine and level that was measured again, the last."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed; --plot draws it from the CSV file elsewhere")
        return
    found = {(row["engine"], row["at_once"], row["requests"]): float(row["duration_s"]) for row in rows}
    engines = list(dict.fromkeys(engine for engine, *_ in found))
    stages = sorted({(int(at_once), int(count)) for _, at_once, count in found})
    figure = Figure(figsize=(4 * len(stages), 3.5), layout="constrained")
    for axis, (at_once, count) in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        durations = [found.get((engine, str(at_once), str(count)), math.nan) for engine in engines]
        axis.bar_label(axis.bar(engines, durations, color=COLOURS), fmt="{:.3g}", fontsize="small")
        axis.set(title=f"{at_once} at once, {count} requests", ylabel="seconds until all are answered")
        axis.tick_params(axis="x", rotation=20)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
