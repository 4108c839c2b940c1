"""Definitions of InfLLM-V2 attention for one query at a time, from windows of tokens; everything in float64.

Keys and values are those of one request and one KV head, [L, D]; queries those of the group at position t, [G, D].
A window is visible to the query iff all its tokens are, so the functions look at keys[: t + 1] and nothing else.
"""

import torch
from sala_kernels.layout import SparseGeometry


def windows(keys: torch.Tensor, size: int, stride: int) -> list[tuple[int, torch.Tensor]]:
    """First token and mean of every whole window."""
    starts = [start for start in range(0, len(keys), stride) if start + size <= len(keys)]
    return [(start, keys[start : start + size].mean(0)) for start in starts]


def block_scores(queries: torch.Tensor, t: int, keys: torch.Tensor, geometry: SparseGeometry, scale: float):
    """Scores of the blocks up to the query's own, [t // block_size + 1]; 0 where nothing can be scored."""
    size, stride, block = geometry.kernel_size, geometry.kernel_stride, geometry.block_size
    scores = torch.zeros(t // block + 1, dtype=torch.float64)
    coarse = windows(keys[: t + 1], 4 * size, 4 * stride)
    if coarse:
        normaliser = torch.stack([scale * (queries @ mean) for _, mean in coarse]).logsumexp(0)
        for start, mean in windows(keys[: t + 1], size, stride):
            weight = (scale * (queries @ mean) - normaliser).exp().sum()
            for b in range(len(scores)):
                if start < (b + 1) * block and start + size > b * block:
                    scores[b] = torch.maximum(scores[b], weight)
    return scores


def forced_blocks(t: int, geometry: SparseGeometry) -> set[int]:
    """Blocks that the query takes whatever their scores."""
    current = t // geometry.block_size
    return {b for b in range(current + 1) if b < geometry.init_blocks or b >= current - geometry.local_blocks}


def select(queries: torch.Tensor, t: int, keys: torch.Tensor, geometry: SparseGeometry, scale: float) -> list[int]:
    """Ids of the selected blocks, ascending."""
    scores = block_scores(queries, t, keys, geometry, scale).tolist()
    forced = forced_blocks(t, geometry)
    free = sorted(set(range(len(scores))) - forced, key=lambda b: (-scores[b], b))
    return sorted(forced | set(free[: geometry.selected_blocks - len(forced)]))


def attend(
    queries: torch.Tensor, t: int, keys: torch.Tensor, values: torch.Tensor, blocks: list[int], block: int, scale: float
) -> torch.Tensor:
    """Softmax attention over the tokens of ``blocks`` up to t, [G, D]."""
    token = torch.tensor([i for b in blocks for i in range(b * block, (b + 1) * block) if i <= t])
    weights = (scale * (queries @ keys[token].T)).softmax(-1)
    return weights @ values[token]
