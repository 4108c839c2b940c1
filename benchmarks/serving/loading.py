"""How fast SGLang's readers of a checkpoint fill parameters in host memory, in every way that it can be told, as CSV.

    python -m benchmarks.serving.loading --folder DIR --output benchmarks/results/serving/loading.csv

Needs no GPU. ``--folder`` gets a checkpoint of random bytes once, in matrices of the released model's largest size; it
must be on the file system to be measured. Each row fills parameters that exist already, in this one process, once with
the files out of the page cache ("cold") and once with them in it ("warm"); the ways follow each other in every
repetition. Rows are appended. What a GPU adds, the copy over the bus, is not in here.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.common import results_file
from benchmarks.common.options import add_commit, check_least

COLUMNS = "date", "way", "cache", "repetition", "files", "gigabytes", "seconds", "gb_per_s", "cores", "sglang", "commit"
THREADS = 8  # SGLang's default
ROWS, WIDTH = 16384, 4096  # of a matrix, in bfloat16: 128 MiB
FILES = 4
Weights = Iterator[tuple[str, torch.Tensor]]


def ways() -> dict[str, Callable[[list[str]], Weights]]:
    """SGLang's iterators by the arguments of a server that choose them."""
    from sglang.srt.model_loader import weight_utils

    serial = weight_utils.safetensors_weights_iterator
    parallel = partial(weight_utils.buffered_multi_thread_safetensors_weights_iterator, max_workers=THREADS)
    return {
        f"default: {THREADS} threads, mapped files": parallel,
        '{"enable_multithread_load": false}: mapped files': serial,
        f"--weight-loader-disable-mmap: {THREADS} threads": partial(parallel, disable_mmap=True),
        "both: files read one by one": partial(serial, disable_mmap=True),
        "--weight-loader-prefetch-checkpoints: mapped files": partial(serial, prefetch=True),
    }


def make_files(folder: Path, gigabytes: float) -> list[Path]:
    """Files of a checkpoint, written where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    each = max(1, round(gigabytes * 1e9 / (2 * ROWS * WIDTH * FILES)))
    paths = [folder / f"random-{index}-of-{FILES}-{each}.safetensors" for index in range(FILES)]
    for index, path in enumerate(paths):
        if not path.exists():
            generator = torch.Generator().manual_seed(index)
            words = torch.randint(0, 2**15, (each, ROWS, WIDTH), dtype=torch.int16, generator=generator)
            save_file({f"{index}.{one}.weight": words[one].view(torch.bfloat16) for one in range(each)}, path)
    return paths


def set_page_cache(paths: list[Path], warm: bool) -> None:
    for path in paths:
        with path.open("rb", buffering=0) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while warm and file.read(1 << 24):
                pass


def fill(parameter: torch.Tensor, weights: Weights) -> int:
    """Copy every tensor into ``parameter``; returns their bytes."""
    total = 0
    for _, tensor in weights:
        parameter.copy_(tensor)
        total += tensor.nbytes
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the files to read")
    parser.add_argument("--gigabytes", type=float, default=3, help="of the checkpoint (default: 3)")
    parser.add_argument("--repetitions", type=int, default=3, help="of each way (default: 3)")
    add_commit(parser)
    parser.add_argument("--output", type=Path, required=True, help="CSV file; rows are appended")
    options = parser.parse_args()
    check_least(parser, options, {"repetitions": 1})
    paths = make_files(options.folder, options.gigabytes)
    parameter = torch.zeros(ROWS, WIDTH, dtype=torch.bfloat16)
    for repetition in range(options.repetitions):
        for cache in ("cold", "warm"):
            for way, read in ways().items():
                set_page_cache(paths, cache == "warm")
                began = time.perf_counter()
                total = fill(parameter, read([str(path) for path in paths]))
                seconds = time.perf_counter() - began
                row = {
                    "date": time.strftime("%Y-%m-%d"),
                    "way": way,
                    "cache": cache,
                    "repetition": repetition,
                    "files": len(paths),
                    "gigabytes": round(total / 1e9, 2),
                    "seconds": round(seconds, 2),
                    "gb_per_s": round(total / 1e9 / seconds, 2),
                    "cores": len(os.sched_getaffinity(0)),
                    "sglang": results_file.version("sglang"),
                    "commit": options.commit,
                }
                results_file.append(options.output, row, COLUMNS)
                print(", ".join(f"{name}={value}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
