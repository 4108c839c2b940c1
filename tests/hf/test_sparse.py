"""Sparse attention of the plain model against the definition in loops."""

import numpy as np
import pytest
import torch

from sala_sglang.config import SALAConfig
from sala_sglang.hf import sparse
from sala_sglang.hf.sparse import compress, select_blocks, sparse_attention
from tests.hf import by_hand

SIZES = {
    "kernel_size": 32,
    "kernel_stride": 16,
    "init_blocks": 1,
    "block_size": 64,
    "window_size": 128,
    "topk": 4,
    "dense_len": 0,
}
GEOMETRY = SALAConfig(sparse_config=SIZES).sparse_geometry


def test_selection_is_the_definition_and_matters():
    torch.manual_seed(1)
    q, k, v = torch.randn(1500, 8, 16).double(), torch.randn(1500, 2, 16).double(), torch.randn(1500, 2, 16).double()
    output = sparse_attention(q, k, v, GEOMETRY)
    fine, coarse = compress(k, 32, 16), compress(k, 128, 64)
    free_picks = set()
    for t in (0, 31, 126, 127, 383, 384, 700, 1023, 1024, 1499):
        chosen = select_blocks(q[t : t + 1], fine, coarse, torch.tensor([t]), 1500, GEOMETRY)
        for g in range(2):
            group = q[t, 4 * g : 4 * g + 4].numpy()
            blocks = by_hand.select(group, t, k[:, g].numpy(), SIZES, 1500)
            assert chosen[0, g].nonzero().flatten().tolist() == blocks, (t, g)
            expected = by_hand.attend(group, t, k[:, g].numpy(), v[:, g].numpy(), blocks, 64)
            np.testing.assert_allclose(output[t, 4 * g : 4 * g + 4].numpy(), expected, rtol=1e-10, atol=1e-12)
            free_picks |= {b for b in blocks if 0 < b < t // 64 - 2}
    assert len(free_picks) > 4


def test_windows_are_seen_from_their_last_token_on():
    torch.manual_seed(2)
    q, k = torch.randn(300, 8, 16).double(), torch.randn(300, 2, 16).double()
    fine, coarse = compress(k, 32, 16), compress(k, 128, 64)
    at = torch.tensor([30, 31, 126, 127, 128, 142, 143, 190, 191, 299])
    weights = sparse._window_weights(q[at], fine, coarse, at, GEOMETRY)
    for row, t in enumerate(at.tolist()):
        for g in range(2):
            group = q[t, 4 * g : 4 * g + 4].numpy()
            seen = list(by_hand.window_weights(group, t, k[:, g].numpy(), SIZES).values())
            expected = seen + [0.0] * (len(fine) - len(seen))
            np.testing.assert_allclose(weights[row, g].numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("length", "fine", "coarse"), [(31, 0, 0), (32, 1, 0), (127, 6, 0), (128, 7, 1), (8192, 511, 127)]
)
def test_number_of_compressed_keys(length, fine, coarse):
    keys = torch.randn(length, 1, 16)
    assert len(compress(keys, 32, 16)) == fine
    assert len(compress(keys, 128, 64)) == coarse
