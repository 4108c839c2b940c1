"""Calls of every operator as the steps of a server make them; no element of their inputs is read.

A new kernel gets its call here: without one tests/benchmarks/test_registers.py fails, and a server's first start would
compile it although ``sala-sglang warm`` ran.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from sala_kernels.compress_keys import compress_keys
from sala_kernels.gated_norm import gated_norm, mean_square_part
from sala_kernels.kv_scales import E4M3
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

from sala_sglang.ahead.form import Form, ints, unread_batch
from sala_sglang.attention.warm_up import prompt_lengths
from sala_sglang.config import LIGHTNING, SPARSE
from sala_sglang.models.products import is_own

TRITON = "triton"  # the implementation whose kernels are compiled
CHUNK_TOKENS, REQUESTS = 4224, (1, 32)  # rows of a prefill step, more than a segment of lightning; decode steps
PRODUCT_ROWS = 1, 16, 32, MAX_ROWS  # of which skinny_linear has kernels
PAGES = 2  # of the pools, whose sizes do not matter

Calls = Iterator[tuple[str, Callable[[], object]]]


def calls(form: Form) -> Calls:
    """Names of the operators and calls of them, several of some."""
    yield from sparse_calls(form)
    yield from lightning_calls(form)
    if form.verified_rows:
        yield from verify_calls(form)
    yield from row_wise_calls(form)
    for outputs, inputs in form.weight_shapes():
        weight = form.empty(outputs, inputs)
        for rows in PRODUCT_ROWS:
            if is_own(weight, rows, wanted=False):
                yield "skinny_linear", partial(skinny_linear, form.empty(rows, inputs), weight, implementation=TRITON)


def sparse_calls(form: Form) -> Calls:
    """Prefill and decode steps at every length that has kernels of its own; a prompt's last row is a decode step."""
    contexts = prompt_lengths(form.geometry, form.context_tokens)
    compressed = form.empty(PAGES, form.kv_heads, form.geometry.page_rows, form.config.head_dim)
    for rows in ([CHUNK_TOKENS], *([1] * requests for requests in REQUESTS)):
        for context in contexts:
            batch = unread_batch(rows, context, form.table_tokens)
            for queries in _selecting(form, sum(rows)):
                arguments = queries, compressed, batch, form.geometry, form.config.head_dim**-0.5
                yield "select_blocks", partial(select_blocks, *arguments, implementation=TRITON)
        yield from _attending(form, rows, compressed)


def _selecting(form: Form, rows: int) -> Iterator[torch.Tensor]:
    for queries, *_ in form.projected(SPARSE, rows):
        if form.selecting_heads > form.query_heads:  # gathered from other ranks
            yield form.empty(rows, form.selecting_heads, form.config.head_dim)
        else:
            yield queries.view(rows, form.query_heads, form.config.head_dim)


def _attending(form: Form, rows: list[int], compressed: torch.Tensor) -> Calls:
    """What is done with the pools in a step that has ``rows`` of each request."""
    count, geometry, head_dim = sum(rows), form.geometry, form.config.head_dim
    shape = PAGES * geometry.block_size, form.kv_heads, head_dim
    pool = torch.empty(shape, dtype=E4M3) if form.fp8_cache else form.empty(*shape)
    scales = torch.empty(2, form.kv_heads) if form.fp8_cache else None
    batch = unread_batch(rows, form.context_tokens, form.table_tokens)
    blocks = torch.empty(count, form.kv_heads, geometry.selected_blocks, dtype=torch.int32)
    for q, k, v, _ in form.projected(SPARSE, count):
        if scales is not None:
            k, v = (part.view(count, form.kv_heads, head_dim) for part in (k, v))
            slots = torch.empty(count, dtype=torch.int64)
            yield "store_kv", partial(store_kv, k, v, pool, pool, slots, scales, implementation=TRITON)
        compress = partial(compress_keys, pool, compressed, batch, geometry, kv_scales=scales)
        yield "compress_keys", partial(compress, implementation=TRITON)
        arguments = q.view(count, form.query_heads, head_dim), pool, pool, blocks, batch, geometry, head_dim**-0.5
        attend = partial(sparse_attention, *arguments, kv_scales=scales, implementation=TRITON)
        yield "sparse_attention", attend


def lightning_calls(form: Form) -> Calls:
    """A decode step, and prefill steps: a long one, and one of a single row, whose stride torch makes another one."""
    heads, head_dim = form.lightning_heads, form.config.lightning_head_dim
    states, decay, slots = torch.empty(PAGES, heads, head_dim, head_dim), torch.empty(heads), ints(*range(PAGES))
    scale = form.config.lightning_geometry.scale
    for q, k, v in _heads(form, PAGES):
        step = *_norms(form, PAGES), states, slots, slots, decay, scale
        yield "lightning_step", partial(lightning_step, q, k, v, *step, implementation=TRITON)
    for rows in (CHUNK_TOKENS, 1):
        turned = form.empty(rows, heads, head_dim)
        for q, k, v in _heads(form, rows):
            yield "qk_norm_rope", partial(qk_norm_rope, q, k, *_norms(form, rows), implementation=TRITON)
            chunk = turned, turned, v, states, ints(0), ints(0, rows), ints(-1), ints(0), decay, scale
            yield "lightning_chunk", partial(lightning_chunk, *chunk, implementation=TRITON)


def verify_calls(form: Form) -> Calls:
    """A verify step, and what folds its rows into the states of all layers."""
    heads, head_dim, layers = form.lightning_heads, form.config.lightning_head_dim, len(form.config.lightning_layer_ids)
    states, decay, slots = torch.empty(PAGES, heads, head_dim, head_dim), torch.empty(heads), ints(*range(PAGES))
    rows = form.verified_rows * PAGES
    stash, scale = form.empty(layers, rows, 2, heads, head_dim), form.config.lightning_geometry.scale
    for q, k, v in _heads(form, rows):
        verify = q, k, v, *_norms(form, rows), states, slots, stash[0], decay, scale
        yield "lightning_verify", partial(lightning_verify, *verify, implementation=TRITON)
    everywhere = states.expand(layers, *states.shape)
    commit = stash, form.verified_rows, everywhere, slots, slots, slots, slots, decay
    yield "lightning_commit", partial(lightning_commit, *commit, implementation=TRITON)


def _heads(form: Form, rows: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Query, key and value [rows, H, D] of lightning layers."""
    for parts in form.projected(LIGHTNING, rows):
        yield tuple(part.view(rows, form.lightning_heads, form.config.lightning_head_dim) for part in parts[:3])


def _norms(form: Form, rows: int) -> tuple:
    """Weights, positions, frequencies and epsilon of the norms and the rotation of lightning layers."""
    head_dim = form.config.lightning_head_dim
    weight = form.empty(head_dim)
    return weight, weight, torch.arange(rows), torch.empty(head_dim // 2), form.config.rms_norm_eps


def row_wise_calls(form: Form) -> Calls:
    """Norms and gates. The first layer takes the embedding's scale, which may be an integer; all others a fraction."""
    config, eps = form.config, form.config.rms_norm_eps
    rows, weight = form.empty(CHUNK_TOKENS, config.hidden_size), form.empty(config.hidden_size)
    for written in ({}, {"to_float8": True})[: 1 + form.float8_rows]:
        chosen: dict[str, Any] = {"implementation": TRITON, **written}
        for scale in (config.residual_scale, config.scale_emb):
            yield "scaled_add_norm", partial(scaled_add_norm, rows, rows, scale, weight, eps, **chosen)
        for *_, gate in form.projected(SPARSE, CHUNK_TOKENS):
            yield "sigmoid_gate", partial(sigmoid_gate, form.empty(*gate.shape), gate, **chosen)
        for *_, gate in form.projected(LIGHTNING, CHUNK_TOKENS):
            own, own_weight, mean = form.empty(*gate.shape), form.empty(gate.shape[1]), None
            if form.ranks > 1:
                mean, width = torch.empty(CHUNK_TOKENS), form.ranks * gate.shape[1]
                yield "gated_norm", partial(mean_square_part, own, width, CHUNK_TOKENS, implementation=TRITON)
            yield "gated_norm", partial(gated_norm, own, gate, own_weight, eps, mean, **chosen)
    if form.float8_rows:
        gate_up = form.empty(CHUNK_TOKENS, 2 * config.intermediate_size // form.ranks)
        yield "silu_mul", partial(silu_mul, gate_up, implementation=TRITON)
