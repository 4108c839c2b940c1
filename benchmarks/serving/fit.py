"""Does what ``sala-sglang plan`` computes fit? One GPU with part of its memory taken away, as CSV.

    sala-sglang make-checkpoint --preset full --out DIR
    python -m benchmarks.serving.fit --model DIR --mib 24564,32607,49140,81559 \\
        --output benchmarks/results/serving/fit.csv

For each size of a card and each kind of weights an engine starts with the arguments that the plan gives for the longest
context that fits, and is asked that much once; another process holds the rest of the memory meanwhile. A row has the
computed sum and the measured peak, or the error with which the engine ended. Rows are appended.
"""

import argparse
import json
import multiprocessing
import os
import sys
from multiprocessing.synchronize import Event
from pathlib import Path

from benchmarks.common import results_file
from benchmarks.common.options import add_engine_options
from benchmarks.common.streams import one_request, random_prompt
from benchmarks.serving.side_by_side import SLOTS_BESIDE
from benchmarks.serving.speed import SHARED_OPTIONS, positive_integers
from sala_sglang.cards import plan
from sala_sglang.cards.data import Card
from sala_sglang.cards.memory import MIB, Load, memory_bytes
from sala_sglang.config import SALAConfig

MEASURED = "peak_memory_mib", "difference_percent", "ttft_s", "decode_ms_per_token"
COLUMNS = (
    *("date", "card_mib", "weights_kind", "prefix_cache", "context_tokens", "outcome", "computed_mib"),
    *(*MEASURED, *results_file.SURROUNDINGS),
)
NEW_TOKENS, LONGEST_TOKENS = 65, 2**20
WEIGHTS = "bf16", "fp8"


def planned(mib: int, weights: str) -> tuple[Load, dict]:
    """The longest load up to LONGEST_TOKENS of a card with this memory, and arguments of sglang.Engine for it."""
    config, card = SALAConfig(), Card("", "", (9, 0), mib, None, None, None, "")
    load = Load(0, 1, plan.default_chunk_tokens(mib), weights)
    load = load._replace(context_tokens=min(plan.longest_context(config, card, load), LONGEST_TOKENS))
    words = " ".join(plan.flags(config, card, load)).split()
    given = dict(zip(words[::2], words[1::2], strict=True))
    numbers = {name[2:].replace("-", "_"): value for name, value in given.items()}
    options = {name: value if name == "quantization" else json.loads(value) for name, value in numbers.items()}
    return load, SHARED_OPTIONS | {"load_format": "auto", "disable_radix_cache": False} | options


def hold(mib: int, held: Event, done: Event) -> None:
    """Take all memory of the first GPU but ``mib`` until ``done``."""
    import torch

    free, total = torch.cuda.mem_get_info()
    block = torch.empty(total - mib * MIB - (total - free), dtype=torch.uint8, device="cuda")
    held.set()
    done.wait()
    del block


def measure(mib: int, weights: str, arguments: argparse.Namespace) -> None:
    """Append the row of one size and kind of weights; in a process of its own."""
    import sglang

    load, options = planned(mib, weights)
    options |= {"device": arguments.device} | arguments.engine_options
    computed = sum(memory_bytes(SALAConfig(), load).values()) / MIB
    row = results_file.surroundings(arguments) | {"card_mib": mib, "weights_kind": weights, "weights": "random"}
    row |= {"prefix_cache": "on", "context_tokens": load.context_tokens, "computed_mib": round(computed)}
    row |= {"dtype": "bfloat16", "options": json.dumps(options, sort_keys=True)}
    spawn = multiprocessing.get_context("spawn")
    held, done = spawn.Event(), spawn.Event()
    holder = spawn.Process(target=hold, args=(mib, held, done), daemon=True)
    holder.start()
    held.wait()
    with results_file.first_gpu() as (nvml, gpu):
        beside = nvml.nvmlDeviceGetMemoryInfo(gpu).used >> 20
    try:
        with results_file.peak_memory(arguments.device) as memory:
            engine = sglang.Engine(model_path=str(arguments.model), **options)
            config = json.loads((arguments.model / "config.json").read_text())
            prompt = random_prompt(config, load.context_tokens - NEW_TOKENS - SLOTS_BESIDE)
            first, each = one_request(engine, prompt, NEW_TOKENS)
        peak = int(memory["peak_mib"]) - beside
        row |= {"outcome": "measured", "peak_memory_mib": peak, "ttft_s": round(first, 3)}
        row |= {"decode_ms_per_token": round(1000 * each, 3)}
        row |= {"difference_percent": round(100 * (computed / peak - 1), 2)}
        engine.shutdown()
    except Exception as error:  # of the engine; the other sizes are still worth their time
        row["outcome"] = f"failed: {str(error)[:200]}"
    done.set()
    holder.join()
    results_file.record(arguments.output, row, COLUMNS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="checkpoint of full size")
    parser.add_argument("--mib", required=True, type=positive_integers, help="memory of cards in MiB, such as 24564")
    parser.add_argument("--output", required=True, type=Path, help="CSV file; rows are appended")
    add_engine_options(parser)
    arguments = parser.parse_args()
    os.environ["SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"] = "1"
    spawn = multiprocessing.get_context("spawn")
    failed = 0
    for mib in arguments.mib:
        for weights in WEIGHTS:
            process = spawn.Process(target=measure, args=(mib, weights, arguments))
            process.start()
            process.join()
            failed |= process.exitcode or 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
