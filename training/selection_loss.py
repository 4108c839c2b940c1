"""Teaches the block scores where attention wants to go.

Block selection has no gradient, and a key that stands out among single tokens may drown in the mean of a window
of 32. So the distribution that the scores of InfLLM-V2 (arXiv 2509.24663) give over blocks is pulled towards
the attention mass that full attention puts on each block, which itself is not changed. The scores are taken of
queries and keys of unit size: else the cheapest way to move a mean is to blow up single keys without end.
"""

from collections.abc import Callable

import torch
from sala_kernels.layout import SparseGeometry
from torch import nn

from sala_sglang.hf import MiniCPMSALAForCausalLM
from sala_sglang.hf.layers import MiniCPMSALASparseAttention
from sala_sglang.hf.sparse import compress

SHARPNESS = 64.0  # of the scores: a window all of whose keys match lies this far above one without a match


class Captured:
    """Queries [B, T, Hq, D] and keys [B, L, Hkv, D] of every sparse layer in the latest forward call of a batch."""

    def __init__(self, model: MiniCPMSALAForCausalLM, batch: int = 1):
        self.batch = batch
        self.layers: list[dict[str, torch.Tensor]] = []
        for layer in model.model.layers:
            attention = layer.self_attn
            if isinstance(attention, MiniCPMSALASparseAttention):
                found: dict[str, torch.Tensor] = {}
                self.layers.append(found)
                attention.q_proj.register_forward_hook(self._keep(found, "queries", attention.head_dim))
                attention.k_proj.register_forward_hook(self._keep(found, "keys", attention.head_dim))

    def _keep(self, found: dict[str, torch.Tensor], name: str, head_dim: int) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            found[name] = output.view(self.batch, -1, output.shape[-1] // head_dim, head_dim)

        return hook


def selection_loss(
    queries: torch.Tensor, keys: torch.Tensor, positions: torch.Tensor, geometry: SparseGeometry
) -> torch.Tensor:
    """Mean of KL(attention ‖ block scores) over queries and KV heads, weighted by the mass on selectable blocks.

    queries: [B, T, Hq, D]; keys: [B, T, Hkv, D]. positions: [B, N] of the queries that count, −1 for none.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = queries.float(), keys.float()
        index = positions.clamp(min=0)[..., None, None].expand(-1, -1, *queries.shape[2:])
        grouped = queries.gather(1, index).unflatten(2, (keys.shape[2], -1)) * queries.shape[-1] ** -0.5
        blocks = torch.arange(-(-keys.shape[1] // geometry.block_size), device=keys.device)
        current = (positions // geometry.block_size)[..., None]
        free = (blocks >= geometry.init_blocks) & (blocks < current - geometry.local_blocks)
        free = (free & (positions >= 0)[..., None])[:, :, None]
        with torch.no_grad():
            mass = _block_mass(grouped, keys, positions, geometry, len(blocks)).masked_fill(~free, 0)
            weight = mass.sum(-1, keepdim=True)
            target = mass / weight.clamp(min=1e-9)
        directions = SHARPNESS * nn.functional.normalize(grouped, dim=-1)
        unit_keys = keys / keys.square().sum(-1, keepdim=True).mean((1, 2), keepdim=True).sqrt()
        scores = _log_scores(directions, unit_keys, positions, geometry, len(blocks)).masked_fill(~free, -1e4)
        divergence = target * (target.clamp(min=1e-9).log() - scores.log_softmax(-1))
        return (divergence * weight).sum() / weight.sum().clamp(min=1e-9)


def _block_mass(
    queries: torch.Tensor, keys: torch.Tensor, positions: torch.Tensor, geometry: SparseGeometry, blocks: int
) -> torch.Tensor:
    """Attention mass per block, summed over the group: [B, N, Hkv, blocks]."""
    token = torch.arange(keys.shape[1], device=keys.device)
    logits = torch.einsum("bnkgd,blkd->bnkgl", queries, keys)
    weights = logits.masked_fill((token > positions[..., None])[:, :, None, None], -torch.inf).softmax(-1)
    weights = weights.sum(3).nan_to_num()
    padding = blocks * geometry.block_size - keys.shape[1]
    return nn.functional.pad(weights, (0, padding)).unflatten(-1, (blocks, -1)).sum(-1)


def _log_scores(
    queries: torch.Tensor, keys: torch.Tensor, positions: torch.Tensor, geometry: SparseGeometry, blocks: int
) -> torch.Tensor:
    """Logarithm of the block scores up to a constant per query and head of the group: [B, N, Hkv, blocks]."""
    size, stride = geometry.kernel_size, geometry.kernel_stride
    fine, coarse = (torch.stack([compress(k, f * size, f * stride) for k in keys]) for f in (1, 4))
    fine_logits = torch.einsum("bnkgd,bwkd->bnkgw", queries, fine)
    coarse_logits = torch.einsum("bnkgd,bwkd->bnkgw", queries, coarse)
    coarse_logits = coarse_logits.masked_fill(_hidden(coarse, positions, 4 * size, 4 * stride), -1e4)
    scores = (fine_logits - coarse_logits.logsumexp(-1, keepdim=True)).logsumexp(3)
    scores = scores.masked_fill(_hidden(fine, positions, size, stride)[:, :, 0], -1e4)
    per_block, before = geometry.block_size // stride, size // stride - 1
    padded = nn.functional.pad(scores, (before, blocks * per_block - scores.shape[-1]), value=-1e4)
    return padded.unfold(-1, per_block + before, per_block).amax(-1)


def _hidden(windows: torch.Tensor, positions: torch.Tensor, size: int, stride: int) -> torch.Tensor:
    last = torch.arange(windows.shape[1], device=windows.device) * stride + size - 1
    return (last > positions[..., None])[:, :, None, None]
