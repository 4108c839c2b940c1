"""What the evaluation takes to build a prompt: sentences added up, and, as before, the whole prompt encoded.

    python -m benchmarks.evaluation.prompts --lengths 16384 131072 1048576 2097152 \\
        --output benchmarks/results/evaluation/prompts.csv

Both ways give the same prompts, which is checked here. Needs no GPU and no server. On a machine that others use too,
only the CPU seconds can be compared; the load average of the minute before each row says whether they did.
"""

import argparse
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from random import Random

from transformers import AutoTokenizer

from benchmarks.common import results_file
from sala_sglang.evaluation.samples import TASKS, SampleMaker

ROOT = Path(__file__).parents[2]
WAYS = {"whole prompt encoded": False, "sentences added up": True}
MEASURED = (
    "date",
    "tokenizer",
    "prompt_tokens",
    "characters",
    "counted",
    "seconds_per_prompt",
    "cpu_seconds_per_prompt",
)
MACHINE = ("load_average", "cpu", "cores", "transformers", "tokenizers", "python", "commit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "checkpoints" / "sala-tiny")
    parser.add_argument("--lengths", type=int, nargs="+", required=True, help="tokens per prompt")
    parser.add_argument("--output", type=Path, required=True, help="CSV file; rows are appended")
    options = parser.parse_args()
    maker = SampleMaker(AutoTokenizer.from_pretrained(options.model))
    if not maker.adds_up:
        raise SystemExit(f"--model: {str(options.model)!r} has a tokenizer whose sentences do not add up")
    machine = about_the_machine()
    for tokens in options.lengths:
        digests = set()
        for counted, maker.adds_up in WAYS.items():
            load = {"load_average": round(os.getloadavg()[0], 1)}
            start = time.perf_counter(), time.process_time()
            samples = [maker.sample(Random(task), task, tokens, depth=0.5) for task in TASKS]
            end = time.perf_counter(), time.process_time()
            seconds = [round((after - before) / len(samples), 4) for before, after in zip(start, end, strict=True)]
            digests.add(hash(tuple(samples)))
            characters = round(sum(len(sample.message) for sample in samples) / len(samples))
            values = time.strftime("%Y-%m-%d"), options.model.name, tokens, characters, counted, *seconds
            row = dict(zip(MEASURED, values, strict=True))
            results_file.append(options.output, row | load | machine, MEASURED + MACHINE)
            print(", ".join(f"{name}={value}" for name, value in (row | load).items()), flush=True)
        if len(digests) > 1:
            raise SystemExit(f"the two ways give different prompts of {tokens} tokens")


def about_the_machine() -> dict[str, str | int]:
    """Values for the columns in MACHINE besides the load."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = names[0].split(": ")[1] if names else platform.machine()
    found: dict[str, str | int] = {"cpu": cpu, "cores": os.cpu_count() or 1}
    found |= {package: version(package) for package in ("transformers", "tokenizers")}
    return found | {"python": platform.python_version(), "commit": results_file.current_commit()}


if __name__ == "__main__":
    main()
