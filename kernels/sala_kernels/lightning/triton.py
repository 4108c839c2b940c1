"""Lightning attention on a GPU with the sequence split: the segments of a request are computed at the same time.

Three launches: every segment but a request's last sums its own keys and values, as if the state before it were 0;
a scan over the segments of a request turns the sums into the states before them; every segment walks its chunks
from there. The scratch between them holds a state [H, D, D] for every segment of a request that has several.

Blocks of values, states and outputs lie transposed, value columns first. The state is then the left factor of the
products, which the tensor cores take from the registers that held it as a result.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from sala_kernels.contract import check_dtypes
from sala_kernels.lightning import CHUNK_TOKENS, Arguments
from sala_kernels.lightning.mixed_dot import dot_float32, product_precision
from sala_kernels.row_tiles import LOG2_E, find_request, first_tile, tile_count
from sala_kernels.targets import launch_options

SEGMENT_TOKENS = 2048  # one for all batches: the result of a prompt must not depend on what else is in the batch
STATE_ELEMENTS = 8192  # of a program with 4 warps: 64 registers of a thread
SCAN_ELEMENTS = 4096
BASE_2 = tl.constexpr(LOG2_E)  # kernels compute powers of two


class StatePointers(NamedTuple):
    """The states, and for every request its slot and rows; what varies from batch to batch is not among them."""

    states: torch.Tensor
    slot_stride: int
    state_slots: torch.Tensor
    query_start: torch.Tensor
    log_decay: torch.Tensor


def lightning_chunk(arguments: Arguments) -> torch.Tensor:
    q, k, v, states, state_slots, query_start, snapshot_slots, snapshot_tokens, log_decay, scale = arguments
    check_dtypes(torch.float32, states=states)
    tokens, heads, dim = q.shape
    requests = state_slots.shape[0]
    output = q.new_empty(q.shape)
    # The rows behind the last request are those of one more request, without a state.
    tiles = tile_count(tokens, requests + 1, SEGMENT_TOKENS)
    columns = min(dim, STATE_ELEMENTS // dim)
    grid = dim // columns, heads, tiles
    slots, starts = state_slots.contiguous(), query_start.contiguous()
    batch = StatePointers(states, states.stride(0), slots, starts, log_decay.contiguous())
    sizes = {"D": dim, "BV": columns, "CHUNK": CHUNK_TOKENS, "SEGMENT": SEGMENT_TOKENS}
    # Two buffers of the rows of a chunk fit into shared memory up to 256 bytes per row.
    stages = 2 if dim * q.element_size() <= 256 else 1
    precision, options = product_precision(q), {"num_warps": 4, "num_stages": stages}
    before = states
    if tokens > SEGMENT_TOKENS:  # otherwise no request has a second segment
        before = states.new_empty(2 * triton.cdiv(tokens, SEGMENT_TOKENS), heads, dim, dim)
        strides = k.stride(0), v.stride(0)
        _sum_kernel[grid](
            k, v, before, batch, requests, tokens, STRIDES=strides, PRECISION=precision, **sizes, **options
        )
        elements = min(dim * dim, SCAN_ELEMENTS)
        scan_grid = dim * dim // elements, heads, requests
        _scan_kernel[scan_grid](before, batch, STATE=dim * dim, BLOCK=elements, SEGMENT=SEGMENT_TOKENS, num_warps=4)
    _walk_kernel[grid](
        (q, k, v, output),
        before,
        batch,
        requests,
        tokens,
        snapshot_slots.contiguous(),
        snapshot_tokens.contiguous(),
        scale,
        STRIDES=(q.stride(0), k.stride(0), v.stride(0), output.stride(0)),
        PRECISION=precision,
        **sizes,
        **launch_options("_walk_kernel", q.device, **options),
    )
    return output


@triton.jit(do_not_specialize=["requests", "tokens"])
def _sum_kernel(
    p_k,
    p_v,
    p_sums,
    batch,
    requests,
    tokens,
    STRIDES: tl.constexpr,
    D: tl.constexpr,
    BV: tl.constexpr,
    CHUNK: tl.constexpr,
    SEGMENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums [places, H, D, D]: the state after each segment that is not its request's last, if it began with 0."""
    i_head, i_tile = tl.program_id(1), tl.program_id(2)
    o_dim, o_row, o_column = tl.arange(0, D), tl.arange(0, CHUNK), tl.arange(0, BV)
    k_stride: tl.constexpr = STRIDES[0]
    v_stride: tl.constexpr = STRIDES[1]
    _, slot, start, end, begin = _segment(i_tile, batch, requests, tokens, SEGMENT)
    i_column = tl.program_id(0) * BV
    if (slot >= 0) & (begin + SEGMENT < end):
        log2_decay = tl.load(batch.log_decay + i_head) * BASE_2
        b_sum = tl.zeros([BV, D], dtype=tl.float32)
        for done in range(0, SEGMENT, CHUNK):
            i_first = (begin + done).to(tl.int64)
            b_k = tl.load(p_k + i_first * k_stride + i_head * D + (o_row[:, None] * k_stride + o_dim[None, :]))
            p_column = p_v + i_first * v_stride + i_head * D + i_column
            b_v = tl.load(p_column + (o_row[None, :] * v_stride + o_column[:, None]))
            b_until_end = tl.exp2(log2_decay * (SEGMENT - 1 - done - o_row))
            b_sum = dot_float32(b_v.to(tl.float32) * b_until_end[None, :], b_k, PRECISION, b_sum)
        i_state = (_place(begin, start, SEGMENT).to(tl.int64) * tl.num_programs(1) + i_head) * D * D
        p_sum = p_sums + i_state + i_column
        tl.store(p_sum + (o_dim[None, :] * D + o_column[:, None]), b_sum)


@triton.jit
def _scan_kernel(p_sums, batch, STATE: tl.constexpr, BLOCK: tl.constexpr, SEGMENT: tl.constexpr):
    """Replace the sums of a request that has several segments by the state before each of them."""
    i_head, i_request = tl.program_id(1), tl.program_id(2)
    i_element = i_head * STATE + tl.program_id(0) * BLOCK
    o_element = tl.arange(0, BLOCK)
    slot = tl.load(batch.state_slots + i_request)
    start, end = tl.load(batch.query_start + i_request), tl.load(batch.query_start + i_request + 1)
    if (slot >= 0) & (end - start > SEGMENT):
        factor = tl.exp2(tl.load(batch.log_decay + i_head) * BASE_2 * SEGMENT)
        b_state = tl.load(batch.states + slot.to(tl.int64) * batch.slot_stride + i_element + o_element)
        for begin in range(start, end, SEGMENT):
            i_place = _place(begin, start, SEGMENT).to(tl.int64)
            p_sum = p_sums + i_place * tl.num_programs(1) * STATE + i_element + o_element
            b_sum = tl.load(p_sum, mask=begin + SEGMENT < end, other=0.0)  # the last segment has none
            tl.store(p_sum, b_state)
            b_state = factor * b_state + b_sum


@triton.jit(do_not_specialize=["requests", "tokens"])
def _walk_kernel(
    tensors,
    p_before,
    batch,
    requests,
    tokens,
    p_snapshot_slots,
    p_snapshot_tokens,
    scale,
    # Row strides are constants: addresses from variable ones would not fit into the registers beside the blocks.
    STRIDES: tl.constexpr,
    D: tl.constexpr,
    BV: tl.constexpr,
    CHUNK: tl.constexpr,
    SEGMENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Output of every segment; the last one of a request stores its state, the one that passes it its snapshot."""
    i_head, i_tile = tl.program_id(1), tl.program_id(2)
    o_dim, o_row, o_column = tl.arange(0, D), tl.arange(0, CHUNK), tl.arange(0, BV)
    i_request, slot, start, end, begin = _segment(i_tile, batch, requests, tokens, SEGMENT)
    stop = tl.minimum(begin + SEGMENT, end)
    i_column = tl.program_id(0) * BV
    p_q, p_k, p_v, p_output = tensors
    p_output += i_head * D + i_column + o_column[:, None]

    if slot < 0:
        b_zero = tl.zeros([BV, CHUNK], dtype=p_output.dtype.element_ty)
        for first in range(begin, stop, CHUNK):
            o_token = (first + o_row)[None, :]
            tl.store(p_output + o_token.to(tl.int64) * STRIDES[3], b_zero, mask=o_token < stop)
    elif (begin < end) | (begin == start):
        i_state = i_head * D * D + i_column
        o_state = o_dim[None, :] * D + o_column[:, None]
        if end - start > SEGMENT:
            p_before += _place(begin, start, SEGMENT).to(tl.int64) * tl.num_programs(1) * D * D + i_state
        else:
            p_before = batch.states + slot.to(tl.int64) * batch.slot_stride + i_state
        b_state = tl.load(p_before + o_state)

        # The walk pauses where the snapshot is taken; the state before the first row is the first segment's to store.
        snapshot_slot = tl.load(p_snapshot_slots + i_request)
        snapshot_row = start + tl.load(p_snapshot_tokens + i_request)
        passes = (snapshot_slot >= 0) & (snapshot_row <= stop) & ((snapshot_row > begin) | (begin == start))
        pause, pause_slot = tl.where(passes, snapshot_row, begin), tl.where(passes, snapshot_slot, -1)
        stop_slot = tl.where(stop == end, slot, -1)

        log2_decay = tl.load(batch.log_decay + i_head) * BASE_2
        pointers = (
            p_q + i_head * D + o_dim[None, :],
            p_k + i_head * D + o_dim[None, :],
            p_v + i_head * D + i_column + o_column[:, None],
            p_output,
        )
        b_state = _walk(b_state, begin, pause, pointers, STRIDES, log2_decay, scale, CHUNK, PRECISION)
        if pause_slot >= 0:
            p_snapshot = batch.states + pause_slot.to(tl.int64) * batch.slot_stride + i_state
            tl.store(p_snapshot + o_state, b_state)
        b_state = _walk(b_state, pause, stop, pointers, STRIDES, log2_decay, scale, CHUNK, PRECISION)
        if stop_slot >= 0:
            tl.store(batch.states + stop_slot.to(tl.int64) * batch.slot_stride + i_state + o_state, b_state)


@triton.jit
def _walk(
    b_state,
    begin,
    end,
    pointers,
    STRIDES: tl.constexpr,
    log2_decay,
    scale,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """State after rows ``begin`` … ``end`` − 1 from the state before them, both [BV, D]; stores the output rows."""
    p_q, p_k, p_v, p_output = pointers
    o_row = tl.arange(0, CHUNK)
    for first in range(begin, end, CHUNK):
        count = tl.minimum(end - first, CHUNK)
        # Rows past the last of a partial chunk repeat it; masks would cost more registers than there are.
        o_token = tl.minimum(first + o_row, end - 1).to(tl.int64)
        # Exponents count down to the end of the chunk, which varies: the compiler would keep a fixed block of them.
        b_left = (count - 1 - o_row).to(tl.float32)

        b_q = tl.load(p_q + o_token[:, None] * STRIDES[0])
        b_output = dot_float32(b_state, tl.trans(b_q), PRECISION)
        b_output *= tl.exp2(log2_decay * (count - b_left))[None, :]

        b_k = tl.load(p_k + o_token[:, None] * STRIDES[1])
        b_scores = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)
        # λ^(i−j) from the difference: λ^i·λ^(−j) would overflow for the fastest heads.
        b_distance = b_left[:, None] - b_left[None, :]
        b_scores *= tl.exp2(tl.where(b_distance >= 0, log2_decay * b_distance, float("-inf")))

        b_v = tl.load(p_v + o_token[None, :] * STRIDES[2])
        b_output = dot_float32(b_v, b_scores, PRECISION, b_output) * scale
        p_row = p_output + (first + o_row).to(tl.int64)[None, :] * STRIDES[3]
        tl.store(p_row, b_output.to(p_output.dtype.element_ty), mask=(o_row < count)[None, :])

        b_until_end = tl.exp2(tl.where(b_left >= 0, log2_decay * b_left, float("-inf")))
        b_state *= tl.exp2(log2_decay * count)
        b_state = dot_float32(b_v.to(tl.float32) * b_until_end[None, :], b_k, PRECISION, b_state)
    return b_state


@triton.jit
def _segment(i_tile, batch, requests, tokens, SEGMENT: tl.constexpr):
    """Request of a tile, its slot (−1 for none), its rows ``start`` … ``end`` − 1 and the first row of the tile."""
    i_request = find_request(i_tile, batch.query_start, requests, 0, tokens, SEGMENT)
    m_request = i_request < requests
    slot = tl.load(batch.state_slots + i_request, mask=m_request, other=-1)
    start = tl.load(batch.query_start + i_request)
    end = tl.load(batch.query_start + i_request + 1, mask=m_request, other=tokens)
    return i_request, slot, start, end, start + (i_tile - first_tile(i_request, start, SEGMENT)) * SEGMENT


@triton.jit
def _place(begin, start, SEGMENT: tl.constexpr):
    """Where the scratch has the segment that begins at row ``begin`` of a request that begins at ``start``.

    Among requests of several segments, at most one first and one later segment begin within SEGMENT aligned rows.
    """
    return 2 * (begin // SEGMENT) + (begin > start)
