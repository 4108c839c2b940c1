"""Time of the model's matrix products by rows, format of the weight and library, beside floors and predictions; as CSV.

    python -m benchmarks.operators.linear --output benchmarks/results/operators/linear.csv

Released sizes, bfloat16 rows, random weights of 16 bits, FP8 and int4 in groups of 128; every library that is installed
and takes the shape. Steps of up to 64 rows are timed in CUDA graphs, longer ones as eager calls; calls rotate through
weights of several times the L2 cache. Every product is compared with that of the dequantised weight before it is timed.
A case runs for a while first, and the clock and power that it settles at are in its row. Cases that the file has from
the same GPU and commit are left out, and the run ends in time for eight minutes, so that another one can go on.

``--predict`` writes floors and predictions alone and needs no GPU; ``--dry-run`` takes tiny sizes on the CPU. Needs a
GPU otherwise; SGLang's Marlin, quantisers and ``gemv``, and DeepGEMM compile with nvcc when they are first used.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from sala_kernels.quantised_weights import Weight

from benchmarks.common import options as common_options
from benchmarks.common import results_file
from benchmarks.common.gpu_state import GPUState
from benchmarks.operators.harness.report import surroundings
from benchmarks.operators.harness.timing import Call, measure
from benchmarks.operators.linear_kernels import CHANNEL, FORMATS, KERNELS, Kernel, make_weight, weight_bytes
from benchmarks.operators.linear_predictions import BANDWIDTH, floor_us, predicted_us

# Name: (output features, input features, how often in the model)
SHAPES = {
    "lightning qkvg": (16384, 4096, 24),
    "sparse qkvg": (8704, 4096, 8),
    "o": (4096, 4096, 32),
    "gate_up": (32768, 4096, 32),
    "down": (4096, 16384, 32),
    "head": (73448, 4096, 1),
}
ROWS = (1, 8, 32, 64, 512, 8192)
CAPTURED_ROWS = 64
TINY_SHAPES, TINY_ROWS = {"tiny": (128, 256, 1)}, (1, 8, 9)
COLUMNS = (
    "date", "product", "outputs", "inputs", "count", "rows", "kernel", "format", "median_us", "iqr_us", "gb_per_s",
    "tflop_per_s", "floor_us", "predicted_us", "clock_mhz", "power_w", "gpu", "driver", "torch", "triton", "sglang",
    "commit",
)  # fmt: skip
WEIGHT_BYTES = 200_000_000  # at least, per product
STEADY_SECONDS, STEADY_PREFILL_SECONDS = 0.3, 1.5
LIMIT_SECONDS = 440
CHECKED_ROWS = 8
# Of a row's norm: a rounding of the output, and for FP8 rows those of e4m3 too, 2**-4 at most and less on average.
ROUNDED, ROUNDED_TO_FLOAT8 = 2**-7, 2**-4


def cells(kernel: Kernel, product: str, shape: tuple[int, int, int], rows: int, gpu: str) -> dict:
    """What of a row needs no measurement."""
    outputs, inputs, count = shape
    sizes = kernel, rows, outputs, inputs, gpu
    return {
        "product": product,
        "outputs": outputs,
        "inputs": inputs,
        "count": count,
        "rows": rows,
        "kernel": kernel.name,
        "format": kernel.form,
        "floor_us": round(floor_us(*sizes), 1),
        "predicted_us": round(predicted_us(*sizes), 1),
    }


def check(kernel: Kernel, output: torch.Tensor, x: torch.Tensor, weight: Weight) -> None:
    """Raise AssertionError unless the first rows are those of the dequantised weight."""
    values = weight.float() if isinstance(weight, torch.Tensor) else weight.dequantize()
    expected = x[:CHECKED_ROWS].float() @ values.T
    error = (output[:CHECKED_ROWS].float() - expected).norm(dim=1) / expected.norm(dim=1)
    own = kernel.name.startswith("skinny_linear")
    bound = ROUNDED_TO_FLOAT8 if kernel.form.startswith(CHANNEL) and not own else ROUNDED
    if not float(error.max()) <= bound:  # NaN fails too
        raise AssertionError(f"{kernel.name} differs from the dequantised product by {float(error.max()):.3g}")


def keep_busy(calls: list[Call], captured: bool, seconds: float) -> None:
    """Run the calls by turns for so long."""
    run: Call = partial(_all, calls)
    if captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        run = graph.replay
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        run()
        torch.cuda.synchronize()


def _all(calls: list[Call]) -> None:
    for call in calls:
        call()


def measured(kernel: Kernel, x: torch.Tensor, matrices: list[Weight]) -> dict:
    """Cells of the measurement. Raises what a library does that is missing or does not take the shape."""
    calls = [kernel.make(x, weight) for weight in matrices]
    rows, device = x.shape[0], x.device
    check(kernel, calls[0](), x, matrices[0])
    captured = rows <= CAPTURED_ROWS
    with GPUState(device.type) as state:
        if device.type == "cuda":
            _all(calls)
            keep_busy(calls, captured, STEADY_SECONDS if captured else STEADY_PREFILL_SECONDS)
        timing = measure(calls, captured, device)
    inputs, outputs = x.shape[1], calls[0]().shape[1]
    read, operations = weight_bytes(kernel.form, outputs, inputs), 2 * rows * outputs * inputs
    return state.cells() | {
        "median_us": round(timing.median_us, 2),
        "iqr_us": round(timing.iqr_us, 2),
        "gb_per_s": round(read / timing.median_us / 1e3),
        "tflop_per_s": round(operations / timing.median_us / 1e6, 1),
    }


def cases(shapes: dict[str, tuple[int, int, int]], every_rows: tuple[int, ...]) -> Iterator[tuple[str, str, int, list]]:
    """Product, format and rows, with the kernels that take them."""
    for product in shapes:
        for form in FORMATS:
            for rows in every_rows:
                yield product, form, rows, [k for k in KERNELS if k.form == form and rows <= (k.most or rows)]


def run(arguments: argparse.Namespace, about: dict) -> None:
    """Measure what the file does not have yet, until the time is over."""
    device = "cpu" if arguments.dry_run else "cuda"
    shapes, every_rows = (TINY_SHAPES, TINY_ROWS) if arguments.dry_run else (SHAPES, ROWS)
    end, made, key = (
        time.monotonic() + arguments.limit_seconds,
        ("", ""),
        ("product", "rows", "kernel", "gpu", "commit"),
    )
    there = {tuple(row[name] for name in key) for row in results_file.read(arguments.output)}
    matrices: list[Weight] = []
    for product, form, rows, kernels in cases(shapes, every_rows):
        outputs, inputs, _ = shapes[product]
        x = torch.randn(rows, inputs, device=device).bfloat16()
        for kernel in kernels:
            row = cells(kernel, product, shapes[product], rows, about["gpu"]) | about
            if tuple(str(row[name]) for name in key) in there or (kernel.needs_gpu and device == "cpu"):
                continue
            if time.monotonic() > end:
                print("the time is over; the same command goes on from here", file=sys.stderr)
                return
            if made != (product, form):
                matrices.clear()
                count = 1 if device == "cpu" else max(2, -(-WEIGHT_BYTES // weight_bytes(form, outputs, inputs)))
                found = (make_weight(form, outputs, inputs, device) for _ in range(count))
                matrices, made = [weight for weight in found if weight is not None], (product, form)
            if not matrices:
                break
            try:
                row |= measured(kernel, x, matrices)
            except AssertionError:
                raise
            except Exception as error:  # a library that is missing or does not take the shape
                print(f"{product}, {rows} rows, {kernel.name}: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            results_file.record(arguments.output, row, COLUMNS)


def predict(output: Path, gpu: str) -> None:
    """Write floors and predictions of every case."""
    for product, form, rows, kernels in cases(SHAPES, ROWS):
        if make_weight(form, *SHAPES[product][:2], "meta") is None:
            continue
        for kernel in kernels:
            row = cells(kernel, product, SHAPES[product], rows, gpu) | {"gpu": gpu}
            results_file.record(output, row, COLUMNS)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="CSV file; rows are appended")
    parser.add_argument("--limit-seconds", type=int, default=LIMIT_SECONDS, help="no case begins after these")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--predict", action="store_true", help="floors and predictions of an H100 alone")
    common_options.add_commit(parser)
    arguments = parser.parse_args(words)
    if results_file.columns(arguments.output) not in (None, COLUMNS):
        parser.error(f"--output {arguments.output} has other columns; allowed: {','.join(COLUMNS)}")
    if arguments.predict:
        return predict(arguments.output, f"NVIDIA {next(iter(BANDWIDTH))}")
    about = surroundings(torch.device("cpu" if arguments.dry_run else "cuda"))
    run(arguments, {name: about[name] for name in ("date", "gpu", "driver", "torch", "triton")} | _sglang(arguments))


def _sglang(arguments: argparse.Namespace) -> dict[str, str]:
    try:
        found = version("sglang")
    except PackageNotFoundError:
        found = "none"
    return {"sglang": found, "commit": arguments.commit}


if __name__ == "__main__":
    main()
