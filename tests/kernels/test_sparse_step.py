"""The three sparse operators in a row, as a layer calls them."""

from dataclasses import replace

import pytest
import torch
from sala_kernels.compress_keys import compress_keys
from sala_kernels.layout import PagedBatch
from sala_kernels.select_blocks import select_blocks
from sala_kernels.sparse_attention import sparse_attention

from tests.kernels.sparse_inputs import RELEASED, SMALL, TINY, Inputs, both, gpu
from tests.kernels.sparse_inputs import poisoned_memory as poisoned_memory

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero encountered in log2")  # the logarithm of no slots


def step(inputs: Inputs, batch: PagedBatch, implementation: str = "triton") -> torch.Tensor:
    rest = batch, inputs.geometry, inputs.scale
    compress_keys(inputs.keys, inputs.compressed, batch, inputs.geometry, implementation=implementation)
    block_ids = select_blocks(inputs.queries, inputs.compressed, *rest, implementation=implementation)
    tensors = inputs.queries, inputs.keys, inputs.values, block_ids
    return sparse_attention(*tensors, *rest, implementation=implementation)


@both
@pytest.mark.parametrize("sparse_from", [0, 98])
def test_chunks_give_what_the_whole_prompt_gives(device, implementation, sparse_from):
    inputs = Inputs([112], [112], TINY, (2, 1), 16, torch.float32, device, [sparse_from])
    inputs.compressed.fill_(torch.nan)
    whole, queries = step(inputs, inputs.batch, "reference"), inputs.queries
    inputs.compressed.fill_(torch.nan)
    outputs = []
    for begin, end in ((0, 1), (1, 95), (95, 100), (100, 112)):
        start = torch.tensor([0, end - begin], dtype=torch.int32, device=device)
        kv_lens = torch.tensor([end], dtype=torch.int32, device=device)
        inputs.queries = queries[begin:end]
        chunk = replace(inputs.batch, query_start=start, kv_lens=kv_lens, max_query_tokens=end - begin)
        outputs.append(step(inputs, chunk, implementation))
    torch.testing.assert_close(torch.cat(outputs), whole, rtol=1e-5, atol=1e-6)


def test_rows_of_nobody(device):
    # A padded step has more rows than its requests own.
    inputs = Inputs([450, 30], [3, 2], SMALL, (2, 1), 16, torch.float32, device)
    expected = step(inputs, inputs.batch)
    padding = torch.full((4, 2, 16), torch.nan, device=device)
    inputs.queries = torch.cat([inputs.queries, padding])
    assert torch.equal(step(inputs, inputs.batch)[:5], expected)


@gpu
def test_prefill_never_waits_for_the_device(device):
    inputs = Inputs([12000, 9000, 70], [300, 1, 70], RELEASED, (32, 2), 128, torch.bfloat16, device)
    step(inputs, inputs.batch)  # compiling waits
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(inputs, inputs.batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
@pytest.mark.parametrize("requests", [1, 6])
def test_graph_replay_is_the_eager_step(device, requests):
    lengths = [30000, 8400, 200, 6300, 131072, 2000][-requests:]
    inputs = Inputs(lengths, [1] * requests, RELEASED, (32, 2), 128, torch.bfloat16, device)
    # A graph is captured for any length: the bound is the width of the table.
    batch = replace(inputs.batch, max_kv_tokens=inputs.batch.token_slots.shape[1])
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step(inputs, batch)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        output = step(inputs, batch)

    full, rows, compressed = batch.kv_lens.clone(), batch.request_rows.clone(), inputs.compressed.clone()
    for shorter in (0, 1, 15, 64, 150):
        order = torch.randperm(requests, device=device)
        batch.request_rows.copy_(rows[order])
        batch.kv_lens.copy_((full - shorter).clamp(min=1)[order])
        batch.sparse_from.fill_(RELEASED.dense_len - 1)
        inputs.queries.normal_()
        inputs.compressed.copy_(compressed)
        output.fill_(torch.nan)
        graph.replay()
        replayed, replayed_compressed = output.clone(), inputs.compressed.clone()
        inputs.compressed.copy_(compressed)
        tight = replace(batch, max_kv_tokens=int(batch.kv_lens.max()))
        assert torch.equal(step(inputs, tight), replayed)
        assert torch.equal(inputs.compressed.nan_to_num(7.0), replayed_compressed.nan_to_num(7.0))
        assert replayed.isfinite().all()
