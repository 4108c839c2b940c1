"""What counts among the blocks that two models select."""

import itertools

import torch

from sala_sglang.quantization.comparison import blocks
from sala_sglang.quantization.layerwise import LayerwiseModel
from sala_sglang.quantization.weights import CheckpointWeights


def test_forced_blocks_do_not_count(trained_checkpoint, monkeypatch):
    """Of two models that choose even and odd blocks beside the forced ones, none is the same."""
    remainders = itertools.cycle((0, 1))

    def selected(layer, hidden, positions, model):
        geometry = model.config.sparse_geometry
        block, current = torch.arange(len(hidden) // geometry.block_size), positions[:, None] // geometry.block_size
        forced = (block < geometry.init_blocks) | (block >= current - geometry.local_blocks)
        return (((block % 2 == next(remainders)) | forced) & (block <= current))[:, None]

    monkeypatch.setattr(blocks, "_selected", selected)
    model = LayerwiseModel(CheckpointWeights(trained_checkpoint), "cpu", torch.float32)
    assert blocks.agreement(model, model, [[*range(10, 1290)]]) == {0: 0.0, 4: 0.0, 8: 0.0}
