"""Floors and predictions of products, from their bytes and operations alone; written before anything was measured.

A floor is the data sheet's: all bytes once at the bandwidth of the memory, or all operations at the rate of the tensor
cores, whichever takes longer. A prediction has shares of both that a kernel is expected to reach, and a time for what
does not depend on the size. The shares of cuBLAS and skinny_linear in 16 bits follow from earlier rows of
``linear.csv``; the others are expectations.
"""

from dataclasses import dataclass

from benchmarks.operators.linear_kernels import BLOCK, CHANNEL, INT4, Kernel, weight_bytes

# Bytes per second of the memory, by what the name of the GPU contains.
BANDWIDTH = {"H100 80GB HBM3": 3.35e12, "H200": 4.8e12}
BFLOAT16, FLOAT8 = 989e12, 1979e12  # operations per second of Hopper's tensor cores, without sparsity


@dataclass(frozen=True)
class Expected:
    """Shares of bandwidth and of operations, and microseconds beside both."""

    bandwidth: float
    operations: float
    beside_us: float


EXPECTED = {
    "cublas": Expected(0.87, 0.78, 4.0),
    "gemv": Expected(0.92, 0.05, 2.5),
    "skinny_linear": Expected(0.94, 0.35, 1.0),
    "torch._scaled_mm": Expected(0.80, 0.68, 4.0),
    "CUTLASS": Expected(0.80, 0.58, 4.0),
    # A launch of the quantiser more.
    "SGLang's FP8 layer": Expected(0.80, 0.62, 6.5),
    "skinny_linear FP8": Expected(0.90, 0.30, 1.0),
    "DeepGEMM": Expected(0.70, 0.65, 4.5),
    "SGLang's FP8 layer in blocks": Expected(0.70, 0.60, 7.0),
    "skinny_linear FP8 in blocks": Expected(0.88, 0.30, 1.0),
    "Marlin": Expected(0.78, 0.60, 5.0),
    # Bound by the instructions that unpack codes, about five each.
    "skinny_linear int4": Expected(0.74, 0.20, 1.5),
}


def bandwidth(gpu: str) -> float:
    """Of a GPU by its name; that of an H100 where the name is not known."""
    return next((rate for name, rate in BANDWIDTH.items() if name in gpu), BANDWIDTH["H100 80GB HBM3"])


def work(kernel: Kernel, rows: int, outputs: int, inputs: int) -> tuple[int, int, float]:
    """Bytes, operations, and operations per second of the tensor cores."""
    moved = weight_bytes(kernel.form, outputs, inputs) + 2 * rows * (inputs + outputs)
    # Own products and Marlin multiply in 16 bits.
    eight = kernel.form in (CHANNEL, BLOCK) and not kernel.name.startswith("skinny_linear")
    return moved, 2 * rows * outputs * inputs, FLOAT8 if eight else BFLOAT16


def floor_us(kernel: Kernel, rows: int, outputs: int, inputs: int, gpu: str) -> float:
    moved, operations, rate = work(kernel, rows, outputs, inputs)
    return 1e6 * max(moved / bandwidth(gpu), operations / rate)


def predicted_us(kernel: Kernel, rows: int, outputs: int, inputs: int, gpu: str) -> float:
    moved, operations, rate = work(kernel, rows, outputs, inputs)
    expected = EXPECTED[kernel.name]
    share = expected.bandwidth
    if kernel.form == INT4 and kernel.name != "Marlin" and outputs >= 16384:
        share = 0.82  # whole tiles take four instructions per code
    longest = max(moved / (share * bandwidth(gpu)), operations / (expected.operations * rate))
    return 1e6 * longest + expected.beside_us
