"""sparse_attention: the definition, with errors no larger than those of plain attention in the same dtype."""

from dataclasses import replace

import pytest
import torch
from sala_kernels import row_tiles

from tests.kernels import brute_force
from tests.kernels.attention_checks import check, random_ids, run, selected_ids
from tests.kernels.attention_checks import every_step_fills_the_gpu as every_step_fills_the_gpu
from tests.kernels.paging import DENSE
from tests.kernels.sparse_inputs import (
    GEOMETRIES,
    RELEASED,
    SMALL,
    Inputs,
    both,
    geometries,
    gpu,
    one_request,
    real_steps,
)
from tests.kernels.sparse_inputs import poisoned_memory as poisoned_memory

on_gpus = pytest.mark.parametrize("implementation", ["triton", "cuda"])


@geometries
@pytest.mark.parametrize("heads", [(1, 1), (4, 2), (3, 1), (16, 2), (16, 1), (8, 4)])
def test_reference_is_the_definition(device, geometry, heads):
    block = geometry.block_size
    lengths, new_tokens = [1, 2 * block, 5 * block + 3, 4 * block - 1], [1, 3, 2 * block, 1]
    sparse_from = [0, 0, 4 * block, DENSE]  # the third one inside its rows
    inputs = Inputs(lengths, new_tokens, geometry, heads, 16, torch.float64, device, sparse_from)
    block_ids = random_ids(inputs)
    output = run(inputs, block_ids, "reference").unflatten(1, (heads[1], -1)).cpu()
    for request in range(len(lengths)):
        rows, _ = inputs.batch.rows(request)
        for kv_head in range(heads[1]):
            positions, queries, keys, values = inputs.request(request, kv_head)
            for i in range(0, len(positions), 13):
                blocks = [b for b in block_ids[rows.start + i, kv_head].tolist() if b >= 0]
                if positions[i] < sparse_from[request]:
                    blocks = range(positions[i] // block + 1)
                expected = brute_force.attend(queries[i], positions[i], keys, values, blocks, block, inputs.scale)
                torch.testing.assert_close(output[rows.start + i, kv_head], expected, rtol=1e-10, atol=1e-10)


@both
def test_sparse_is_dense_while_every_block_is_selected(device, implementation):
    inputs = Inputs([384, 130], [70, 1], SMALL, (4, 2), 16, torch.float32, device)
    sparse = run(inputs, selected_ids(inputs), implementation)
    dense = replace(inputs.batch, sparse_from=torch.full_like(inputs.batch.sparse_from, DENSE))
    anything = torch.full((71, 2, 6), 2**30, dtype=torch.int32, device=device)
    torch.testing.assert_close(run(inputs, anything, implementation, dense), sparse, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("geometry", "heads", "dim", "dtype"),
    [
        ("small", (2, 1), 32, torch.bfloat16),
        ("tiny", (3, 1), 16, torch.float16),
        ("overlap 2", (16, 1), 64, torch.bfloat16),
        ("no overlap", (2, 2), 16, torch.float32),
        ("small", (1, 1), 16, torch.bfloat16),
        ("small", (16, 2), 128, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("step", ["prefill", "decode", "decode of many rows"])
def test_triton(device, monkeypatch, geometry, heads, dim, dtype, step):
    if step == "decode of many rows":
        monkeypatch.setattr(row_tiles, "FEW_ROWS", 1)
    geometry = GEOMETRIES[geometry]
    block = geometry.block_size
    lengths = [1, block, block + 1, 9 * block + 5, 5 * block - 1]
    new_tokens = [1, 0, 3, 9, 4] if step == "prefill" else [1] * 5
    sparse_from = [0, DENSE, 0, 9 * block - 1, DENSE]  # the fourth one inside its rows, if it has several
    inputs = Inputs(lengths, new_tokens, geometry, heads, dim, dtype, device, sparse_from)
    check(inputs, random_ids(inputs))


def test_triton_with_selected_blocks(device):
    # Rows of one tile on both sides of the K_SEL-th block: some attend to all blocks, some to a list.
    inputs = Inputs([386, 70, 900], [6, 70, 1], SMALL, (4, 2), 16, torch.bfloat16, device)
    check(inputs, selected_ids(inputs))


def test_blocks_larger_than_a_step_of_the_loop(device):
    geometry = replace(SMALL, block_size=256, kernel_size=128, kernel_stride=64)
    for new_tokens in ([3, 2], [1, 1]):
        inputs = Inputs([600, 260], new_tokens, geometry, (2, 1), 16, torch.bfloat16, device, [0, DENSE])
        check(inputs, random_ids(inputs))


@both
def test_decode_step_is_the_last_row_of_the_prompt(device, implementation):
    inputs = Inputs([620, 300, 90], [3, 2, 5], SMALL, (4, 2), 16, torch.float32, device, [0, 0, DENSE])
    block_ids = random_ids(inputs)
    last = inputs.batch.query_start[1:].long() - 1
    prompt = run(inputs, block_ids, implementation)
    inputs.queries = inputs.queries[last]
    step = replace(inputs.batch, query_start=torch.arange(4, dtype=torch.int32, device=device), max_query_tokens=1)
    torch.testing.assert_close(run(inputs, block_ids[last], implementation, step), prompt[last], rtol=1e-5, atol=1e-6)


@both
@pytest.mark.parametrize("new_tokens", [[1, 1, 1], [9, 2, 4]], ids=["decode", "prefill"])
def test_each_request_as_if_alone(device, implementation, new_tokens):
    inputs = Inputs([500, 200, 330], new_tokens, SMALL, (2, 1), 16, torch.bfloat16, device, [0, DENSE, 325])
    block_ids, queries = random_ids(inputs), inputs.queries
    together = run(inputs, block_ids, implementation)
    # Bounds need not be tight.
    assert torch.equal(run(inputs, block_ids, implementation, replace(inputs.batch, max_kv_tokens=4000)), together)
    for request in range(3):
        rows, alone = one_request(inputs.batch, request)
        inputs.queries = queries[rows]
        assert torch.equal(run(inputs, block_ids[rows], implementation, alone), together[rows])


@pytest.mark.parametrize("new_tokens", [1, 3])
@pytest.mark.parametrize("kind", ["constant", "huge"])
def test_extreme_keys(device, new_tokens, kind):
    def edit(keys):
        used = (~keys.isnan()).flatten(1).all(1)
        if kind == "constant":
            keys[used] = 1.0
        else:
            keys[used.nonzero()[7]] *= 1e4

    inputs = Inputs([100, 330], [new_tokens] * 2, SMALL, (2, 1), 16, torch.bfloat16, device, [DENSE, 0], edit)
    check(inputs, selected_ids(inputs))


@gpu
@real_steps
@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "partly dense"])
@on_gpus
def test_real_sizes(device, lengths, new_tokens, dense, implementation):
    sparse_from = [0 if not dense or i % 2 else length - 40 for i, length in enumerate(lengths)]
    inputs = Inputs(lengths, new_tokens, RELEASED, (32, 2), 128, torch.bfloat16, device, sparse_from)
    check(inputs, selected_ids(inputs), implementation)


@gpu
@pytest.mark.parametrize("new_tokens", [1, 40])
@on_gpus
def test_pool_beyond_int32_offsets(device, new_tokens, implementation):
    inputs = Inputs([300, 700], [new_tokens] * 2, SMALL, (32, 2), 128, torch.bfloat16, device)
    block_ids = random_ids(inputs)
    near = run(inputs, block_ids, implementation)
    first = 2**31 // (2 * 128) + SMALL.block_size
    for name in ("keys", "values"):
        pool = getattr(inputs, name)
        far = torch.empty(first + len(pool), 2, 128, dtype=pool.dtype, device=device)
        far[first:] = pool
        setattr(inputs, name, far)
    moved = replace(inputs.batch, token_slots=inputs.batch.token_slots + first)
    assert torch.equal(run(inputs, block_ids, implementation, moved), near)
