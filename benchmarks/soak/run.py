"""Minutes of random load on a server: whether its answers are right, nothing leaks, and it goes on; as a CSV row.

    python -m benchmarks.soak.run --model DIR --context 1048576 --output benchmarks/results/soak/run.csv

From the root of the repository; DIR needs weights. A server is started with pools that are too small for its load:
cached prefixes are evicted, and requests that outgrow the pools are retracted. Clients ask prompts of 1 to
``--longest`` tokens that share prefixes, some with several samples, some with structured output where the model has a
tokenizer, and some leave after the first token; a prompt as long as the context follows once.

Then a sample of the answers is scored by the same server at rest with an empty cache, and must differ from what it said
under load by no more than twice the noise at rest, which is measured with the same prompts. At the end no page, state
or snapshot may be in use. The exit code is 1 where something is wrong. What comes after ``--`` goes to the server.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from random import Random

import torch

from benchmarks.common import results_file
from benchmarks.common.options import add_commit, check_least
from benchmarks.soak import score
from benchmarks.soak.load import LONG_ANSWER, Load, Tally, describe
from testing.server import GAUGE_SECONDS, Server

ADMIT_TOO_MANY = {"SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "8"}  # as if none generated more tokens
LONGER_CONTEXT = {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}
SPARE = 16  # tokens; SGLang keeps a few of the context for itself
STATES_PER_CLIENT = 6  # one more than each needs; the rest are snapshots
EVICTABLE = ("kv_evictable_tokens", "mamba_evictable_tokens")
COUNTERS = {"retractions": "num_retracted_requests_total", "evicted_tokens": "evicted_tokens_total"}
COLUMNS = (
    "date", "seconds", "requests", "prompt_tokens", "output_tokens", "cached_tokens", "aborts", "structured",
    "retractions", "evicted_tokens", "longest_prompt", "scored", "worst_difference", "mean_difference",
    "worst_decode_noise", "mean_decode_noise", "worst_batch_noise", "mean_batch_noise", "leaks", "failures", "passed",
    *results_file.SURROUNDINGS,
)  # fmt: skip


def parse_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="directory with a config.json and weights")
    parser.add_argument("--output", required=True, type=Path, help="CSV file; a row is appended")
    parser.add_argument("--minutes", type=float, default=5, help="of load (default: 5)")
    parser.add_argument("--clients", type=int, default=32, help="requests at once (default: 32)")
    parser.add_argument("--longest", type=int, default=100_000, help="tokens of a prompt (default: 100000)")
    parser.add_argument(
        "--context", type=int, default=131_072, help="tokens of the context; one prompt fills it (default: 131072)"
    )
    parser.add_argument("--pool", type=int, help="tokens of the KV pool (default: a fifth more than the context)")
    parser.add_argument("--new-tokens", type=int, default=200, help="at most, per answer (default: 200)")
    parser.add_argument("--sample", type=int, default=40, help="answers to score (default: 40)")
    parser.add_argument("--budget", type=int, default=500_000, help="tokens they have at most (default: 500000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="random", help="what the weights are, to record (default: random)")
    add_commit(parser)
    parser.add_argument("server_arguments", nargs="*", help="further arguments of the server, after --")
    arguments = parser.parse_args(words)
    check(parser, arguments)
    return arguments


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Complete the arguments, or end the process with an error that names argument, value and what is allowed."""
    check_least(parser, arguments, {"clients": 1, "longest": 2, "new_tokens": 1, "sample": 1, "budget": 1})
    arguments.pool = arguments.pool or arguments.context * 6 // 5
    least = arguments.longest + max(arguments.new_tokens, LONG_ANSWER) + SPARE
    if arguments.context < least:
        parser.error(f"--context is {arguments.context}; allowed: {least} or more for prompts of --longest")
    if arguments.pool < arguments.context:
        parser.error(f"--pool is {arguments.pool}; allowed: {arguments.context}, the context, or more")
    if not list(arguments.model.glob("*.safetensors")):
        parser.error(f"--model is {arguments.model}; allowed: a directory with config.json and *.safetensors")


def main() -> int:
    arguments = parse_arguments(sys.argv[1:])
    arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    options = server_options(arguments)
    config = json.loads((arguments.model / "config.json").read_text())
    row = results_file.surroundings(arguments) | {"dtype": config.get("dtype"), "weights": arguments.weights}
    row["options"] = " ".join(options)
    with Server(arguments.model, *options, environment=ADMIT_TOO_MANY | LONGER_CONTEXT) as server:
        tally, found = run(server, config, arguments)
        row |= found
        if tally.failures:
            print(server.log[-5000:], file=sys.stderr)
    results_file.record(arguments.output, row, COLUMNS)
    print(results_file.table([{"what": name, "value": row.get(name, "")} for name in COLUMNS[:21]], ("what", "value")))
    for failure in tally.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 0 if row["passed"] == "yes" else 1


def server_options(arguments: argparse.Namespace) -> list[str]:
    options = f"--context-length {arguments.context} --max-total-tokens {arguments.pool} --enable-mixed-chunk "
    options += f"--max-running-requests {arguments.clients} --max-mamba-cache-size {states(arguments)}"
    if not has_tokenizer(arguments):
        options += " --skip-tokenizer-init"
    return [*options.split(), *arguments.server_arguments]


def states(arguments: argparse.Namespace) -> int:
    return arguments.clients * STATES_PER_CLIENT


def has_tokenizer(arguments: argparse.Namespace) -> bool:
    return (arguments.model / "tokenizer_config.json").exists()


def run(server: Server, config: dict, arguments: argparse.Namespace) -> tuple[Tally, dict]:
    """Load, scores and what is left over, as columns of the row; whatever fails is in the tally's failures."""
    load = make_load(server, config, arguments)
    tally = load.run(arguments.sample)
    found = {"seconds": round(time.monotonic() - load.begin), "structured": "yes" if load.structured else "no"}
    found |= {"longest_prompt": load.long or load.longest}
    found |= {name: getattr(tally, name) for name in ("requests", "prompt_tokens", "output_tokens", "cached_tokens")}
    found |= {"aborts": tally.aborts}
    try:
        left = leftovers(server)
        gauges = server.gauges()
        found |= {name: round(gauges.get(gauge, 0)) for name, gauge in COUNTERS.items()}
        found |= scores(server, config, tally, arguments)
        left |= leftovers(server)
        if left:
            tally.failures.append(f"left over: {left}")
        found["leaks"] = len(left)
    except Exception as error:  # the server may be gone; what was measured is worth its row
        tally.failures.append(f"after the load: {describe(error)}")
    if not server.is_running():
        tally.failures.append("the server has ended")
    return tally, found | {"failures": len(tally.failures), "passed": "no" if tally.failures else "yes"}


def make_load(server: Server, config: dict, arguments: argparse.Namespace) -> Load:
    long = arguments.context - LONG_ANSWER - SPARE
    return Load(
        server=server,
        vocabulary=config["vocab_size"],
        seconds=arguments.minutes * 60,
        clients=arguments.clients,
        longest=arguments.longest,
        long=long if long > arguments.longest else 0,
        new_tokens=arguments.new_tokens,
        structured=has_tokenizer(arguments),
        dense_len=config["sparse_config"]["dense_len"],
        seed=arguments.seed,
    )


def scores(server: Server, config: dict, tally: Tally, arguments: argparse.Namespace) -> dict:
    """Columns of the differences; the tally fails where they are larger than noise."""
    sample = Random(arguments.seed).sample(tally.sample, len(tally.sample))
    chosen = score.choose(sample, arguments.budget, config["sparse_config"]["dense_len"])
    if not chosen:
        raise ValueError(f"none of {len(sample)} answers can be scored with {arguments.budget} tokens")
    found = score.judge(server, chosen)
    if not score.within_noise(found):
        tally.failures.append(f"answers differ by {found['load'].max} from their scores")
        for one, largest in zip(chosen, found["load"].largest, strict=True):
            print(f"{one.kind}, {len(one.prompt)} + {len(one.tokens)} tokens: {largest}", file=sys.stderr)
    columns = {"load": "difference", "decode": "decode_noise", "batch": "batch_noise"}
    return {"scored": len(chosen)} | {
        f"{kind}_{column}": round(value, 7)
        for name, column in columns.items()
        for kind, value in (("worst", found[name].max), ("mean", found[name].mean))
    }


def leftovers(server: Server) -> dict[str, float]:
    """Counters that are not zero at rest, with the cache emptied: pages, states and snapshots among them."""
    busy = {name: value for name, value in server.idle_counters().items() if value}
    server.flush_cache()
    deadline = time.monotonic() + GAUGE_SECONDS
    while True:
        gauges = server.gauges()
        kept = {name: gauges[name] for name in EVICTABLE if gauges[name]}
        if not kept or time.monotonic() > deadline:
            return busy | kept
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
