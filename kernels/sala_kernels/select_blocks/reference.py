"""The specification of select_blocks in code."""

import torch

from sala_kernels.contract import working_dtype
from sala_kernels.layout import SparseGeometry
from sala_kernels.select_blocks import Arguments

QUERY_CHUNK = 256  # bounds the score matrix


def select_blocks(arguments: Arguments) -> torch.Tensor:
    queries, compressed, batch, geometry, scale = arguments
    shape = (queries.shape[0], compressed.shape[1], geometry.selected_blocks)
    selected = torch.full(shape, -1, dtype=torch.int32, device=queries.device)
    for request in range(batch.size):
        rows, positions = batch.rows(request)
        sparse = positions >= batch.sparse_from[request]
        if not sparse.any():
            continue
        pages = compressed[batch.pages(request, geometry.block_size)]
        fine, coarse = pages.transpose(0, 1).split([geometry.fine_rows, geometry.coarse_rows], dim=2)
        for chunk in torch.arange(rows.start, rows.stop).split(QUERY_CHUNK):
            at = positions[chunk - rows.start]
            scores = block_scores(queries[chunk], fine.flatten(1, 2), coarse.flatten(1, 2), at, geometry, scale)
            dense = ~sparse[chunk - rows.start]
            selected[chunk] = top_blocks(scores, at, geometry).masked_fill(dense[:, None, None], -1)
    return selected


def block_scores(
    queries: torch.Tensor,
    fine: torch.Tensor,
    coarse: torch.Tensor,
    positions: torch.Tensor,
    geometry: SparseGeometry,
    scale: float,
) -> torch.Tensor:
    """Scores of every block before forcing: queries [T, Hq, D], fine/coarse slots [Hkv, C, D] -> [T, Hkv, NB]."""
    work = working_dtype(queries)
    grouped = queries.to(work).unflatten(1, (fine.shape[0], -1))
    fine_logits = scale * torch.einsum("tkgd,kcd->tkgc", grouped, fine.to(work))
    coarse_logits = scale * torch.einsum("tkgd,kcd->tkgc", grouped, coarse.to(work))
    fine_visible = _visible(fine.shape[1], positions, geometry.kernel_stride, geometry.overlap)
    coarse_visible = _visible(coarse.shape[1], positions, geometry.coarse_stride, geometry.overlap)

    lse = coarse_logits.masked_fill(~coarse_visible, -torch.inf).logsumexp(-1, keepdim=True)
    # Without a visible K2 slot the normaliser does not exist and every score is 0.
    scorable = fine_visible & coarse_visible.any(-1, keepdim=True)
    weights = (fine_logits - lse).masked_fill(~scorable, -torch.inf).exp().sum(2)
    weights = weights.to(queries.dtype).to(work)
    # Windows that touch block b: its own slots and the next `overlap` ones.
    padded = torch.nn.functional.pad(weights, (0, geometry.overlap))
    return padded.unfold(-1, geometry.fine_rows + geometry.overlap, geometry.fine_rows).amax(-1)


def top_blocks(scores: torch.Tensor, positions: torch.Tensor, geometry: SparseGeometry) -> torch.Tensor:
    """Forced blocks and the best of the others: scores [T, Hkv, NB], positions [T] -> [T, Hkv, K_SEL] int32."""
    blocks = torch.arange(scores.shape[-1], device=scores.device)
    current = (positions // geometry.block_size)[:, None, None]
    forced = (blocks < geometry.init_blocks) | (blocks >= current - geometry.local_blocks)
    # A score may overflow to infinity; forced blocks still come first.
    finite = scores.clamp(max=torch.finfo(scores.dtype).max)
    ranked = finite.masked_fill(forced, torch.inf).masked_fill(blocks > current, -torch.inf)
    values, order = ranked.sort(dim=-1, descending=True, stable=True)
    order = order.masked_fill(values == -torch.inf, scores.shape[-1])[..., : geometry.selected_blocks]
    order = order.sort(-1).values
    missing = geometry.selected_blocks - order.shape[-1]
    order = torch.nn.functional.pad(order, (0, missing), value=scores.shape[-1])
    return order.masked_fill(order == scores.shape[-1], -1).int()


def _visible(slots: int, positions: torch.Tensor, stride: int, overlap: int) -> torch.Tensor:
    """[T, 1, 1, slots]: slots whose whole window lies in the request and not after the query."""
    slot = torch.arange(slots, device=positions.device)
    return ((slot >= overlap) & (slot < ((positions + 1) // stride)[:, None]))[:, None, None]
