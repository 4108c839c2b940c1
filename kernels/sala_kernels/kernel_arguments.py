"""How tensors and the batch travel into Triton kernels: in tuples, so that a kernel's parameters fit on a screen.

Triton specialises every integer inside a tuple, on being 1 and on being a multiple of 16, whatever do_not_specialize
says. Strides want that; numbers that vary from batch to batch have to stay parameters of their own, lest a kernel be
compiled anew for a batch. To the host a plain tuple costs less than its items one by one, and a named one costs half a
microsecond more per launch: only groups whose items have different meanings have names. A tuple inside a tuple is
unpacked by a line of its own, because Triton 3.6 refuses nested targets.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from sala_kernels.layout import PagedBatch


class BatchPointers(NamedTuple):
    """The tensors of a PagedBatch, and the row stride of token_slots.

    query_start: [B+1] int32.
    kv_lens, sparse_from: [B] int32.
    request_rows: [B] int64.
    token_slots: [R, max_tokens] int32.
    token_slots_stride: in elements.

    With the ``batch`` of the example in sala_kernels.layout, whose rows of token_slots are 16 apart:

    >>> batch_pointers(batch).token_slots_stride
    16
    """

    query_start: torch.Tensor
    kv_lens: torch.Tensor
    sparse_from: torch.Tensor
    request_rows: torch.Tensor
    token_slots: torch.Tensor
    token_slots_stride: int


def with_strides(tensor: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """``tensor`` and its strides as one argument.

    tensor: of any shape and dtype.

    >>> with_strides(torch.zeros(2, 3, 4))[1]
    (12, 4, 1)
    """
    return tensor, tensor.stride()


def batch_pointers(batch: PagedBatch) -> BatchPointers:
    """What a kernel needs of ``batch`` beside ``batch.size``, which varies.

    >>> batch_pointers(batch).kv_lens.tolist()  # of the example in sala_kernels.layout
    [16, 2]
    """
    tensors = batch.query_start, batch.kv_lens, batch.sparse_from, batch.request_rows, batch.token_slots
    return BatchPointers(*tensors, batch.token_slots.stride(0))


@triton.jit
def tokens_of(batch, i_request):
    """Pointer to the pool slots of a request's tokens, which lie in a row."""
    return batch.token_slots + tl.load(batch.request_rows + i_request).to(tl.int64) * batch.token_slots_stride
