"""select_blocks: the blocks of the definition, exactly where scores are exact, within a derived band elsewhere."""

from dataclasses import replace

import pytest
import torch
from sala_kernels import row_tiles
from sala_kernels.select_blocks import lse, reference, scores, select_blocks, top_k
from sala_kernels.select_blocks import triton as selection

from tests.kernels import brute_force
from tests.kernels.paging import DENSE
from tests.kernels.sparse_inputs import (
    GEOMETRIES,
    RELEASED,
    SMALL,
    TINY,
    Inputs,
    geometries,
    gpu,
    one_request,
    real_steps,
)
from tests.kernels.sparse_inputs import poisoned_memory as poisoned_memory

pytestmark = pytest.mark.filterwarnings(
    "ignore:divide by zero encountered in log2",  # the logarithm of no slots
    "ignore:overflow encountered in exp2",  # a weight above every number
    "ignore:All-NaN slice encountered",  # behind the last block, where nothing is stored
)
every = pytest.mark.parametrize("implementation", ["reference", "triton"])
# Around the ends of windows and blocks, and around the K_SEL-th block of SMALL (384 tokens).
LENGTHS = [1, 31, 63, 64, 128, 383, 384, 385, 449, 600]


def run(inputs: Inputs, implementation: str, batch=None) -> torch.Tensor:
    batch = batch or inputs.batch
    rows = int(batch.query_start[-1])
    queries = inputs.queries[:rows]
    return select_blocks(
        queries, inputs.compressed, batch, inputs.geometry, inputs.scale, implementation=implementation
    )


def exact_scores(inputs: Inputs, request: int, rows: slice, positions: torch.Tensor):
    """Scores [rows, Hkv, NB] in float64, unrounded, and the largest error that float32 sums may make in a logit."""
    geometry = inputs.geometry
    pages = inputs.compressed[inputs.batch.pages(request, geometry.block_size)].double().nan_to_num()
    fine, coarse = pages.transpose(0, 1).split([geometry.fine_rows, geometry.coarse_rows], dim=2)
    fine, coarse = fine.flatten(1, 2), coarse.flatten(1, 2)
    queries = inputs.queries[rows].double()
    scores = reference.block_scores(queries, fine, coarse, positions, geometry, inputs.scale)
    grouped = queries.abs().unflatten(1, (fine.shape[0], -1))
    slots = torch.cat([fine, coarse], 1).abs()
    largest = inputs.scale * torch.einsum("tkgd,kcd->tkgc", grouped, slots).amax((2, 3))
    return scores, (queries.shape[-1] + 4) * torch.finfo(torch.float32).eps * largest[..., None]


def check_selection(inputs: Inputs, selected: torch.Tensor, requests=None) -> None:
    """Forced blocks, every free block clearly above the last one taken, none clearly below, in order, all counted.

    Two scores may change places if they are within the rounding of the queries' dtype and the errors of float32
    logits, of which each score has two: its own and the normaliser's.
    """
    geometry, kinds = inputs.geometry, torch.finfo(inputs.queries.dtype)
    for request in range(inputs.batch.size) if requests is None else requests:
        all_rows, all_positions = inputs.batch.rows(request)
        dense = int((all_positions < inputs.batch.sparse_from[request]).sum())
        assert (selected[all_rows][:dense] == -1).all()
        for part in torch.arange(dense, len(all_positions)).split(64) if dense < len(all_positions) else ():
            rows = slice(all_rows.start + int(part[0]), all_rows.start + int(part[-1]) + 1)
            positions = all_positions[part.to(all_positions.device)]
            scores, noise = exact_scores(inputs, request, rows, positions)
            blocks = torch.arange(scores.shape[-1], device=scores.device)
            current = (positions // geometry.block_size)[:, None, None]
            forced = (blocks < geometry.init_blocks) | (blocks >= current - geometry.local_blocks)
            causal = blocks <= current
            taken = taken_blocks(selected[rows], scores.shape[-1])

            assert not (taken & ~causal).any()
            assert (taken | ~(forced & causal)).all()
            count = taken.sum(-1)
            assert (count == (current[..., 0] + 1).clamp(max=geometry.selected_blocks)).all()
            free_count = (count - (forced & causal).sum(-1)).clamp(min=0)
            free = scores.clamp(max=kinds.max).masked_fill(forced | ~causal, -torch.inf)
            ordered = free.sort(-1, descending=True).values
            last = ordered.gather(-1, (free_count - 1).clamp(min=0)[..., None])
            band = 2 * kinds.eps + 8 * noise
            tiny = kinds.tiny * kinds.eps + torch.finfo(torch.float32).tiny
            any_free = (free_count > 0)[..., None]
            clearly_in = any_free & (free > last * (1 + band) + tiny)
            clearly_out = causal & ~forced & (~any_free | (free < last * (1 - band) - tiny))
            assert (taken | ~clearly_in).all()
            assert not (taken & clearly_out).any()


def taken_blocks(selected: torch.Tensor, blocks: int) -> torch.Tensor:
    """[rows, Hkv, blocks] bool of lists that ascend and have -1 after the last id."""
    ends = selected.where(selected >= 0, blocks)
    assert (ends.diff() > 0).logical_or(ends[..., 1:] == blocks).all()
    assert (selected >= -1).all() and (ends <= blocks).all()
    taken = torch.zeros(*selected.shape[:2], blocks + 1, dtype=torch.bool, device=selected.device)
    return taken.scatter(-1, ends.long(), True)[..., :blocks]


def ids(selected: torch.Tensor) -> list[int]:
    return [i for i in selected.tolist() if i >= 0]


@geometries
@pytest.mark.parametrize("heads", [(1, 1), (4, 2), (3, 1), (16, 2), (16, 1), (8, 4)])
def test_reference_is_the_definition(device, geometry, heads):
    lengths = [1, 130, 9 * geometry.block_size + 5, 700]
    new_tokens = [1, 3, 4 * geometry.block_size, 1]
    inputs = Inputs(lengths, new_tokens, geometry, heads, 16, torch.float64, device)
    selected = run(inputs, "reference")
    for request in range(len(lengths)):
        rows, _ = inputs.batch.rows(request)
        for kv_head in range(heads[1]):
            positions, queries, keys, _ = inputs.request(request, kv_head)
            for i in range(0, len(positions), 17):
                expected = brute_force.select(queries[i], positions[i], keys, geometry, inputs.scale)
                assert ids(selected[rows.start + i, kv_head]) == expected


@pytest.mark.parametrize(("t", "forced"), [(2047, 32), (2048, 33), (2111, 33), (2112, 34), (5000, 34), (131071, 34)])
def test_number_of_forced_blocks(t, forced):
    assert len(brute_force.forced_blocks(t, RELEASED)) == forced


@every
@pytest.mark.parametrize(("t", "causal"), [(6143, 96), (6144, 97)])
def test_first_row_that_leaves_a_block_out(device, implementation, t, causal):
    inputs = Inputs([t + 1], [1], RELEASED, (2, 1), 16, torch.float32, device)
    taken = ids(run(inputs, implementation)[0, 0])
    assert t // 64 + 1 == causal
    assert len(taken) == 96
    assert set(taken) >= {0, *range(causal - 33, causal)}


@every
def test_forced_blocks_alone(device, implementation):
    # With room for the forced blocks only, no score matters.
    geometry = replace(RELEASED, selected_blocks=34)
    inputs = Inputs([2112, 2176, 2900], [1, 1, 1], geometry, (2, 1), 16, torch.float32, device)
    expected = [[*range(33)], [*range(34)], [0, *range(13, 46)]]
    assert [ids(row) for row in run(inputs, implementation)[:, 0]] == expected


@every
def test_without_a_normaliser_the_first_blocks_win(device, implementation):
    # A K2 window is four blocks long here, and three of four blocks are taken: no K2 slot is visible, all scores are 0.
    inputs = Inputs([62], [14], GEOMETRIES["no initial block"], (2, 1), 16, torch.float32, device)
    assert run(inputs, implementation)[:, 0].tolist() == [[0, 2, 3]] * 14


@pytest.mark.parametrize(
    ("geometry", "heads", "dtype"),
    [
        ("small", (2, 1), torch.bfloat16),
        ("tiny", (3, 1), torch.float16),
        ("overlap 2", (16, 1), torch.bfloat16),
        ("no overlap", (4, 4), torch.float32),
        ("4 coarse rows", (8, 2), torch.bfloat16),
        ("no initial block", (1, 1), torch.bfloat16),
        ("no local block", (2, 1), torch.float32),
        ("nothing free", (2, 1), torch.float32),
    ],
)
def test_kernels(device, geometry, heads, dtype):
    geometry = GEOMETRIES[geometry]
    block = geometry.block_size
    lengths, new_tokens = [block * 9, 3, block * 6 + 2, block * 12 + 7, 3 * block], [3, 3, 4, 1, 0]
    sparse_from = [0, 0, block * 6, 0, DENSE]  # the third one inside its rows
    inputs = Inputs(lengths, new_tokens, geometry, heads, 32, dtype, device, sparse_from)
    check_selection(inputs, run(inputs, "triton"))


@pytest.mark.parametrize("rows", [1, 2])
def test_kernels_at_the_ends_of_windows_and_blocks(device, rows):
    sparse_from = [0, DENSE] * 3 + [0] * 4
    inputs = Inputs(LENGTHS, [1] + [rows] * 9, SMALL, (2, 1), 16, torch.bfloat16, device, sparse_from)
    check_selection(inputs, run(inputs, "triton"))


@every
def test_decode_step_is_the_last_row_of_the_prompt(device, implementation):
    inputs = Inputs([620, 500], [7, 5], SMALL, (2, 1), 16, torch.float32, device)
    last = inputs.batch.query_start[1:].long() - 1
    start = torch.arange(3, dtype=torch.int32, device=device)
    prompt = run(inputs, implementation)
    inputs.queries = inputs.queries[last]
    step = replace(inputs.batch, query_start=start, max_query_tokens=1)
    assert torch.equal(run(inputs, implementation, step), prompt[last])


@every
@pytest.mark.parametrize("new_tokens", [[1, 1, 1], [9, 1, 4]], ids=["decode", "prefill"])
def test_each_request_as_if_alone(device, implementation, new_tokens):
    inputs = Inputs([700, 450, 560], new_tokens, SMALL, (2, 1), 16, torch.bfloat16, device, [694, 0, 0])
    together, queries = run(inputs, implementation), inputs.queries
    # Bounds need not be tight.
    assert torch.equal(run(inputs, implementation, replace(inputs.batch, max_kv_tokens=4000)), together)
    for request in (0, 2):
        rows, alone = one_request(inputs.batch, request)
        inputs.queries = queries[rows]
        assert torch.equal(run(inputs, implementation, alone), together[rows])


def test_decode_step_of_many_rows(device, monkeypatch):
    monkeypatch.setattr(row_tiles, "FEW_ROWS", 1)
    inputs = Inputs([1900, 450, 1], [1, 1, 1], SMALL, (4, 2), 16, torch.bfloat16, device)
    check_selection(inputs, run(inputs, "triton"))


@pytest.mark.parametrize("new_tokens", [5, 1])
def test_loops_that_take_many_steps(device, monkeypatch, new_tokens):
    # At their real sizes the loops take one step over contexts as short as these.
    monkeypatch.setattr(selection, "SCORE_BYTES", 8 * 32 * 4)  # scratch for four rows
    monkeypatch.setattr(lse, "TILE_SLOTS", 16)
    monkeypatch.setattr(lse, "FEW_ROWS_SPLITS", 2)
    monkeypatch.setattr(scores, "TILE_SLOTS", 16)
    monkeypatch.setattr(scores, "PROGRAMS", 2)
    monkeypatch.setattr(top_k, "SHORT_BLOCKS", 8)
    monkeypatch.setattr(top_k, "PIECE_BLOCKS", 8)
    geometry = replace(TINY, selected_blocks=18)
    inputs = Inputs([510, 400], [new_tokens, 1], geometry, (2, 1), 16, torch.float32, device)
    check_selection(inputs, run(inputs, "triton"))


@every
@pytest.mark.parametrize(
    ("geometry", "length", "loud"),
    [(SMALL, 769, slice(704, 768)), (GEOMETRIES["no local block"], 150, slice(144, 148))],
    ids=["K2", "K1"],
)
def test_slots_that_a_later_row_of_the_tile_completes(device, implementation, geometry, length, loud):
    # The last loud token ends a slot that the rows before it must not see.
    inputs = Inputs([length], [6], geometry, (8, 4), 16, torch.float32, device)
    inputs.keys[inputs.batch.slots(0)[loud]] *= 8
    inputs.compress()
    check_selection(inputs, run(inputs, implementation))


@every
def test_equal_scores_go_to_the_lowest_blocks(device, implementation):
    geometry = replace(SMALL, selected_blocks=8)  # four free ones

    def same(keys):
        keys.copy_(keys.nan_to_num(1.0).sign().abs().where(~keys.isnan(), keys))

    inputs = Inputs([1000], [2], geometry, (4, 2), 16, torch.bfloat16, device, edit=same)
    assert run(inputs, implementation).tolist() == [[[0, 1, 2, 3, 4, 13, 14, 15]] * 2] * 2


@every
def test_scores_above_the_threshold_come_before_equal_ones(device, implementation):
    geometry = replace(SMALL, selected_blocks=8)
    inputs = Inputs([1000], [2], geometry, (2, 1), 16, torch.bfloat16, device)
    blocks = torch.arange(1000, device=device) // 64
    # Blocks 7 and 11 attract the queries. A window in each neighbour, 6, 8, 10 and 12, is half inside: equal scores.
    inputs.keys[inputs.batch.slots(0)] = ((blocks == 7) | (blocks == 11)).to(torch.bfloat16)[:, None, None]
    inputs.compress()
    inputs.queries.fill_(1.0)
    assert ids(run(inputs, implementation)[0, 0]) == [0, 6, 7, 8, 11, 13, 14, 15]


@pytest.mark.parametrize("equal", [False, True])
def test_pieces_of_a_row_take_what_the_whole_row_does(device, monkeypatch, equal):
    geometry = replace(SMALL, selected_blocks=10)  # six free ones
    inputs = Inputs([1900, 450, 1000], [1, 1, 1], geometry, (4, 2), 16, torch.bfloat16, device)
    if equal:
        inputs.keys.copy_(torch.ones_like(inputs.keys).where(~inputs.keys.isnan(), inputs.keys))
        inputs.compress()
    whole = run(inputs, "triton")
    for piece in (4, 16):
        monkeypatch.setattr(top_k, "PIECE_BLOCKS", piece)
        assert torch.equal(run(inputs, "triton"), whole), piece


@pytest.mark.parametrize("factor", [100.0, 1e4])
@every
def test_one_huge_key(device, implementation, factor):
    def huge(keys):
        keys[(~keys.isnan()).flatten(1).all(1).nonzero()[200]] *= factor

    inputs = Inputs([700], [3], SMALL, (4, 1), 16, torch.bfloat16, device, edit=huge)
    check_selection(inputs, run(inputs, implementation))


@gpu
@real_steps
def test_real_sizes(device, lengths, new_tokens):
    inputs = Inputs(lengths, new_tokens, RELEASED, (32, 2), 128, torch.bfloat16, device)
    check_selection(inputs, run(inputs, "triton"))


def test_forced_blocks_come_before_infinite_scores():
    scores = torch.full((1, 1, 20), torch.inf)
    position = torch.tensor([20 * SMALL.block_size - 1])
    chosen = reference.top_blocks(scores, position, SMALL)[0, 0].tolist()
    forced = set(range(SMALL.init_blocks)) | set(range(19 - SMALL.local_blocks, 20))
    assert forced <= set(chosen) and len(chosen) == SMALL.selected_blocks
