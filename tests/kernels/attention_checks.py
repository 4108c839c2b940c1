"""Calls of sparse_attention, lists of blocks for it, and what its results are compared with."""

import pytest
import torch
from sala_kernels.kv_scales import gather_rows
from sala_kernels.select_blocks import select_blocks
from sala_kernels.sparse_attention import sparse_attention

from tests.kernels.paging import relative_error
from tests.kernels.sparse_inputs import Inputs


@pytest.fixture(autouse=True)
def every_step_fills_the_gpu(monkeypatch) -> None:
    """So that steps of a few rows, too, reach the kernel that is meant for long ones."""
    monkeypatch.setattr("sala_kernels.sparse_attention.cuda.fills_gpu", lambda *arguments: True)


def run(inputs: Inputs, block_ids: torch.Tensor, implementation: str, batch=None) -> torch.Tensor:
    tensors = inputs.queries, inputs.keys, inputs.values, block_ids
    batch = batch or inputs.batch
    options = {"kv_scales": inputs.kv_scales, "implementation": implementation}
    return sparse_attention(*tensors, batch, inputs.geometry, inputs.scale, **options)


def exactly(inputs: Inputs, block_ids: torch.Tensor) -> torch.Tensor:
    """The reference in float64."""
    pools = inputs.keys, inputs.values
    if inputs.kv_scales is None:
        pools = tuple(pool.double() for pool in pools)
    options = {"kv_scales": inputs.kv_scales, "implementation": "reference"}
    return sparse_attention(
        inputs.queries.double(), *pools, block_ids, inputs.batch, inputs.geometry, inputs.scale, **options
    )


def plainly(inputs: Inputs, block_ids: torch.Tensor) -> torch.Tensor:
    """Attention with every intermediate result in the dtype of the queries, [T, Hq, D].

    Numbers in e4m3 are exact in it, and their scales factors of logits and results.
    """
    scales = torch.ones(2, inputs.keys.shape[1]) if inputs.kv_scales is None else inputs.kv_scales
    block = inputs.geometry.block_size
    output = torch.empty_like(inputs.queries)
    for request in range(inputs.batch.size):
        rows, positions = inputs.batch.rows(request)
        slots = inputs.batch.slots(request)
        token = torch.arange(len(slots), device=slots.device)
        for row, t in zip(range(rows.start, rows.stop), positions.tolist(), strict=True):
            for kv_head, queries in enumerate(inputs.queries[row].unflatten(0, (inputs.keys.shape[1], -1))):
                mask = token <= t
                if t >= inputs.batch.sparse_from[request]:
                    mask &= torch.isin(token // block, block_ids[row, kv_head])
                pools = (gather_rows(pool, slots[mask], None, queries.dtype) for pool in (inputs.keys, inputs.values))
                keys, values = (pool[:, kv_head] for pool in pools)
                weights = (inputs.scale * scales[0, kv_head] * (queries @ keys.T)).softmax(-1)
                group = len(queries)
                output[row, kv_head * group : (kv_head + 1) * group] = weights @ values * scales[1, kv_head]
    return output


def random_ids(inputs: Inputs) -> torch.Tensor:
    """Lists [T, Hkv, K_SEL] of random blocks and the current one; arbitrary integers for dense rows."""
    selected = inputs.geometry.selected_blocks
    shape = inputs.queries.shape[0], inputs.keys.shape[1], selected
    block_ids = torch.full(shape, 2**30, dtype=torch.int32)
    for request in range(inputs.batch.size):
        rows, positions = inputs.batch.rows(request)
        for row, t in zip(range(rows.start, rows.stop), positions.tolist(), strict=True):
            current = t // inputs.geometry.block_size
            for kv_head in range(shape[1]) if t >= inputs.batch.sparse_from[request] else ():
                count = int(torch.randint(0, min(selected - 1, current) + 1, ()))
                chosen = torch.tensor([*torch.randperm(current)[:count].sort().values.tolist(), current])
                block_ids[row, kv_head] = -1
                block_ids[row, kv_head, : count + 1] = chosen
    return block_ids.to(inputs.queries.device)


def selected_ids(inputs: Inputs) -> torch.Tensor:
    arguments = inputs.queries, inputs.compressed, inputs.batch, inputs.geometry, inputs.scale
    return select_blocks(*arguments, implementation="reference")


def row_errors(output: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Relative error of every row, [T]."""
    return (output.double() - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)


def check(inputs: Inputs, block_ids: torch.Tensor, implementation: str = "triton") -> None:
    """Errors are no larger than those of plain attention in the same dtype."""
    output, exact, plain = (
        run(inputs, block_ids, implementation),
        exactly(inputs, block_ids),
        plainly(inputs, block_ids),
    )
    assert output.dtype == inputs.queries.dtype
    # Another order of the same roundings may err more, and a few float32 sums by chance be exact.
    noise = 4 * torch.finfo(torch.float32).eps
    assert relative_error(output, exact) <= 2 * relative_error(plain, exact) + noise
    # A wrong row must not hide behind many right ones, or behind a large one.
    assert row_errors(output, exact).max() <= 4 * row_errors(plain, exact).max() + noise


def neighbours_lists(inputs: Inputs, kept: float) -> torch.Tensor:
    """Ascending lists [T, Hkv, K_SEL] with the current block; each row keeps picks of the row before by chance."""
    geometry, (rows, heads) = inputs.geometry, (inputs.queries.shape[0], inputs.keys.shape[1])
    lists = torch.full((rows, heads, geometry.selected_blocks), -1, dtype=torch.int32)
    for request in range(inputs.batch.size):
        own, positions = inputs.batch.rows(request)
        for kv_head in range(heads):
            picks: list[int] = []
            for row, t in zip(range(own.start, own.stop), positions.tolist(), strict=True):
                current = t // geometry.block_size
                picks = [block for block in picks if torch.rand(()) < kept and block < current]
                for block in torch.randperm(current).tolist():
                    if block not in picks and len(picks) < geometry.selected_blocks - 1 - row % 2:
                        picks.append(block)
                lists[row, kv_head, : len(picks) + 1] = torch.tensor([*sorted(picks), current])
    return lists.to(inputs.queries.device)
