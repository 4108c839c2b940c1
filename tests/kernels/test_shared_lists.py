"""The lists of blocks that tiles share and of what is left to rows hold what the rows' own lists hold."""

import pytest
import torch
from sala_kernels.sparse_attention.shared_lists import SHARERS, shared_lists

from tests.kernels.attention_checks import neighbours_lists
from tests.kernels.paging import DENSE
from tests.kernels.sparse_inputs import SMALL, Inputs
from tests.kernels.sparse_inputs import poisoned_memory as poisoned_memory

LENGTHS, NEW_TOKENS = [1, 700, 64 * 9, 130, 500], [1, 33, 8, 0, 6]
SPARSE_FROM = [0, 680, 0, 0, DENSE]  # the second one inside its rows


@pytest.mark.parametrize("tile", [1, 4, 32])
@pytest.mark.parametrize("kept", [0.0, 0.8])
def test_lists_hold_every_block_once(device, tile, kept):
    inputs = Inputs(LENGTHS, NEW_TOKENS, SMALL, (4, 2), 16, torch.bfloat16, device, SPARSE_FROM)
    ids = neighbours_lists(inputs, kept)
    lists = shared_lists(ids, inputs.batch, SMALL, tile)
    for request in range(inputs.batch.size):
        own, positions = inputs.batch.rows(request)
        for i, t in enumerate(positions.tolist()):
            i_tile = own.start // tile + (request if tile > 1 else 0) + i // tile
            for kv_head in range(2):
                listed = [block for block in ids[own.start + i, kv_head].tolist() if block >= 0]
                if t < SPARSE_FROM[request] or len(listed) > t // SMALL.block_size:
                    continue  # attends to every block up to its own
                count = int(lists.counts[i_tile, kv_head])
                blocks = lists.blocks[i_tile, kv_head, :count].tolist()
                members = [bits & 0xFFFFFFFF for bits in lists.members[i_tile, kv_head, :count].tolist()]
                assert len(set(blocks)) == count
                assert all(bits.bit_count() >= SHARERS for bits in members)
                shared = [block for block, bits in zip(blocks, members, strict=True) if bits >> (i % tile) & 1]
                rest = lists.rest[own.start + i, kv_head].tolist()
                left = [block for block in rest if block >= 0]
                assert left == sorted(left) and rest[len(left) :] == [-1] * (len(rest) - len(left))
                assert sorted(shared + left) == listed


def test_blocks_of_one_row_are_not_shared(device):
    inputs = Inputs([700], [4], SMALL, (4, 2), 16, torch.bfloat16, device)
    ids = torch.full((4, 2, SMALL.selected_blocks), -1, dtype=torch.int32)
    for row in range(4):
        ids[row, :, :3] = torch.tensor([row, 4 + row // 2, 10])  # its own, one of a pair, one of all
    lists = shared_lists(ids.to(device), inputs.batch, SMALL, 4)
    found = sorted(zip(lists.blocks[0, 1].tolist()[:3], lists.members[0, 1].tolist()[:3], strict=True))
    assert lists.counts[0].tolist() == [3, 3]
    assert found == [(4, 0b0011), (5, 0b1100), (10, 0b1111)]
    assert lists.rest[:, 0, :2].tolist() == [[0, -1], [1, -1], [2, -1], [3, -1]]


def test_pairs_are_not_shared_by_rows_with_little_in_common(device):
    inputs = Inputs([1500], [4], SMALL, (4, 2), 16, torch.bfloat16, device)
    ids = torch.full((4, 2, SMALL.selected_blocks), -1, dtype=torch.int32)
    for row in range(4):
        own = torch.arange(3) + 3 * row
        ids[row, :, :5] = torch.cat([own, torch.tensor([12 + row // 2, 23])])  # three of its own, a pair's, one of all
    lists = shared_lists(ids.to(device), inputs.batch, SMALL, 4)
    assert lists.counts[0].tolist() == [1, 1]
    assert (lists.blocks[0, 0, 0], lists.members[0, 0, 0]) == (23, 0b1111)
    assert lists.rest[:, 0, :4].tolist() == ids[:, 0, :4].tolist()
