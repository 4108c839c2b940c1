"""LoRA: whether answers are those of merged weights, and what adapters cost per token, as CSV rows.

    sala-sglang make-checkpoint --preset full --out DIR
    python -m benchmarks.serving.lora --model DIR --rank 16 --work WORK --output benchmarks/results/serving/lora.csv

From the root of the repository. Adapters are random, of every linear layer, and change it by about 0.3 of its weight.
Engines run one after the other, each in a process of its own: the model alone, the model with eight adapters, and the
model with the first of them merged into its weights, which is written to WORK (19 GB). Answers to fixed random prompts
with the first adapter are compared with those of merged weights; both round to bfloat16, at different places, and the
model alone shows how far apart answers are without the adapter. Then milliseconds per token of a batch while all of
its requests generate, with no adapter, one, and all eight; ``--profile`` writes what its decode steps consist of to a
file of its own. A table ends the run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.common import results_file, streams
from benchmarks.common.options import add_engine_options, check_least
from benchmarks.serving import step_profile
from benchmarks.serving.speed import SHARED_OPTIONS, positive_integers
from benchmarks.serving.tensor_parallel import compare, fixed_prompts
from sala_sglang.config import SALAConfig
from testing.lora_adapters import merge_checkpoint, write_adapter

if TYPE_CHECKING:  # imported where an engine runs
    from sglang import Engine

ENGINES = "alone", "adapters", "merged"
ADAPTERS = 8
COLUMNS = (
    "date", "engine", "measured", "rank", "adapters", "requests", "prompt_tokens", "new_tokens", "repetitions",
    "decode_ms_per_token", "equal_tokens", "max_logprob_difference", "peak_memory_mib", *results_file.SURROUNDINGS,
)  # fmt: skip
SHOWN = COLUMNS[1 : COLUMNS.index("gpu")]


def parse_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="directory with a config.json and weights")
    parser.add_argument("--output", required=True, type=Path, help="CSV file; rows are appended")
    parser.add_argument("--work", required=True, type=Path, help="directory for adapters, merged weights and answers")
    parser.add_argument("--rank", type=int, default=16, help="of every adapter (default: 16)")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument(
        "--answer-lengths",
        type=positive_integers,
        default=[500, 4000, 12000],
        help="lengths of the prompts whose answers are compared (default: 500,4000,12000)",
    )
    parser.add_argument("--requests", type=int, default=32, help="of a timed batch (default: 32)")
    parser.add_argument("--batch-length", type=int, default=2048, help="their prompt length (default: 2048)")
    parser.add_argument("--new-tokens", type=int, default=65, help="tokens to generate per request (default: 65)")
    parser.add_argument("--repetitions", type=int, default=3, help="measured batches of each kind (default: 3)")
    parser.add_argument("--profile", type=Path, help="CSV file; what the batches' decode steps consist of is appended")
    parser.add_argument("--profile-steps", type=int, default=32, help="decode steps to profile (default: 32)")
    add_engine_options(parser)
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    least = {"rank": 1, "requests": 1, "batch_length": 1, "new_tokens": 2, "repetitions": 1, "profile_steps": 8}
    check_least(parser, arguments, least)
    if not list(arguments.model.glob("*.safetensors")):
        parser.error(f"--model is {arguments.model}; allowed: a directory with config.json and *.safetensors")
    return arguments


def main() -> int:
    arguments = parse_arguments(sys.argv[1:])
    if arguments.worker:
        measure(arguments)
        return 0
    write_files(arguments)
    before = len(results_file.read(arguments.output))
    for engine in arguments.engines:
        command = [sys.executable, "-m", "benchmarks.serving.lora", *sys.argv[1:], "--worker", engine]
        environment = os.environ | {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}
        if subprocess.run([*command, "--commit", arguments.commit], env=environment).returncode:
            print(f"failed: {engine}", file=sys.stderr)
            return 1
    for row in compared(arguments):
        results_file.record(arguments.output, row, COLUMNS)
    print(results_file.table(results_file.read(arguments.output)[before:], SHOWN))
    return 0


def adapters(arguments: argparse.Namespace) -> dict[str, Path]:
    """Folders of the adapters by name."""
    return {f"a{number}": arguments.work / f"rank{arguments.rank}-a{number}" for number in range(ADAPTERS)}


def merged(arguments: argparse.Namespace) -> Path:
    return arguments.work / f"rank{arguments.rank}-merged"


def write_files(arguments: argparse.Namespace) -> None:
    """Adapters, and the checkpoint with the first one merged, unless they are there."""
    config = SALAConfig.from_pretrained(arguments.model)
    for seed, folder in enumerate(adapters(arguments).values()):
        if not folder.exists():
            write_adapter(folder, config, rank=arguments.rank, seed=seed, dtype=torch.bfloat16)
    if "merged" in arguments.engines and not merged(arguments).exists():
        merge_checkpoint(arguments.model, next(iter(adapters(arguments).values())), merged(arguments), arguments.device)


def measure(arguments: argparse.Namespace) -> None:
    """Run one engine: keep its answers, and append its timings."""
    import sglang

    config = json.loads((arguments.model / "config.json").read_text())
    new_tokens = max(arguments.new_tokens, step_profile.decode_tokens(arguments.profile_steps))
    longest = max(*arguments.answer_lengths, arguments.batch_length) + new_tokens
    options = SHARED_OPTIONS | {"load_format": "auto", "context_length": longest + 64, "device": arguments.device}
    if arguments.worker == "adapters":
        options |= {"enable_lora": True, "max_loras_per_batch": ADAPTERS + 1, "max_loaded_loras": ADAPTERS + 1}
        options["lora_paths"] = {name: str(folder) for name, folder in adapters(arguments).items()}
    options |= arguments.engine_options
    common = {"engine": arguments.worker, "rank": arguments.rank, "new_tokens": arguments.new_tokens}
    common |= results_file.surroundings(arguments) | {"weights": "random"}
    shown = {name: value for name, value in options.items() if name != "lora_paths"}
    common |= {"dtype": options.get("dtype") or config.get("dtype"), "options": json.dumps(shown, sort_keys=True)}
    path = merged(arguments) if arguments.worker == "merged" else arguments.model
    engine = sglang.Engine(model_path=str(path), **options)
    try:
        first = next(iter(adapters(arguments))) if arguments.worker == "adapters" else None
        answers = [answer(engine, prompt, arguments.new_tokens, first) for prompt in fixed_prompts(config, arguments)]
        for used in (0, 1, ADAPTERS) if arguments.worker == "adapters" else (0,):
            row = common | measure_batch(engine, config, used, arguments)
            results_file.record(arguments.output, row, COLUMNS)
            if arguments.profile:
                profile_batch(engine, config, used, common, arguments)
    finally:
        engine.shutdown()
    answers_file(arguments, arguments.worker).write_text(json.dumps({"common": common, "answers": answers}))


def answers_file(arguments: argparse.Namespace, engine: str) -> Path:
    return arguments.work / f"rank{arguments.rank}-{engine}.json"


def answer(engine: Engine, prompt: list[int], new_tokens: int, adapter: str | None) -> dict:
    """Greedy tokens and the log-probability of each."""
    found = engine.generate(
        input_ids=prompt, sampling_params=streams.greedy(new_tokens), return_logprob=True, lora_path=adapter
    )
    logprobs, tokens = zip(*(entry[:2] for entry in found["meta_info"]["output_token_logprobs"]), strict=True)
    return {"prompt_tokens": len(prompt), "tokens": tokens, "logprobs": logprobs}


def measure_batch(engine: Engine, config: dict, used: int, arguments: argparse.Namespace) -> dict:
    """Medians of batches whose requests use the first ``used`` adapters in turn, after one that does not count."""
    decodes = []
    with results_file.peak_memory(arguments.device) as memory:
        for _ in range(arguments.repetitions + 1):
            prompts, given = batch(config, used, arguments)
            decodes.append(streams.decode_seconds(streams.stream(engine, prompts, arguments.new_tokens, **given)))
    return {
        "measured": "batch",
        "adapters": used,
        "requests": arguments.requests,
        "prompt_tokens": arguments.batch_length,
        "repetitions": arguments.repetitions,
        "decode_ms_per_token": round(statistics.median(decodes[1:]) * 1e3, 3),
        "peak_memory_mib": memory["peak_mib"],
    }


def profile_batch(engine: Engine, config: dict, used: int, common: dict, arguments: argparse.Namespace) -> None:
    """Rows for each group of kernels in the decode steps of one such batch."""
    name = f"{arguments.worker}-rank{arguments.rank}-{used}"
    folder = arguments.profile.with_suffix("")
    profiler = step_profile.profiler_options(arguments.device, folder, name)
    prompts, given = batch(config, used, arguments)
    step_profile.record_decode(engine, prompts, arguments.profile_steps, profiler, **given)
    about = {name: value for name, value in common.items() if name in step_profile.COLUMNS} | {
        "engine": f"{arguments.worker}, rank {arguments.rank}, {used} used",
        "step": f"decode of {arguments.requests}",
        "requests": arguments.requests,
        "context_tokens": arguments.batch_length,
    }
    trace = step_profile.read_trace(folder, name, arguments.device)
    for row in step_profile.decode_rows(trace, arguments.profile_steps):
        results_file.record(arguments.profile, about | row, step_profile.COLUMNS)


def batch(config: dict, used: int, arguments: argparse.Namespace) -> tuple[list[list[int]], dict]:
    """Random prompts, and the arguments that give them the first ``used`` adapters in turn."""
    prompts = [streams.random_prompt(config, arguments.batch_length) for _ in range(arguments.requests)]
    names = list(adapters(arguments))[:used]
    return prompts, {"lora_path": [names[number % used] for number in range(arguments.requests)]} if used else {}


def compared(arguments: argparse.Namespace) -> list[dict]:
    """A row for every answer with the adapter, and of the model alone, against the merged weights."""
    files = {engine: answers_file(arguments, engine) for engine in ENGINES}
    found = {engine: json.loads(file.read_text()) for engine, file in files.items() if file.exists()}
    return [
        result["common"] | {"measured": "answer", "requests": 1} | compare(expected, given)
        for engine, result in found.items()
        if engine != "merged" and "merged" in found
        for expected, given in zip(found["merged"]["answers"], result["answers"], strict=True)
    ]


if __name__ == "__main__":  # SGLang spawns workers that import this file
    sys.exit(main())
