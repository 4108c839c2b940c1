"""Time for which the host is busy with an eager call of every operator in prefill, as CSV rows.

    python -m benchmarks.operators.launches --output benchmarks/results/operators/launches.csv

Released sizes, bfloat16, random inputs, steps of 512 and of 8,192 rows; the device is idle before every call, and what
it computes is not waited for. Decode steps are replayed from graphs, so that their launches cost nothing here:
``run.py`` times them. To compare with the kernels of another checkout in one run, let the same command import those,
and name their commit:

    PYTHONPATH=OTHER/kernels python -m benchmarks.operators.launches --commit NAME --output ...

``--dry-run`` takes tiny sizes on the CPU.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.common import results_file
from benchmarks.operators.harness.case import Case, serving
from benchmarks.operators.harness.inputs import Setting
from benchmarks.operators.harness.report import surroundings
from benchmarks.operators.harness.sizes import RELEASED, TINY, Sizes
from benchmarks.operators.harness.timing import Call
from benchmarks.operators.run import all_cases

COLUMNS = (
    "date", "operator", "case", "rows", "calls", "host_us", "iqr_us", "gpu", "driver", "torch", "triton", "python",
    "commit",
)  # fmt: skip
ROWS = [512, 8192]
WARM_UP_CALLS, CALLS = 20, 300


def prefill_cases(sizes: Sizes, rows: int) -> list[Case]:
    """Of every operator that runs in prefill the cases with ``rows`` rows and the shorter of the two contexts."""
    context, chunk = sizes.contexts[0], replace(sizes, chunk_tokens=rows, tails=())
    titles = [f"prefill {rows}", f"prefill {rows} of {context}", f"prefill 1 x {rows}", f"{rows} rows"]
    titles += [f"prefill {rows} of {context}, {picks} picks" for picks in ("80 % shared", "independent")]
    return [case for case in all_cases(chunk) if case.name in titles]


def host_times(calls: list[Call], count: int, device: torch.device) -> list[float]:
    """Microseconds until each of ``count`` calls returns, taking the calls by turns."""
    samples = []
    for index in range(count):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        calls[index % len(calls)]()
        samples.append(1e6 * (time.perf_counter() - start))
    return samples


def measured(sizes: Sizes, rows: list[int], count: int, device: torch.device) -> Iterator[dict]:
    """A row for each case, cells of its surroundings left out."""
    setting = Setting(sizes, device, cache_bytes=0)
    for number in rows:
        for case in prefill_cases(sizes, number):
            chunk = replace(setting, sizes=replace(sizes, chunk_tokens=number))
            calls = case.build(chunk).calls(serving(chunk))
            host_times(calls, WARM_UP_CALLS if device.type == "cuda" else 1, device)
            lower, median, upper = statistics.quantiles(host_times(calls, count, device), n=4, method="inclusive")
            yield {
                "operator": case.operator,
                "case": case.name,
                "rows": number,
                "calls": count,
                "host_us": round(median, 2),
                "iqr_us": round(upper - lower, 2),
            }


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="CSV file; rows are appended")
    parser.add_argument(
        "--commit", default=results_file.current_commit(), help="of the kernels (default: the checkout's)"
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    options = parser.parse_args(words)
    sizes, rows = (TINY, [TINY.chunk_tokens]) if options.dry_run else (RELEASED, ROWS)
    count, device = (2, torch.device("cpu")) if options.dry_run else (CALLS, torch.device("cuda"))
    about = surroundings(device) | {"commit": options.commit}
    for row in measured(sizes, rows, count, device):
        results_file.record(options.output, about | row, COLUMNS)


if __name__ == "__main__":
    main()
