"""What the attention kernels share: arguments, the rule that assigns rows to them, and online softmax in base 2."""

import torch
import triton
import triton.language as tl

from sala_kernels.layout import PagedBatch, SparseGeometry
from sala_kernels.row_tiles import LOG2_E, batch_arguments

TILE_TOKENS = 64  # keys per step of a loop


def launch_arguments(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_ids: torch.Tensor,
    batch: PagedBatch,
    scale: float,
) -> tuple:
    strides = *queries.stride(), *keys.stride(), *values.stride(), *block_ids.stride()
    return *batch_arguments(batch), queries.shape[0], scale * LOG2_E, *strides


def constants(keys: torch.Tensor, geometry: SparseGeometry) -> dict[str, int]:
    return {
        "BLOCK": geometry.block_size,
        "TOKENS": min(geometry.block_size, TILE_TOKENS),
        "K_SEL": geometry.selected_blocks,
        "K_SEL_PADDED": triton.next_power_of_2(geometry.selected_blocks),
        "D": keys.shape[2],
    }


@triton.jit
def attend(
    b_queries,
    b_output,
    b_max,
    b_sum,
    p_keys,
    p_values,
    slot,
    token,
    o_position,
    seen_by_all,
    scale,
    key_slot_stride,
    key_dim_stride,
    value_slot_stride,
    value_dim_stride,
    TOKENS: tl.constexpr,
    D: tl.constexpr,
):
    """Take in TOKENS keys, the first of them position ``token`` in pool slot ``slot``.

    b_queries [M, D] at positions o_position [M], negative for rows that are not to see these keys; every row sees
    the tokens before ``seen_by_all``. ``scale`` is positive. b_output [M, D], b_max [M] and b_sum [M] are float32
    and come back updated.
    """
    o_token, o_dim = tl.arange(0, TOKENS), tl.arange(0, D)
    # The tokens lie next to each other: one 64-bit product, and offsets that are the same in every call.
    p_key = p_keys + slot.to(tl.int64) * key_slot_stride
    b_keys = tl.load(p_key + (o_token[:, None] * key_slot_stride + o_dim[None, :] * key_dim_stride))
    b_logits = tl.dot(b_queries, tl.trans(b_keys), input_precision="ieee")
    if token + TOKENS > seen_by_all:  # most calls need no mask
        b_logits = tl.where((token + o_token)[None, :] <= o_position[:, None], b_logits, float("-inf"))
    b_new_max = tl.maximum(b_max, tl.max(b_logits, 1) * scale)
    b_base = tl.where(b_new_max == float("-inf"), 0.0, b_new_max)  # of rows that have seen no key yet
    b_decay = tl.exp2(b_max - b_base)
    b_weights = tl.exp2(b_logits * scale - b_base[:, None])
    b_sum = b_sum * b_decay + tl.sum(b_weights, 1)
    # Slots past the last token belong to nobody: a weight of zero would not cancel what they hold.
    m_token = (token + o_token <= tl.max(o_position, 0))[:, None]
    p_value = p_values + slot.to(tl.int64) * value_slot_stride
    o_value = o_token[:, None] * value_slot_stride + o_dim[None, :] * value_dim_stride
    b_values = tl.load(p_value + o_value, mask=m_token, other=0.0)
    b_output = tl.dot(b_weights.to(b_values.dtype), b_values, b_output * b_decay[:, None], input_precision="ieee")
    return b_output, b_new_max, b_sum


@triton.jit
def count_ids(
    p_list,
    row_stride,
    id_stride,
    m_sparse,
    rows,
    TILE: tl.constexpr,
    K_SEL: tl.constexpr,
    K_SEL_PADDED: tl.constexpr,
):
    """Number of block ids of each of ``rows`` rows at ``p_list``, [TILE] int32; 0, unread, where not ``m_sparse``."""
    o_row, o_id = tl.arange(0, TILE), tl.arange(0, K_SEL_PADDED)
    m_id = (m_sparse & (o_row < rows))[:, None] & (o_id < K_SEL)[None, :]
    b_ids = tl.load(p_list + o_row.to(tl.int64)[:, None] * row_stride + o_id[None, :] * id_stride, mask=m_id, other=-1)
    return tl.sum((b_ids >= 0).to(tl.int32), 1)


@triton.jit
def attends_to_all(sparse, listed, position, BLOCK: tl.constexpr):
    """Whether rows at ``position`` with ``listed`` block ids attend to every block up to their own."""
    return (sparse == 0) | (listed > position // BLOCK)
