"""Time of the model's matrix products by number of rows: cuBLAS, ours, and SGLang's for a single row; as CSV.

    python -m benchmarks.operators.linear --output benchmarks/results/operators/linear.csv

Released sizes, bfloat16, random weights. Decode sizes are timed in CUDA graphs, 8,192 rows as eager calls; calls rotate
through weights of several times the L2 cache. Needs a GPU; ``gemv`` needs a Hopper one and a CUDA compiler.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from sala_kernels.skinny_linear import MAX_ROWS, skinny_linear

from benchmarks.common import results_file
from benchmarks.operators.harness.timing import Call, measure

# Name: (output features, input features, how often in the model)
SHAPES = {
    "lightning qkvg": (16384, 4096, 24),
    "sparse qkvg": (8704, 4096, 8),
    "o": (4096, 4096, 32),
    "gate_up": (32768, 4096, 32),
    "down": (4096, 16384, 32),
    "head": (73448, 4096, 1),
}
ROWS = (1, 8, 32, 64, 8192)
COLUMNS = (
    "date", "product", "outputs", "inputs", "count", "rows", "kernel", "median_us", "gb_per_s", "tflop_per_s", "gpu",
    "torch",
)  # fmt: skip
WEIGHT_BYTES = 200_000_000  # at least, per product


def weights(outputs: int, inputs: int) -> list[torch.Tensor]:
    count = max(2, -(-WEIGHT_BYTES // (2 * outputs * inputs)))
    return [torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) for _ in range(count)]


def single_row_kernel() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """SGLang's gemv, also for sizes that its rule leaves to cuBLAS; None where SGLang is not installed."""
    try:
        from sglang.kernels.ops.gemm.hopper_bf16_gemv import hopper_bf16_gemv
    except ImportError:
        return None
    return hopper_bf16_gemv


def calls(name: str, rows: int, matrices: list[torch.Tensor]) -> dict[str, list[Call]]:
    inputs = SHAPES[name][1]
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    found: dict[str, list[Call]] = {"cublas": [partial(torch.nn.functional.linear, x, matrix) for matrix in matrices]}
    gemv = single_row_kernel()
    if gemv and rows == 1:
        found["gemv"] = [partial(gemv, x, matrix) for matrix in matrices]
    if rows <= MAX_ROWS:
        found["skinny_linear"] = [partial(skinny_linear, x, matrix) for matrix in matrices]
    return found


def measure_product(name: str) -> list[dict]:
    outputs, inputs, count = SHAPES[name]
    matrices, found = weights(outputs, inputs), []
    for rows in ROWS:
        for kernel, each in calls(name, rows, matrices).items():
            median = measure(each, captured=rows < max(ROWS), device=torch.device("cuda")).median_us
            case = time.strftime("%Y-%m-%d"), name, outputs, inputs, count, rows, kernel, round(median, 1)
            rates = round(2 * outputs * inputs / median / 1e3), round(2 * rows * outputs * inputs / median / 1e6, 1)
            found.append(
                dict(zip(COLUMNS, (*case, *rates, torch.cuda.get_device_name(), torch.__version__), strict=True))
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="CSV file; rows are appended")
    options = parser.parse_args()
    for name in SHAPES:
        for row in measure_product(name):
            results_file.record(options.output, row, COLUMNS)


if __name__ == "__main__":
    main()
