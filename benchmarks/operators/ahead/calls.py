"""Calls of every operator at every size at which a server with the released model makes them; inputs are never read.

What servers launch stands in sala_sglang/ahead/calls.py; here is for which servers, and what is off by default.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sala_kernels.gated_norm import gated_norm
from sala_kernels.scaled_add_norm import scaled_add_norm
from sala_kernels.sigmoid_gate import sigmoid_gate
from sala_kernels.silu_mul import silu_mul
from sala_kernels.skinny_linear import skinny_linear

from benchmarks.operators.linear_kernels import BLOCK, CHANNEL, INT4, make_weight
from sala_sglang.ahead import form as server
from sala_sglang.ahead.calls import CHUNK_TOKENS, REQUESTS, TRITON, Calls, calls, sparse_calls
from sala_sglang.config import SALAConfig

WIDTH, PROJECTIONS = 4096, 4  # q, k, v and gate come out of one product
LONGEST_TOKENS = 2**21  # the longest context that has been measured
FEW_ROWS, DRAFT_ROWS = 8, 4


@dataclass(frozen=True)
class Form:
    """A server: dtype of the model, and the ranks over which its heads are divided."""

    dtype: torch.dtype = torch.bfloat16
    ranks: int = 1
    special: str = ""  # FP8_CACHE or OWN_PRODUCTS: only what such a server launches beside the same without

    def empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=self.dtype)

    def __str__(self) -> str:
        return " ".join([str(self.dtype).removeprefix("torch."), self.special]).rstrip()


FP8_CACHE, OWN_PRODUCTS = "FP8 cache", "own products"
# In the dtype of the released model. Others are served, and cost as much to compile again.
FORMS = *(Form(ranks=ranks) for ranks in (1, 2, 4, 8)), Form(special=FP8_CACHE), Form(special=OWN_PRODUCTS)


def operators(form: Form) -> Calls:
    """Names of the operators and calls of them, several of some."""
    if form.special == OWN_PRODUCTS:
        yield from _own_products(form)
        return
    fp8_cache = form.special == FP8_CACHE
    sizes = SALAConfig(), LONGEST_TOKENS, LONGEST_TOKENS, form.ranks, form.dtype, fp8_cache, DRAFT_ROWS
    served = server.Form(*sizes)
    if fp8_cache:  # selection reads compressed keys, which are not in FP8
        yield from (pair for pair in sparse_calls(served) if pair[0] != "select_blocks")
    else:
        yield from calls(served)


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
