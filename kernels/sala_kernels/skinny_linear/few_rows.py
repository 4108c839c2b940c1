"""Up to eight rows and few outputs, or weights in FP8: the warps of a program share the inputs of 16 outputs.

Tiles of 128 outputs are too few programs for 4,096 of them. Here every warp multiplies some inputs of the same outputs
with tensor cores, and the sums of the warps are added at the end, in the same order every time.
"""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.quantised_weights import SCALE_BLOCK

FEW_ROWS = 8  # the smallest tile of tensor cores
OUTPUTS = 16  # of a program
INPUT_BYTES = 128  # of an output's weights, for each warp and step
STAGES = 4
GPU_WARPS = 132 * 20  # a third of what an H100 has room for
MIN_PARTS, MAX_PARTS = 4, 16


def parts_of(programs: int) -> int:
    """Warps of each of ``programs``: enough to fill a GPU.

    >>> parts_of(128), parts_of(272), parts_of(2048)
    (16, 8, 4)
    """
    return min(MAX_PARTS, max(MIN_PARTS, triton.next_power_of_2(GPU_WARPS // programs + 1) // 2))


def few_rows(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    """``x · weightᵀ`` for a weight of x's dtype, or of e4m3 codes with scales.

    x: [T, K] with T from 1 to 8, a dtype of 16 bits, rows contiguous.
    codes: [N, K] of x's dtype or float8_e4m3fn, rows contiguous.
    scales: [N] or [N/128, K/128] float32, None without.
    """
    (rows, inputs), outputs = x.shape, codes.shape[0]
    output = x.new_empty((rows, outputs))
    programs = triton.cdiv(outputs, OUTPUTS)
    parts, part_inputs = parts_of(programs), INPUT_BYTES // codes.element_size()
    _few_rows_kernel[(programs,)](
        x,
        codes,
        output if scales is None else scales,
        output,
        rows,
        outputs,
        inputs,
        x.stride(0),
        codes.stride(0),
        0 if scales is None else scales.stride(0),
        SCALES=0 if scales is None else scales.ndim,
        ROWS=FEW_ROWS,
        OUTPUTS=OUTPUTS,
        PARTS=parts,
        INPUTS=part_inputs,
        WHOLE=inputs % (parts * part_inputs) == 0,
        SCALE_BLOCK=SCALE_BLOCK,
        **dependent_launch(x.device),
        num_warps=parts,
        num_stages=STAGES,
    )
    return output


@triton.jit(do_not_specialize=["rows"])
def _few_rows_kernel(
    p_x,
    p_codes,
    p_scales,
    p_output,
    rows,
    outputs,
    inputs,
    x_stride,
    codes_stride,
    scales_stride,
    SCALES: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    PARTS: tl.constexpr,
    INPUTS: tl.constexpr,
    WHOLE: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """At most ROWS rows: x [T, K], codes [N, K] -> [T, N].

    SCALES: their dimensions; 0 for no scales. WHOLE: whether K is a multiple of a step's inputs.
    """
    o_output, o_row = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, ROWS)
    o_part = tl.arange(0, PARTS) * INPUTS
    o_input = o_part[:, None] + tl.arange(0, INPUTS)[None, :]
    # Outputs and rows of the padding repeat the last one.
    o_codes = tl.minimum(o_output, outputs - 1).to(tl.int64) * codes_stride
    p_tile = p_codes + o_codes[None, :, None] + o_input[:, None, :]
    p_rows = p_x + tl.minimum(o_row, rows - 1)[None, None, :] * x_stride + o_input[:, :, None]
    p_blocks = p_scales + tl.program_id(0) * OUTPUTS // SCALE_BLOCK * scales_stride

    b_codes = load_part(p_tile, (o_input < inputs)[:, None, :], WHOLE, "evict_first")
    b_next = _block_scales(p_blocks, o_part, inputs, SCALES, SCALE_BLOCK)
    wait_for_predecessor(DEPENDENT)
    b_x = load_part(p_rows, (o_input < inputs)[:, :, None], WHOLE, "")
    b_scales = b_next
    b_next = _block_scales(p_blocks, o_part + PARTS * INPUTS, inputs, SCALES, SCALE_BLOCK)
    b_sums = _add_product(tl.zeros([PARTS, OUTPUTS, ROWS], tl.float32), b_codes, b_x, b_scales, SCALES)
    for i_input in range(PARTS * INPUTS, inputs, PARTS * INPUTS):
        m_input = i_input + o_input < inputs
        b_codes = load_part(p_tile + i_input, m_input[:, None, :], WHOLE, "evict_first")
        b_x = load_part(p_rows + i_input, m_input[:, :, None], WHOLE, "")
        b_scales = b_next
        b_next = _block_scales(p_blocks, i_input + o_part + PARTS * INPUTS, inputs, SCALES, SCALE_BLOCK)
        b_sums = _add_product(b_sums, b_codes, b_x, b_scales, SCALES)
    b_output = tl.sum(b_sums, 0)
    m_output = o_output < outputs
    if SCALES == 1:
        b_output *= tl.load(p_scales + o_output * scales_stride, mask=m_output, other=0.0)[:, None]
    p_out = p_output + o_row[None, :].to(tl.int64) * outputs + o_output[:, None]
    tl.store(p_out, b_output.to(p_output.dtype.element_ty), mask=(o_row < rows)[None, :] & m_output[:, None])


@triton.jit
def load_part(pointers, mask, WHOLE: tl.constexpr, EVICTION: tl.constexpr):
    """What ``pointers`` name, 0 outside of ``mask``; a mask that is never needed costs an instruction per value."""
    if WHOLE:
        block = tl.load(pointers, eviction_policy=EVICTION)
    else:
        block = tl.load(pointers, mask=mask, other=0.0, eviction_policy=EVICTION)
    return block


@triton.jit
def _block_scales(p_blocks, o_input, inputs, SCALES: tl.constexpr, SCALE_BLOCK: tl.constexpr):
    """Scales of the blocks with inputs ``o_input``, a step ahead, as nothing else hides their latency."""
    b_scales = o_input  # not read
    if SCALES == 2:
        b_scales = tl.load(p_blocks + o_input // SCALE_BLOCK, mask=o_input < inputs, other=0.0)
    return b_scales


@triton.jit
def _add_product(b_sums, b_codes, b_x, b_scales, SCALES: tl.constexpr):
    # By way of float32, to which float16 is widened faster than to bfloat16.
    b_weight = b_codes.to(tl.float32).to(b_x.dtype) if SCALES > 0 else b_codes
    if SCALES == 2:
        b_sums += tl.dot(b_weight, b_x) * b_scales[:, None, None]
    else:
        b_sums = tl.dot(b_weight, b_x, b_sums)
    return b_sums
