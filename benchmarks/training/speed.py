"""The model in transformers on one GPU: time and memory of prefill and of a training step, as CSV rows.

    python -m benchmarks.training.speed --model DIR --lengths 2048,8192,32768 \\
        --output benchmarks/results/training/speed.csv

From the root of the repository. DIR needs a config.json only: weights are random, bfloat16. Prefill is a forward call
without gradients that computes the last token's logits; a training step is forward and backward of one random sample
with gradient checkpointing, without the optimizer. Medians after one call that does not count, which compiles. A
length that does not fit has a row that says so, and ends its kind.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import sala_sglang.hf  # noqa: F401  registers the model
from benchmarks.common import results_file
from benchmarks.common.options import add_commit, check_least
from benchmarks.serving.speed import positive_integers

COLUMNS = (
    "date", "measured", "prompt_tokens", "repetitions", "seconds", "tokens_per_s", "peak_memory_mib", "kernels",
    *results_file.SURROUNDINGS,
)  # fmt: skip
SHOWN = COLUMNS[1 : COLUMNS.index("gpu")]


def parse_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory with a config.json")
    parser.add_argument("--lengths", required=True, type=positive_integers, help="tokens, such as 2048,8192")
    parser.add_argument("--output", required=True, type=Path, help="CSV file; rows are appended")
    parser.add_argument("--repetitions", type=int, default=3, help="measured calls per length (default: 3)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    add_commit(parser)
    arguments = parser.parse_args(words)
    check_least(parser, arguments, {"repetitions": 1})
    return arguments


def main() -> int:
    arguments = parse_arguments(sys.argv[1:])
    before = len(results_file.read(arguments.output))
    config = AutoConfig.from_pretrained(arguments.model)
    with torch.device(arguments.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    about = results_file.surroundings(arguments) | {"dtype": "bfloat16", "weights": "random"}
    about |= {"kernels": "flash-linear-attention" if find_spec("fla") else "torch"}
    for measured, prepare in (("prefill", prefill), ("training step", train)):
        call = prepare(model)
        for length in sorted(arguments.lengths):
            tokens = torch.randint(config.vocab_size, (1, length), device=arguments.device)
            row = about | {"measured": measured, "prompt_tokens": length} | timed(call, tokens, arguments)
            results_file.record(arguments.output, row, COLUMNS)
            if "seconds" not in row:
                break
    print(results_file.table(results_file.read(arguments.output)[before:], SHOWN))
    return 0


def prefill(model: Any) -> Callable[[torch.Tensor], None]:
    model.eval()

    @torch.no_grad()
    def call(tokens: torch.Tensor) -> None:
        model(input_ids=tokens, use_cache=False, logits_to_keep=1)

    return call


def train(model: Any) -> Callable[[torch.Tensor], None]:
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})

    def call(tokens: torch.Tensor) -> None:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=False)

    return call


def timed(call: Callable[[torch.Tensor], None], tokens: torch.Tensor, arguments: argparse.Namespace) -> dict:
    """Median seconds of a call, and the GPU's memory at its peak; of one that does not fit, only that it does not."""
    on_gpu = arguments.device == "cuda"
    seconds = []
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        for _ in range(arguments.repetitions + 1):
            begin = time.perf_counter()
            call(tokens)
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
    except torch.OutOfMemoryError:
        return {"repetitions": "does not fit"}
    median = statistics.median(seconds[1:])
    return {
        "repetitions": arguments.repetitions,
        "seconds": round(median, 4),
        "tokens_per_s": round(tokens.numel() / median, 1),
        "peak_memory_mib": torch.cuda.max_memory_allocated() >> 20 if on_gpu else "",
    }


if __name__ == "__main__":
    sys.exit(main())
