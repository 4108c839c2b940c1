"""Calls of every operator at every size at which a server with the released model makes them; inputs are never read.

A new kernel gets its call here: without one tests/benchmarks/test_registers.py fails.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sala_kernels.compress_keys import compress_keys
from sala_kernels.gated_norm import gated_norm, mean_square_part
from sala_kernels.kv_scales import E4M3
from sala_kernels.layout import PagedBatch, SparseGeometry
from sala_kernels.lightning import lightning_chunk
from sala_kernels.lightning_commit import lightning_commit
from sala_kernels.lightning_step import lightning_step
from sala_kernels.lightning_verify import lightning_verify
from sala_kernels.qk_norm_rope import qk_norm_rope
from sala_kernels.scaled_add_norm import scaled_add_norm
from sala_kernels.select_blocks import select_blocks
from sala_kernels.sigmoid_gate import sigmoid_gate
from sala_kernels.silu_mul import silu_mul
from sala_kernels.skinny_linear import MAX_ROWS, skinny_linear
from sala_kernels.sparse_attention import sparse_attention
from sala_kernels.store_kv import store_kv

from benchmarks.operators.linear_kernels import BLOCK, CHANNEL, INT4, make_weight
from sala_sglang.attention.warm_up import prompt_lengths

HEADS, KV_HEADS, DIM, WIDTH = 32, 2, 128, 4096
GEOMETRY, LONGEST_TOKENS = SparseGeometry(), 2**21  # the longest context that has been measured
CHUNK_TOKENS, REQUESTS = 4224, (1, 32)  # rows of a prefill step, more than a segment of lightning; decode steps
TRITON = "triton"  # the implementation whose kernels are compiled
FEW_ROWS, DRAFT_ROWS, LIGHTNING_LAYERS = 8, 4, 24
PROJECTIONS = 4  # q, k, v and gate come out of one product


@dataclass(frozen=True)
class Form:
    """A server: dtype of the model, and the ranks over which its heads are divided."""

    dtype: torch.dtype = torch.bfloat16
    ranks: int = 1
    special: str = ""  # FP8_CACHE or OWN_PRODUCTS: only what such a server launches beside the same without

    @property
    def kv_heads(self) -> int:
        return max(KV_HEADS // self.ranks, 1)  # heads are copied where there are more ranks

    def empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype)

    def __str__(self) -> str:
        return " ".join([str(self.dtype).removeprefix("torch."), self.special]).rstrip()


FP8_CACHE, OWN_PRODUCTS = "FP8 cache", "own products"
# In the dtype of the released model. Others are served, and cost as much to compile again.
FORMS = *(Form(ranks=ranks) for ranks in (1, 2, 4, 8)), Form(special=FP8_CACHE), Form(special=OWN_PRODUCTS)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def unread_batch(rows: list[int], context: int) -> PagedBatch:
    """A batch of requests with ``rows`` each that end at ``context`` tokens. Their token slots are not set."""
    requests = len(rows)
    return PagedBatch(
        query_start=ints(0, *rows).cumsum(0).int(),
        kv_lens=ints(*[context] * requests),
        sparse_from=ints(*[0] * requests),
        request_rows=torch.arange(requests),
        token_slots=torch.empty(1, context, dtype=torch.int32).expand(requests, -1),
        max_query_tokens=max(rows),
        max_kv_tokens=context,
    )


Calls = Iterator[tuple[str, Callable[[], object]]]


def operators(form: Form) -> Calls:
    """Names of the operators and calls of them, several of some."""
    if form.special == FP8_CACHE:
        yield from _sparse_in_fp8(form)
        return
    if form.special == OWN_PRODUCTS:
        yield from _own_products(form)
        return
    yield from _sparse(form)
    yield from _lightning(form)
    yield from _row_wise(form)
    for rows in (1, 16, 32, MAX_ROWS):
        x, weight = form.empty(rows, WIDTH), form.empty(PROJECTIONS * WIDTH, WIDTH)
        yield "skinny_linear", partial(skinny_linear, x, weight, implementation=TRITON)


def _sparse(form: Form) -> Calls:
    contexts = prompt_lengths(GEOMETRY, LONGEST_TOKENS)
    steps = [([CHUNK_TOKENS], context) for context in contexts]
    steps += [([1] * requests, context) for requests in REQUESTS for context in contexts]
    pool = form.empty(2 * GEOMETRY.block_size, form.kv_heads, DIM)
    compressed = form.empty(2, form.kv_heads, GEOMETRY.page_rows, DIM)
    for rows, context in steps:
        batch, count = unread_batch(rows, context), sum(rows)
        attending = form.empty(count, PROJECTIONS * WIDTH).view(count, -1, DIM)[:, : HEADS // form.ranks]
        # Scores sum over all heads of a group, also where ranks share it.
        selecting = attending if form.ranks <= KV_HEADS else form.empty(count, HEADS // KV_HEADS, DIM)
        blocks = torch.empty(count, form.kv_heads, GEOMETRY.selected_blocks, dtype=torch.int32)
        rest = batch, GEOMETRY, DIM**-0.5
        yield "select_blocks", partial(select_blocks, selecting, compressed, *rest, implementation=TRITON)
        if context == contexts[-1]:
            yield "compress_keys", partial(compress_keys, pool, compressed, batch, GEOMETRY, implementation=TRITON)
            attend = partial(sparse_attention, attending, pool, pool, blocks, *rest, implementation=TRITON)
            yield "sparse_attention", attend


def _sparse_in_fp8(form: Form) -> Calls:
    pool = torch.empty(2 * GEOMETRY.block_size, form.kv_heads, DIM, dtype=E4M3)
    compressed, scales = form.empty(2, form.kv_heads, GEOMETRY.page_rows, DIM), torch.empty(2, form.kv_heads)
    fp8: dict[str, Any] = {"kv_scales": scales, "implementation": TRITON}
    for rows in ([CHUNK_TOKENS], *([1] * requests for requests in REQUESTS)):
        batch, count = unread_batch(rows, LONGEST_TOKENS), sum(rows)
        projected = form.empty(count, PROJECTIONS * WIDTH).view(count, -1, DIM)
        queries, k = projected[:, :HEADS], projected[:, HEADS : HEADS + form.kv_heads]
        blocks = torch.empty(count, form.kv_heads, GEOMETRY.selected_blocks, dtype=torch.int32)
        slots, rest = torch.empty(count, dtype=torch.int64), (batch, GEOMETRY, DIM**-0.5)
        yield "store_kv", partial(store_kv, k, k, pool, pool, slots, scales, implementation=TRITON)
        yield "compress_keys", partial(compress_keys, pool, compressed, batch, GEOMETRY, **fp8)
        yield "sparse_attention", partial(sparse_attention, queries, pool, pool, blocks, *rest, **fp8)


def _own_products(form: Form) -> Calls:
    few, many = form.empty(FEW_ROWS, WIDTH), form.empty(REQUESTS[-1], WIDTH)
    yield "skinny_linear", partial(skinny_linear, few, form.empty(WIDTH, WIDTH), implementation=TRITON)
    for layout in (CHANNEL, BLOCK, INT4):
        for outputs in (WIDTH, PROJECTIONS * WIDTH):
            weight = make_weight(layout, outputs, WIDTH, "cpu")
            assert weight is not None
            for x in (few,) if layout == INT4 or outputs == WIDTH else (few, many):
                yield "skinny_linear", partial(skinny_linear, x, weight, implementation=TRITON)
    rows, factors, float8 = form.empty(CHUNK_TOKENS, WIDTH), form.empty(WIDTH), {"to_float8": True}
    gate, wide = form.empty(CHUNK_TOKENS, PROJECTIONS * WIDTH)[:, -WIDTH:], form.empty(CHUNK_TOKENS, 8 * WIDTH)
    chosen: dict[str, Any] = float8 | {"implementation": TRITON}
    yield "gated_norm", partial(gated_norm, rows, gate, factors, 1e-6, **chosen)
    yield "scaled_add_norm", partial(scaled_add_norm, rows, rows, 0.25, factors, 1e-6, **chosen)
    yield "sigmoid_gate", partial(sigmoid_gate, rows, gate, **chosen)
    yield "silu_mul", partial(silu_mul, wide, implementation=TRITON)


def _lightning(form: Form) -> Calls:
    heads = HEADS // form.ranks
    weight, inv_freq = form.empty(DIM), torch.empty(DIM // 2)
    states, decay = torch.empty(2, heads, DIM, DIM), torch.empty(heads)
    slots = ints(0, 1)

    def projected(rows: int) -> tuple[torch.Tensor, ...]:
        return form.empty(rows, PROJECTIONS * heads * DIM).view(rows, PROJECTIONS, heads, DIM).unbind(1)

    q, k, v, _ = projected(2)
    step = weight, weight, slots, inv_freq, 1e-6, states, slots, slots, decay, 1.0
    yield "lightning_step", lambda: lightning_step(q, k, v, *step, implementation=TRITON)
    yield from _speculative(form, states, decay)
    long_q, long_k, long_v, _ = projected(CHUNK_TOKENS)
    norms = weight, weight, torch.arange(CHUNK_TOKENS), inv_freq, 1e-6
    yield "qk_norm_rope", lambda: qk_norm_rope(long_q, long_k, *norms, implementation=TRITON)
    turned = form.empty(CHUNK_TOKENS, heads, DIM)
    chunk = states, ints(0), ints(0, CHUNK_TOKENS), ints(-1), ints(0), decay, 1.0
    yield "lightning_chunk", lambda: lightning_chunk(turned, turned, long_v, *chunk, implementation=TRITON)


def _speculative(form: Form, states: torch.Tensor, decay: torch.Tensor) -> Calls:
    """Verify steps of DRAFT_ROWS per request, and what folds their rows into the states of all layers."""
    requests, heads = states.shape[:2]
    rows, slots = DRAFT_ROWS * requests, torch.arange(requests, dtype=torch.int32)
    q, k, v, _ = form.empty(rows, PROJECTIONS * heads * DIM).view(rows, PROJECTIONS, heads, DIM).unbind(1)
    stash, weight = form.empty(LIGHTNING_LAYERS, rows, 2, heads, DIM), form.empty(DIM)
    norms = weight, weight, torch.arange(rows), torch.empty(DIM // 2), 1e-6
    verify = q, k, v, *norms, states, slots, stash[0], decay, 1.0
    commit = stash, DRAFT_ROWS, states.expand(LIGHTNING_LAYERS, *states.shape), slots, slots, slots, slots, decay
    yield "lightning_verify", partial(lightning_verify, *verify, implementation=TRITON)
    yield "lightning_commit", partial(lightning_commit, *commit, implementation=TRITON)


def _row_wise(form: Form) -> Calls:
    rows, weight = form.empty(CHUNK_TOKENS, WIDTH), form.empty(WIDTH)
    part = WIDTH // form.ranks
    own, own_weight = form.empty(CHUNK_TOKENS, part), form.empty(part)
    gate = form.empty(CHUNK_TOKENS, PROJECTIONS * part)[:, -part:]
    yield "scaled_add_norm", lambda: scaled_add_norm(rows, rows, 0.25, weight, 1e-6, implementation=TRITON)
    yield "sigmoid_gate", lambda: sigmoid_gate(own, gate, implementation=TRITON)
    if form.ranks == 1:
        yield "gated_norm", lambda: gated_norm(own, gate, own_weight, 1e-6, implementation=TRITON)
    else:
        mean = torch.empty(CHUNK_TOKENS)
        yield "gated_norm", lambda: mean_square_part(own, WIDTH, CHUNK_TOKENS, implementation=TRITON)
        yield "gated_norm", lambda: gated_norm(own, gate, own_weight, 1e-6, mean, implementation=TRITON)
