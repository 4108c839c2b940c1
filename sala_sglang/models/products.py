"""Which product computes a linear layer, by format, shape and rows: this project's own, or SGLang's for all others."""

from collections.abc import Hashable

import torch
from sala_kernels.quantised_weights import Int4Weight, Weight
from sala_kernels.skinny_linear import MAX_INT4_ROWS, MAX_ROWS

from sala_sglang.quantization.formats import Float8

FEW_ROWS = 8
MIN_OUTPUTS = 16384  # of products of several rows in 16 bits; with fewer ones cuBLAS is as fast or faster


def is_own(weight: Weight, rows: int, wanted: bool) -> bool:
    """Whether skinny_linear multiplies ``rows`` rows.

    wanted: also where it has not been measured to be faster, which is everywhere but in the first line.
    """
    outputs = weight.shape[0] if isinstance(weight, torch.Tensor) else weight.outputs
    wide = outputs >= MIN_OUTPUTS and rows <= MAX_ROWS
    if isinstance(weight, torch.Tensor) and (rows == 1 or wide):
        return True
    if isinstance(weight, Int4Weight):
        return wanted and rows <= MAX_INT4_ROWS
    return wanted and (rows <= FEW_ROWS or wide)


def reads_float8_rows(scheme: Hashable) -> bool:
    """Whether products of weights of ``scheme`` take rows of FP8 with a scale each."""
    return isinstance(scheme, Float8) and scheme.scales != "block" and not scheme.static
