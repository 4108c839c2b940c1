"""Up to eight rows and an Int4Weight: codes become the operands of tensor cores in the registers of their lane.

A tile of Marlin's layout has 16 inputs and 64 outputs. Of a word, bit 2 of a code's number is the input's lowest bit,
bit 1 says which eight of 16 outputs, and bit 0 which eight inputs: words of neighbouring lanes are an operand for each
of the eight. A code joins a float's mantissa, which is exact after a subtraction. Zeros other than 8
take sums of the rows, which an operand of ones gives.
"""

import torch
import triton
import triton.language as tl

from sala_kernels.dependent_launch import dependent_launch, wait_for_predecessor
from sala_kernels.quantised_weights import INT4_INPUTS, Int4Weight
from sala_kernels.skinny_linear.few_rows import FEW_ROWS, load_part, parts_of

STAGES = 4
WIDE_OUTPUTS = 16384  # from here on programs have whole tiles of 64 outputs, which take fewer instructions per code
STEP_WORDS = tl.constexpr(16)  # of each output in a step: those of four tiles of inputs
# Two floats of 16 bits to whose mantissas a code is added, and their value with a code of 8.
BFLOAT16_BITS, BFLOAT16_OFFSET = tl.constexpr(0x43004300), tl.constexpr(136.0)
FLOAT16_BITS, FLOAT16_OFFSET = tl.constexpr(0x64006400), tl.constexpr(1032.0)
CODES = tl.constexpr(0x000F000F)


def int4_rows(x: torch.Tensor, weight: Int4Weight) -> torch.Tensor:
    """``x · weightᵀ``.

    x: [T, K] with T from 1 to 8, a dtype of 16 bits, rows contiguous and an even number of elements apart.
    weight: with scales of x's dtype.
    """
    (rows, inputs), outputs = x.shape, weight.outputs
    output = x.new_empty((rows, outputs))
    words = 32 if outputs >= WIDE_OUTPUTS else 16  # rows of an operand; each has two outputs
    programs = outputs // (2 * words)
    parts = parts_of(programs)
    pairs = x.view(torch.int32)  # whose halves are neighbouring inputs
    _int4_kernel[(programs,)](
        pairs,
        weight.words,
        weight.scales,
        weight.words if weight.zeros is None else weight.zeros,
        output,
        rows,
        outputs,
        inputs,
        weight.group,
        pairs.stride(0),
        ZEROS=weight.zeros is not None,
        ROWS=FEW_ROWS,
        WORDS=words,
        PARTS=parts,
        INPUTS=INT4_INPUTS,
        WHOLE=inputs % (parts * INT4_INPUTS) == 0,
        **dependent_launch(x.device),
        num_warps=parts,
        num_stages=STAGES,
    )
    return output


@triton.jit(do_not_specialize=["rows"])
def _int4_kernel(
    p_pairs,
    p_words,
    p_scales,
    p_zeros,
    p_output,
    rows,
    outputs,
    inputs,
    group,
    pairs_stride,
    ZEROS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    PARTS: tl.constexpr,
    INPUTS: tl.constexpr,
    WHOLE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """At most ROWS rows: pairs [T, K/2], words [K/16, 2N] -> [T, N]. WHOLE: whether K is a multiple of STEP."""
    STEP: tl.constexpr = PARTS * INPUTS
    o_row, o_part, o_step = tl.arange(0, ROWS), tl.arange(0, PARTS), tl.arange(0, STEP_WORDS)
    # A word's row is a column of a tile and 16 outputs of four, its column four inputs: a tile and a pair in each half.
    o_word = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    o_tile = (o_part * (INPUTS // 16))[:, None, None] + (o_step // 4)[None, None, :]
    o_words = (o_word // 4 * 16 + o_word % 4)[None, :, None] + (o_step % 4 * 4)[None, None, :]
    p_tile = p_words + o_tile * (2 * outputs) + o_words
    o_pair = (o_part * (INPUTS // 2))[:, None, None] + (o_step // 4 * 8 + o_step % 4)[None, :, None]
    # Rows of the padding repeat the last one.
    p_rows = p_pairs + tl.minimum(o_row, rows - 1)[None, None, :] * pairs_stride + o_pair
    dtype = p_output.dtype.element_ty

    o_input = o_part * INPUTS
    m_part = (o_input < inputs)[:, None, None]
    b_words = load_part(p_tile, m_part, WHOLE, "evict_first")
    b_next = _group(p_scales, p_zeros, o_word, o_input, inputs, group, outputs, ZEROS)
    wait_for_predecessor(DEPENDENT)
    b_first, b_second = load_part(p_rows, m_part, WHOLE, ""), load_part(p_rows + 4, m_part, WHOLE, "")
    b_now = b_next
    b_next = _group(p_scales, p_zeros, o_word, o_input + STEP, inputs, group, outputs, ZEROS)
    b_lower, b_upper = _products(b_words, b_first, b_second, b_now, dtype, ZEROS)
    for i_input in range(STEP, inputs, STEP):
        m_part = (i_input + o_input < inputs)[:, None, None]
        b_words = load_part(p_tile + i_input // 16 * (2 * outputs), m_part, WHOLE, "evict_first")
        b_first = load_part(p_rows + i_input // 2, m_part, WHOLE, "")
        b_second = load_part(p_rows + i_input // 2 + 4, m_part, WHOLE, "")
        b_now = b_next
        b_next = _group(p_scales, p_zeros, o_word, i_input + o_input + STEP, inputs, group, outputs, ZEROS)
        b_more_lower, b_more_upper = _products(b_words, b_first, b_second, b_now, dtype, ZEROS)
        b_lower += b_more_lower
        b_upper += b_more_upper
    # Outputs of a tile: 16 for each of the last four words, of which eight are the columns of the upper bits.
    o_output = o_word // 32 * 64 + o_word % 4 * 16 + o_word // 4 % 8
    p_out = p_output + o_row[None, :].to(tl.int64) * outputs + o_output[:, None]
    tl.store(p_out, tl.sum(b_lower, 0).to(dtype), mask=(o_row < rows)[None, :])
    tl.store(p_out + 8, tl.sum(b_upper, 0).to(dtype), mask=(o_row < rows)[None, :])


@triton.jit
def _group(p_scales, p_zeros, o_word, o_input, inputs, group, outputs, ZEROS: tl.constexpr):
    """Scales of the groups with inputs ``o_input`` for the first and the last eight of 16 outputs, and zeros less 8.

    They are taken a step ahead, as nothing else hides their latency.
    """
    i_group, m_group = (o_input // group)[:, None], (o_input < inputs)[:, None]
    p_pair = p_scales + i_group * outputs + 2 * o_word[None, :]
    b_lower, b_upper = tl.load(p_pair, mask=m_group, other=0.0), tl.load(p_pair + 1, mask=m_group, other=0.0)
    if ZEROS:
        b_zeros = tl.load(p_zeros + i_group * (outputs // 8) + (o_word // 4)[None, :], mask=m_group, other=0)
        b_zeros = b_zeros >> (o_word % 4 * 4)[None, :]
        zeros = (b_zeros & 15) - 8, (b_zeros >> 16 & 15) - 8
    else:
        zeros = o_word, o_word  # not read
    return b_lower, b_upper, zeros[0], zeros[1]


@triton.jit
def _products(b_words, b_first, b_second, group, dtype: tl.constexpr, ZEROS: tl.constexpr):
    """Of the first and the last eight of 16 outputs, for the inputs of both pairs."""
    BITS: tl.constexpr = BFLOAT16_BITS if dtype == tl.bfloat16 else FLOAT16_BITS
    OFFSET: tl.constexpr = BFLOAT16_OFFSET if dtype == tl.bfloat16 else FLOAT16_OFFSET
    b_lower = tl.zeros([b_words.shape[0], b_words.shape[1], b_first.shape[2]], tl.float32)
    b_upper, b_all = b_lower, b_lower
    for i_eight in tl.static_range(2):
        b_pairs = b_first if i_eight == 0 else b_second
        b_lower_codes = b_words >> 4 * i_eight & CODES | BITS
        b_upper_codes = b_words >> 4 * i_eight + 8 & CODES | BITS
        for i_half in tl.static_range(2):
            b_x = _half(b_pairs, i_half, dtype)
            b_lower = tl.dot(_half(b_lower_codes, i_half, dtype) - OFFSET, b_x, b_lower)
            b_upper = tl.dot(_half(b_upper_codes, i_half, dtype) - OFFSET, b_x, b_upper)
            if ZEROS:
                b_all = tl.dot(tl.full(b_words.shape, 1.0, dtype), b_x, b_all)
    b_lower_scale, b_upper_scale, b_lower_zeros, b_upper_zeros = group
    if ZEROS:
        b_lower -= b_lower_zeros.to(tl.float32)[:, :, None] * b_all
        b_upper -= b_upper_zeros.to(tl.float32)[:, :, None] * b_all
    return b_lower * b_lower_scale.to(tl.float32)[:, :, None], b_upper * b_upper_scale.to(tl.float32)[:, :, None]


@triton.jit
def _half(b_pairs, HALF: tl.constexpr, dtype: tl.constexpr):
    """The lower (0) or upper (1) 16 bits of integers, as floats."""
    return (b_pairs >> 16 * HALF).to(tl.int16).to(dtype, bitcast=True)
