"""What the prefix cache's files save after a restart, as rows of the CSV file of the prefix cache.

    python -m benchmarks.serving.restart --model DIR --files /mnt/nvme/pages \\
        --output benchmarks/results/serving/prefix_cache.csv

From the root of the repository. DIR needs a config.json only; weights are random. One engine answers a question about
each of some long documents and writes what it has computed to a folder of its own under --files; a second one, a
process of its own, finds it there and answers another question about each. Time to the first token: medians after one
warm-up. Whether files are read from the disk or from the operating system's memory is up to the machine: with
--before "sync; echo 3 > /proc/sys/vm/drop_caches" root can have them read from the disk.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common import results_file
from benchmarks.common.options import add_engine_options, check_least
from benchmarks.serving.prefix_cache import COLUMNS, SHOWN, first_token
from benchmarks.serving.speed import SHARED_OPTIONS

FILES = {
    "disable_radix_cache": False,
    "enable_hierarchical_cache": True,
    "hicache_size": 16,
    "hicache_storage_backend": "file",
    "hicache_storage_prefetch_policy": "wait_complete",
}
# What an engine is asked, by the engine; both are asked about the same documents.
ENGINES = {"first": "first question, before a restart", "second": "second question, after a restart"}
QUIET_SECONDS = 10  # without a new file: everything is written
LEAST = {"document": 1, "documents": 1, "question": 1}


def parse_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory with a config.json")
    parser.add_argument("--output", required=True, type=Path, help="CSV file; rows are appended")
    parser.add_argument("--files", required=True, type=Path, help="a directory on the disk that is measured")
    parser.add_argument("--document", type=int, default=131_072, help="tokens of a document (default: 131072)")
    parser.add_argument("--documents", type=int, default=3, help="measured documents (default: 3)")
    parser.add_argument("--question", type=int, default=64, help="tokens of a question (default: 64)")
    parser.add_argument("--before", default="", help="a shell command to run between the two engines")
    add_engine_options(parser)
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    check_least(parser, arguments, LEAST)
    return arguments


def main() -> int:
    arguments = parse_arguments(sys.argv[1:])
    if arguments.worker:
        measure(arguments)
        return 0
    known = len(results_file.read(arguments.output))
    with TemporaryDirectory(dir=arguments.files) as folder:
        for worker in ENGINES:
            command = [sys.executable, "-m", "benchmarks.serving.restart", *sys.argv[1:], "--files", folder]
            if subprocess.run([*command, "--worker", worker, "--commit", arguments.commit]).returncode:
                print(f"failed: the {worker} engine", file=sys.stderr)
                return 1
            if worker == "first" and arguments.before:
                subprocess.run(arguments.before, shell=True, check=True)
    print(results_file.table(results_file.read(arguments.output)[known:], SHOWN))
    return 0


def measure(arguments: argparse.Namespace) -> None:
    """Ask one engine about all documents and append its row."""
    import sglang

    config = json.loads(Path(arguments.model, "config.json").read_text())
    options = SHARED_OPTIONS | FILES | {"device": arguments.device, "file_storage_path": str(arguments.files)}
    options |= {"context_length": arguments.document + arguments.question + 64} | arguments.engine_options
    engine = sglang.Engine(model_path=arguments.model, **options)
    try:
        answers = [first_token(engine, prompt) for prompt in prompts(config["vocab_size"], arguments)]
        wait_until_written(arguments.files)
    finally:
        engine.shutdown()
    seconds, cached = zip(*answers[1:], strict=True)
    options["file_storage_path"] = "a folder"
    row = {"cache": "files", **results_file.surroundings(arguments), "weights": "random", "requests": 1}
    row |= {"dtype": options.get("dtype") or config.get("dtype"), "options": json.dumps(options, sort_keys=True)}
    row |= {"measured": ENGINES[arguments.worker], "new_tokens": 1, "repetitions": arguments.documents}
    row |= {"prompt_tokens": arguments.document + arguments.question, "ttft_s": round(statistics.median(seconds), 4)}
    row |= {"cached_tokens": statistics.median_low(cached), "all_values": " ".join(f"{one:.4f}" for one in seconds)}
    results_file.record(arguments.output, row, COLUMNS)


def prompts(vocabulary: int, arguments: argparse.Namespace) -> Iterator[list[int]]:
    """A question about every document: documents are the same for both engines, questions are not."""
    for number in range(arguments.documents + 1):
        document, question = random.Random(number), random.Random(f"{arguments.worker} {number}")
        lengths = (document, arguments.document), (question, arguments.question)
        yield [source.randrange(10, vocabulary) for source, length in lengths for _ in range(length)]


def wait_until_written(folder: Path) -> None:
    """Files are written while the engine goes on."""
    before, since = -1, time.monotonic()
    while time.monotonic() < since + QUIET_SECONDS:
        count = sum(1 for _ in folder.iterdir())
        if count != before:
            before, since = count, time.monotonic()
        time.sleep(0.5)


if __name__ == "__main__":  # SGLang spawns workers that import this file
    sys.exit(main())
