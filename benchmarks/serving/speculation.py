"""Speculative decoding: what a step costs by accept length, and what is accepted on text, as CSV rows.

    sala-sglang make-checkpoint --preset full --out DIR
    python -m benchmarks.serving.speculation --model DIR --output benchmarks/results/serving/speculation.csv

From the root of the repository. Engines run one after the other, each in a process of its own: ``plain`` without
speculation; ``single rows``, where no step verifies drafts; and one per accept length, where every step verifies D − 1
drafts and SGLang accepts as many as it is told, whatever they are: those answers mean nothing, and a step takes what it
takes. Per length of single requests, and per batch of ``--batch-length``: milliseconds per token while all requests
generate, per step, and how many times faster than ``plain``. Lengths from 500,000 tokens on are asked once, with no
warm-up of that length. Last, sala-tiny answers text with prompt lookup as it serves, where a row has the accept length
that it finds. With ``--head`` all these drafts come from an EAGLE3 head instead. A table ends the run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import results_file, streams
from benchmarks.common.options import add_engine_options, check_least
from benchmarks.serving.speed import ONCE, ONCE_FROM, SHARED_OPTIONS, batch_sizes, positive_integers
from sala_sglang.speculation import drafts

if TYPE_CHECKING:  # imported where an engine runs
    from sglang import Engine

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
TINY, TINY_HEAD = CHECKPOINTS / "sala-tiny", CHECKPOINTS / "sala-tiny-eagle3"
RECORDED = ("SALA_OWN_PRODUCTS",)  # variables that change how a model computes
VERIFY = "SALA_BENCHMARK_VERIFY"  # for the workers: whether every step verifies drafts, or none does
PLAIN, SINGLE_ROWS, TEXT = "plain", "single rows", "text"
SENTENCES = "The baker sings a song. The code of the red fox is 4711. The nurse drinks warm tea. "
TEXTS = {
    "goes on with a paragraph that repeats itself": "Text: " + SENTENCES * 8,
    "answers a question": f"Text: {SENTENCES}\n\nWhat is the code of the red fox?",
}
COLUMNS = (
    "date", "engine", "drafts", "rows_per_step", "accept_length", "requests", "prompt_tokens", "new_tokens",
    "repetitions", "decode_ms_per_token", "step_ms", "times_plain", "peak_memory_mib", *results_file.SURROUNDINGS,
)  # fmt: skip
SHOWN = COLUMNS[1 : COLUMNS.index("gpu")]


class ChosenDrafts(drafts.Drafts):
    """Verifies drafts in every step or in none, as the environment says."""

    def is_worth(self, expected: Sequence[float]) -> bool:
        return os.environ[VERIFY] == "1"


if VERIFY in os.environ:  # SGLang's worker processes import this file again
    drafts.Drafts = ChosenDrafts  # type: ignore[misc]


def parse_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="directory with a config.json and weights")
    parser.add_argument("--output", required=True, type=Path, help="CSV file; rows are appended")
    parser.add_argument(
        "--engines", nargs="+", metavar="ENGINE", help="plain, 'single rows', 1 to D, text (default: all)"
    )
    parser.add_argument("--weights", default="random", help="what the weights are, to record (default: random)")
    parser.add_argument("--head", type=Path, help="an EAGLE3 head for --model (default: prompt lookup)")
    parser.add_argument("--rows", type=int, default=4, help="of a request in a step that verifies, D (default: 4)")
    parser.add_argument("--lengths", type=positive_integers, default=[8192], help="of single prompts (default: 8192)")
    parser.add_argument("--batch", type=batch_sizes, default="32", help="sizes such as 8,32; 0 for none (default: 32)")
    parser.add_argument("--batch-length", type=int, default=8192, help="their prompt length (default: 8192)")
    parser.add_argument("--new-tokens", type=int, default=129, help="tokens to generate per request (default: 129)")
    parser.add_argument("--repetitions", type=int, default=3, help="measured requests of each kind (default: 3)")
    add_engine_options(parser)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    check_least(parser, arguments, {"rows": 2, "new_tokens": 9, "repetitions": 1, "batch_length": 1})
    without_head = () if arguments.head else (SINGLE_ROWS,)  # which drafts in every step
    allowed = PLAIN, *without_head, *map(str, range(1, arguments.rows + 1)), TEXT
    arguments.engines = arguments.engines or list(allowed)
    if unknown := set(arguments.engines) - set(allowed):
        parser.error(f"--engines is {sorted(unknown)}; allowed: {', '.join(allowed)}")
    return arguments


def main() -> int:
    arguments = parse_arguments(sys.argv[1:])
    if arguments.worker:
        measure(arguments)
        return 0
    before = len(results_file.read(arguments.output))
    for engine in arguments.engines:
        command = [sys.executable, "-m", "benchmarks.serving.speculation", *sys.argv[1:], "--worker", engine]
        environment = os.environ | environment_of(engine)
        if subprocess.run([*command, "--commit", arguments.commit], env=environment).returncode:
            print(f"failed: {engine}", file=sys.stderr)
            return 1
    print(results_file.table(results_file.read(arguments.output)[before:], SHOWN))
    return 0


def environment_of(engine: str) -> dict[str, str]:
    """Variables of an engine's processes."""
    longer = {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}
    if engine in (PLAIN, TEXT):
        return longer
    if engine == SINGLE_ROWS:
        return longer | {VERIFY: "0"}
    return longer | {VERIFY: "1", "SGLANG_SIMULATE_ACC_LEN": engine}


def measure(arguments: argparse.Namespace) -> None:
    """Run one engine and append its rows."""
    import sglang

    name = arguments.worker
    model, head = (TINY, TINY_HEAD) if name == TEXT else (arguments.model, arguments.head)
    config = json.loads((model / "config.json").read_text())
    longest = max(*arguments.lengths, arguments.batch_length) + arguments.new_tokens
    options = SHARED_OPTIONS | {"context_length": longest + 64, "device": arguments.device}
    if name == TEXT:
        options |= {"load_format": "auto", "skip_tokenizer_init": False, "context_length": None}
    options |= arguments.engine_options
    variables = {variable: os.environ[variable] for variable in RECORDED if variable in os.environ}
    plain = arguments.commit, arguments.weights, json.dumps(options | variables, sort_keys=True)
    drafts_from = ""
    if name != PLAIN:
        options |= {"speculative_algorithm": "NGRAM", "speculative_num_draft_tokens": arguments.rows}
        drafts_from = "prompt lookup"
    if name != PLAIN and arguments.head:
        options |= {"speculative_algorithm": "EAGLE3", "speculative_draft_model_path": str(head)}
        drafts_from = "EAGLE3 head"
    common = results_file.surroundings(arguments) | {
        "engine": name if name in (PLAIN, SINGLE_ROWS, TEXT) else "verifies",
        "drafts": drafts_from,
        "rows_per_step": 1 if name in (PLAIN, SINGLE_ROWS) else arguments.rows,
        "weights": "sala-tiny" if name == TEXT else arguments.weights,
        "dtype": options.get("dtype") or config.get("dtype"),
        "options": json.dumps(options | variables, sort_keys=True),
    }
    engine = sglang.Engine(model_path=str(model), **options)
    try:
        for row in texts(engine, arguments) if name == TEXT else timed(engine, config, arguments, plain):
            results_file.record(arguments.output, common | row, COLUMNS)
    finally:
        engine.shutdown()


def timed(
    engine: Engine, config: dict, arguments: argparse.Namespace, of_plain: tuple[str, str, str]
) -> Iterator[dict]:
    """Medians of single requests by length, and of batches, after one of each that does not count.

    of_plain: commit, weights and options of the engine without speculation that the times are compared with.
    """
    accepted = int(arguments.worker) if arguments.worker.isdigit() else 1
    plain = {
        (row["requests"], row["prompt_tokens"]): float(row["decode_ms_per_token"])
        for row in results_file.read(arguments.output)
        if (row["engine"], row["commit"], row["weights"], row["options"]) == (PLAIN, *of_plain)
    }
    cases = [(1, length) for length in arguments.lengths] + [(n, arguments.batch_length) for n in arguments.batch]
    for requests, length in cases:
        seconds, once = [], length >= ONCE_FROM
        with results_file.peak_memory(arguments.device) as memory:
            for _ in range(1 if once else arguments.repetitions + 1):
                prompts = [streams.random_prompt(config, length) for _ in range(requests)]
                seconds.append(streams.decode_seconds(streams.stream(engine, prompts, arguments.new_tokens)))
        token_ms = statistics.median(seconds if once else seconds[1:]) * 1e3
        yield {
            "accept_length": accepted,
            "requests": requests,
            "prompt_tokens": length,
            "new_tokens": arguments.new_tokens,
            "repetitions": ONCE if once else arguments.repetitions,
            "decode_ms_per_token": round(token_ms, 3),
            "step_ms": round(token_ms * accepted, 3),
            "times_plain": round(plain.get((str(requests), str(length)), token_ms) / token_ms, 3),
            "peak_memory_mib": memory["peak_mib"],
        }


def texts(engine: Engine, arguments: argparse.Namespace) -> Iterator[dict]:
    """What prompt lookup finds in the answers of sala-tiny to each of TEXTS, alone."""
    for kind, text in TEXTS.items():
        found = engine.generate(text, streams.greedy(arguments.new_tokens))["meta_info"]
        yield {
            "engine": f"{TEXT}: {kind}",
            "accept_length": round(found["spec_accept_length"], 3),
            "requests": 1,
            "prompt_tokens": found["prompt_tokens"],
            "new_tokens": arguments.new_tokens,
            "repetitions": 1,
        }


if __name__ == "__main__":  # SGLang spawns workers that import this file
    sys.exit(main())
