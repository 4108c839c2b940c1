"""Before an output is timed: is it what the reference computes? Only sampled rows where the reference is slow.

These checks catch a kernel that computes something else at the sizes measured; the judgement of its precision is left
to the tests of the operators.
"""

from dataclasses import replace

import torch
from sala_kernels.layout import PagedBatch
from sala_kernels.select_blocks.reference import block_scores, top_blocks
from sala_kernels.sparse_attention import sparse_attention

from benchmarks.operators.harness.sizes import Sizes

SAMPLES = 4
ROUNDING = 2**-8  # the largest relative error of rounding to bfloat16
# An operator rounds up to four times on the way to an output (weights or factors, products, output), and so does its
# reference, at the same places or with float32 in between.
ROW_BOUND = 2 * 4 * ROUNDING
# Block scores are rounded once on either side, and products in float32 that come before are far more precise. A factor
# of two covers those.
SCORE_BAND = 2 * 2 * ROUNDING


# Of rows in e4m3, whose rounding on either side comes last.
FLOAT8_ROW_BOUND = ROW_BOUND + 2 * 2**-4


def check_rows(name: str, actual: torch.Tensor, expected: torch.Tensor, *, bound: float = ROW_BOUND) -> None:
    """Raise AssertionError unless every row (dimension 0) is within ``bound`` of its norm."""
    actual, expected = (x.float().flatten(1) for x in (actual, expected))
    error = (actual - expected).norm(dim=1) / expected.norm(dim=1)
    worst = float(error.max())
    if not worst <= bound:  # NaN fails too
        raise AssertionError(f"{name}: row {int(error.argmax())} differs from the reference by {worst:.3g} of its norm")


def sampled_rows(batch: PagedBatch, rows: int) -> list[tuple[int, PagedBatch]]:
    """Rows spread over the step, each with a batch in which it is the only one."""
    samples = []
    for row in torch.linspace(0, rows - 1, min(rows, SAMPLES)).long().tolist():
        request = int((batch.query_start <= row).sum()) - 1
        own = slice(request, request + 1)
        alone = {name: getattr(batch, name)[own] for name in ("sparse_from", "request_rows")}
        kv_lens = batch.kv_lens[own] - batch.query_start[request + 1] + row + 1
        start = torch.tensor([0, 1], dtype=torch.int32, device=kv_lens.device)
        samples.append((row, replace(batch, query_start=start, kv_lens=kv_lens, max_query_tokens=1, **alone)))
    return samples


def check_selection(
    selected: torch.Tensor, queries: torch.Tensor, compressed: torch.Tensor, batch: PagedBatch, sizes: Sizes
) -> None:
    """Raise AssertionError unless sampled rows hold the reference's blocks, or others whose scores are as good.

    selected: [T, Hkv, K_SEL] from select_blocks of the other arguments.
    """
    geometry = sizes.geometry
    for row, alone in sampled_rows(batch, len(queries)):
        _, position = alone.rows(0)
        pages = compressed[alone.pages(0, geometry.block_size)].transpose(0, 1)
        fine, coarse = (part.flatten(1, 2) for part in pages.split([geometry.fine_rows, geometry.coarse_rows], dim=2))
        scores = block_scores(queries[row : row + 1], fine, coarse, position, geometry, sizes.scale)
        blocks = torch.arange(scores.shape[-1], device=scores.device)
        first_local = position // geometry.block_size - geometry.local_blocks
        ranked = scores.masked_fill((blocks < geometry.init_blocks) | (blocks >= first_local), torch.inf)
        lists = selected[row : row + 1], top_blocks(scores, position, geometry)
        taken, expected = (_members(ids, len(blocks)) for ids in lists)
        last = ranked.masked_fill(~expected, torch.inf).amin(-1, keepdim=True)
        wrong = taken & ~expected & (ranked < last * (1 - SCORE_BAND))
        missing = expected & ~taken & (ranked > last * (1 + SCORE_BAND))
        if wrong.any() or missing.any() or not torch.equal(taken.sum(-1), expected.sum(-1)):
            raise AssertionError(f"select_blocks: row {row} holds other blocks than the reference's: {lists}")


def _members(ids: torch.Tensor, blocks: int) -> torch.Tensor:
    """Lists [T, Hkv, K_SEL], ended by -1, as a mask [T, Hkv, blocks]; ids out of range are left out."""
    mask = torch.zeros(*ids.shape[:2], blocks + 1, dtype=torch.bool, device=ids.device)
    return mask.scatter(-1, ids.long().where((ids >= 0) & (ids < blocks), blocks), True)[..., :blocks]


def check_attention(
    output: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_ids: torch.Tensor,
    batch: PagedBatch,
    sizes: Sizes,
) -> None:
    """Raise AssertionError unless sampled rows of ``output`` are those of the reference."""
    for row, alone in sampled_rows(batch, len(queries)):
        own = slice(row, row + 1)
        arguments = queries[own], keys, values, block_ids[own], alone, sizes.geometry, sizes.scale
        check_rows(f"sparse_attention row {row}", output[own], sparse_attention(*arguments, implementation="reference"))
