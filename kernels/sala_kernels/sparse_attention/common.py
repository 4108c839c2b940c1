"""What the attention kernels share: arguments, the rule that assigns rows to them, and online softmax in base 2."""

import torch
import triton
import triton.language as tl

from sala_kernels.kernel_arguments import batch_pointers, with_strides
from sala_kernels.layout import SparseGeometry
from sala_kernels.row_tiles import LOG2_E
from sala_kernels.sparse_attention import Arguments

TILE_TOKENS = 64  # keys per step of a loop


def launch_arguments(arguments: Arguments) -> tuple:
    """Leading arguments of a kernel: inputs with strides, batch, requests, tokens, scale in base 2, scales of FP8."""
    queries, keys, values, block_ids, batch, _, scale, kv_scales = arguments
    inputs = with_strides(queries), with_strides(keys), with_strides(values), with_strides(block_ids)
    return *inputs, batch_pointers(batch), batch.size, queries.shape[0], scale * LOG2_E, kv_scales


def loop_stages(pool: torch.Tensor, stages: int) -> int:
    """``stages`` of loads in flight, which shared memory holds of pools with 16 bits and less; one of wider ones."""
    return stages if pool.element_size() <= 2 else 1


def constants(keys: torch.Tensor, geometry: SparseGeometry) -> dict[str, int]:
    return {
        "BLOCK": geometry.block_size,
        "TOKENS": min(geometry.block_size, TILE_TOKENS),
        "K_SEL": geometry.selected_blocks,
        "K_SEL_PADDED": triton.next_power_of_2(geometry.selected_blocks),
        "D": keys.shape[2],
    }


@triton.jit
def logit_scale(scale, p_kv_scales, i_kv_head):
    """``scale`` times that of keys in e4m3; p_kv_scales: [2, Hkv], or None."""
    if p_kv_scales is not None:
        scale *= tl.load(p_kv_scales + i_kv_head)
    return scale


@triton.jit
def scale_output(b_output, p_kv_scales, i_kv_head, kv_heads):
    """``b_output`` times the scale of values in e4m3."""
    if p_kv_scales is not None:
        b_output *= tl.load(p_kv_scales + kv_heads + i_kv_head)
    return b_output


@triton.jit
def attend(
    b_queries,
    b_output,
    b_max,
    b_sum,
    keys,
    values,
    i_kv_head,
    slot,
    token,
    o_position,
    seen_by_all,
    scale,
    TOKENS: tl.constexpr,
    D: tl.constexpr,
):
    """Take in TOKENS keys, the first of them position ``token`` in pool slot ``slot``; pools come with strides.

    b_queries [M, D] at positions o_position [M], negative for rows that are not to see these keys; every row sees
    the tokens before ``seen_by_all``. ``scale`` is positive, with that of keys in e4m3, and b_output without that of
    values. b_output [M, D], b_max [M] and b_sum [M] are float32 and come back updated.
    """
    p_keys, key_strides = keys
    p_values, value_strides = values
    o_token, o_dim = tl.arange(0, TOKENS), tl.arange(0, D)
    # The tokens lie next to each other: one 64-bit product, and offsets that are the same in every call.
    p_key = p_keys + i_kv_head * key_strides[1] + slot.to(tl.int64) * key_strides[0]
    b_keys = tl.load(p_key + (o_token[:, None] * key_strides[0] + o_dim[None, :] * key_strides[2]))
    b_keys = b_keys.to(b_queries.dtype)  # from e4m3 exact
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
    p_value = p_values + i_kv_head * value_strides[1] + slot.to(tl.int64) * value_strides[0]
    o_value = o_token[:, None] * value_strides[0] + o_dim[None, :] * value_strides[2]
    b_values = tl.load(p_value + o_value, mask=m_token, other=0.0).to(b_queries.dtype)
    b_output = tl.dot(b_weights.to(b_values.dtype), b_values, b_output * b_decay[:, None], input_precision="ieee")
    return b_output, b_new_max, b_sum


@triton.jit
def count_ids(
    lists,
    i_row,
    i_kv_head,
    m_sparse,
    rows,
    TILE: tl.constexpr,
    K_SEL: tl.constexpr,
    K_SEL_PADDED: tl.constexpr,
):
    """Number of block ids of each of ``rows`` rows from ``i_row`` on, [TILE] int32; 0, unread, where not ``m_sparse``.

    lists: [T, Hkv, K_SEL] with strides.
    """
    p_lists, strides = lists
    o_row, o_id = tl.arange(0, TILE), tl.arange(0, K_SEL_PADDED)
    m_id = (m_sparse & (o_row < rows))[:, None] & (o_id < K_SEL)[None, :]
    p_row = (
        p_lists + i_row.to(tl.int64) * strides[0] + i_kv_head * strides[1] + o_row.to(tl.int64)[:, None] * strides[0]
    )
    b_ids = tl.load(p_row + o_id[None, :] * strides[2], mask=m_id, other=-1)
    return tl.sum((b_ids >= 0).to(tl.int32), 1)


@triton.jit
def attends_to_all(sparse, listed, position, BLOCK: tl.constexpr):
    """Whether rows at ``position`` with ``listed`` block ids attend to every block up to their own."""
    return (sparse == 0) | (listed > position // BLOCK)
