"""How many blocks of keys two checkpoints select alike, by the plain model on both."""

from dataclasses import dataclass

import torch
from sala_kernels.layout import COARSE_FACTOR

from sala_sglang.config import SPARSE
from sala_sglang.hf.layers import MiniCPMSALADecoderLayer
from sala_sglang.hf.sparse import compress, select_blocks
from sala_sglang.quantization.layerwise import LayerwiseModel

EVERY = 16  # so many tokens one is looked at


@dataclass(frozen=True)
class Run:
    """hidden: of each text behind the last layer, by the first and by the second model. shares: see ``agreement``."""

    hidden: tuple[list[torch.Tensor], list[torch.Tensor]]
    shares: dict[int, float]


def agreement(first: LayerwiseModel, second: LayerwiseModel, texts: list[list[int]]) -> dict[int, float]:
    """Share of the first model's blocks that the second selects too, by sparse layer.

    Only blocks that a query chooses count, and only queries with more blocks before them than are selected. texts:
    token ids; those shorter than ``dense_len`` are left out. Raises ValueError where none is left, or the
    configurations select otherwise.
    """
    geometry = first.config.sparse_geometry
    long = [text for text in texts if _selects(len(text), first)]
    if not long:
        raise ValueError(f"--lengths: no text has dense_len = {geometry.dense_len} tokens; allowed: longer ones")
    return run_both(first, second, long).shares


def run_both(first: LayerwiseModel, second: LayerwiseModel, texts: list[list[int]]) -> Run:
    """Two models layer by layer over texts of token ids; what they select is compared in those that are long enough.

    Raises ValueError where their configurations select otherwise.
    """
    kinds = first.config.layer_kinds
    if first.config.sparse_geometry != second.config.sparse_geometry or kinds != second.config.layer_kinds:
        raise ValueError("--model: the two select blocks by other rules; allowed: checkpoints of one model")
    shares: dict[int, float] = {}
    hidden = first.embed(texts), second.embed(texts)
    for index, kind in enumerate(kinds):
        layers = first.layer(index), second.layer(index)
        pairs = [pair for pair in zip(*hidden, strict=True) if _selects(len(pair[0]), first)]
        if kind == SPARSE and pairs:
            counts = torch.stack([_alike(layers, pair, first) for pair in pairs]).sum(0)
            shares[index] = (counts[0] / counts[1]).item()
        hidden = [first.run(layers[0], one) for one in hidden[0]], [second.run(layers[1], one) for one in hidden[1]]
    return Run(hidden, shares)


def _selects(tokens: int, model: LayerwiseModel) -> bool:
    geometry = model.config.sparse_geometry
    return tokens >= max(geometry.dense_len, geometry.block_size)


@torch.no_grad()
def _alike(
    layers: tuple[MiniCPMSALADecoderLayer, ...], states: tuple[torch.Tensor, ...], model: LayerwiseModel
) -> torch.Tensor:
    """[2] int64: the blocks that both select, and those of the first."""
    geometry = model.config.sparse_geometry
    tokens = len(states[0])
    positions = torch.arange(EVERY - 1, tokens, EVERY, device=model.device)
    chosen = [
        _selected(layer, hidden.to(model.device), positions, model)
        for layer, hidden in zip(layers, states, strict=True)
    ]
    blocks = torch.arange(chosen[0].shape[-1], device=model.device)
    current = (positions // geometry.block_size)[:, None]
    free = (blocks >= geometry.init_blocks) & (blocks < current - geometry.local_blocks)
    counted = (free & (current >= geometry.selected_blocks))[:, None]
    return torch.stack([(chosen[0] & chosen[1] & counted).sum(), (chosen[0] & counted).sum()]).cpu()


def _selected(
    layer: MiniCPMSALADecoderLayer, hidden: torch.Tensor, positions: torch.Tensor, model: LayerwiseModel
) -> torch.Tensor:
    """Blocks of the queries at ``positions``: [n, Hkv, blocks] bool."""
    geometry, attention = model.config.sparse_geometry, layer.self_attn
    normed = layer.input_layernorm(hidden)
    projections = attention.q_proj, attention.k_proj
    queries, keys = (projection(normed).unflatten(-1, (-1, attention.head_dim)) for projection in projections)
    fine, coarse = (
        compress(keys, factor * geometry.kernel_size, factor * geometry.kernel_stride) for factor in (1, COARSE_FACTOR)
    )
    return select_blocks(queries[positions], fine, coarse, positions, len(hidden), geometry)
