"""Products of a few rows with a weight matrix, which are bound by reading the weights."""

import torch

from sala_kernels.contract import check_dtypes, check_shapes, implementation_of
from sala_kernels.quantised_weights import (
    INT4_INPUTS,
    MARLIN_INPUTS,
    MARLIN_OUTPUTS,
    SCALE_BLOCK,
    WORD_CODES,
    Float8Weight,
    Int4Weight,
    Weight,
)

MAX_ROWS = 64
MAX_INT4_ROWS = 8


def skinny_linear(x: torch.Tensor, weight: Weight, *, implementation: str | None = None) -> torch.Tensor:
    """``x · weightᵀ`` for a few rows.

    x: [T, K] with T at most MAX_ROWS, and at most MAX_INT4_ROWS with an Int4Weight; a floating dtype, of 16 bits in
        Triton beside a quantised weight; rows contiguous, an even number of elements apart with an Int4Weight.
    weight: [N, K], same dtype, rows contiguous; or a Float8Weight; or an Int4Weight with scales of the same dtype.

    Returns [T, N]; sums are float32 or better. Activations keep their precision: a quantised weight is multiplied as
    the values that its codes and scales stand for. Early launches read weights before the kernel in front of them on
    the stream has ended, so that one must not write them.
    Raises ValueError on a shape or stride that does not fit and on more rows, TypeError on a dtype that does not fit.
    Source: the linear layers of the released modelling code, which have no bias.

    >>> skinny_linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]))
    tensor([[11., 17., 23.]])
    """
    check_shapes(x=(x, "T K"))
    most = MAX_INT4_ROWS if isinstance(weight, Int4Weight) else MAX_ROWS
    if x.shape[0] > most:
        raise ValueError(f"x: got {x.shape[0]} rows, allowed are at most {most}")
    _check_contiguous_rows(x=x)
    if isinstance(weight, Float8Weight):
        _check_float8(weight, x.shape[1])
    elif isinstance(weight, Int4Weight):
        _check_int4(weight, x)
    else:
        check_shapes({"K": x.shape[1]}, weight=(weight, "N K"))
        check_dtypes(x.dtype, weight=weight)
        _check_contiguous_rows(weight=weight)
    return implementation_of(__name__, implementation, x).skinny_linear(x, weight)


def _check_float8(weight: Float8Weight, inputs: int) -> None:
    sizes = check_shapes({"K": inputs}, codes=(weight.codes, "N K"))
    check_dtypes(torch.float8_e4m3fn, codes=weight.codes)
    check_dtypes(torch.float32, scales=weight.scales)
    if weight.scales.ndim == 1:
        check_shapes(sizes, scales=(weight.scales, "N"))
    else:
        blocks = {f"{symbol}/{SCALE_BLOCK}": -(-sizes[symbol] // SCALE_BLOCK) for symbol in "NK"}
        check_shapes(blocks, scales=(weight.scales, " ".join(blocks)))
        _check_contiguous_rows(scales=weight.scales)
    _check_contiguous_rows(codes=weight.codes)


def _check_int4(weight: Int4Weight, x: torch.Tensor) -> None:
    inputs, (groups, outputs) = x.shape[1], weight.scales.shape
    sizes = {"K/16": inputs // MARLIN_INPUTS, "2N": 2 * outputs, "groups": groups, "N/8": outputs // WORD_CODES}
    check_shapes(sizes, words=(weight.words, "K/16 2N"))
    check_dtypes(torch.int32, words=weight.words)
    check_dtypes(x.dtype, scales=weight.scales)
    if weight.zeros is not None:
        check_shapes(sizes, zeros=(weight.zeros, "groups N/8"))
        check_dtypes(torch.int32, zeros=weight.zeros)
    if inputs % (groups * INT4_INPUTS) or outputs % MARLIN_OUTPUTS:
        raise ValueError(
            f"words: got {groups} groups for K = {inputs} and N = {outputs}, allowed are groups of a multiple of "
            f"{INT4_INPUTS} inputs and multiples of {MARLIN_OUTPUTS} outputs"
        )
    if x.stride(0) % 2:
        raise ValueError(f"x: expected rows an even number of elements apart, got strides {x.stride()}")
    for name, tensor in {"words": weight.words, "scales": weight.scales, "zeros": weight.zeros}.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}")


def _check_contiguous_rows(**tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.stride(1) != 1:
            raise ValueError(f"{name}: expected contiguous rows, got strides {tensor.stride()}")
