"""Rows that share the loads of their blocks: the kernel compiles anywhere, and on a GPU every row is as if alone."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from sala_kernels import contract, nvrtc, targets
from sala_kernels.nvrtc import compile_source
from sala_kernels.sparse_attention import (
    CUDA_GROUPS,
    Arguments,
    cuda,
    is_compiled_for,
    serving_implementation,
    shared_blocks,
)
from sala_kernels.sparse_attention.shared_blocks import (
    SOURCE,
    architecture,
    attend_shared_blocks,
    definitions,
    fills_gpu,
    launches,
)
from sala_kernels.targets import HOPPER

from sala_sglang.attention.warm_up import LONG_ROWS
from tests.kernels.attention_checks import check, exactly, neighbours_lists, random_ids, row_errors, run, selected_ids
from tests.kernels.attention_checks import every_step_fills_the_gpu as every_step_fills_the_gpu
from tests.kernels.paging import DENSE
from tests.kernels.sparse_inputs import RELEASED, SMALL, Inputs, gpu, one_request
from tests.kernels.sparse_inputs import poisoned_memory as poisoned_memory

HEADS = [(32, 2), (16, 1), (16, 2), (8, 1), (4, 1)]
every_group = pytest.mark.parametrize("heads", HEADS, ids=str)
LENGTHS, NEW_TOKENS = [1, 64, 65, 9 * 64 + 5, 5 * 64 - 1, 900], [1, 0, 3, 9, 4, 300]
SPARSE_FROM = [0, DENSE, 0, 9 * 64 - 1, DENSE, 630]  # some inside their rows
H100 = SimpleNamespace(multi_processor_count=132, L2_cache_size=50 * 2**20)


def ragged(device: str, heads: tuple[int, int]) -> Inputs:
    return Inputs(LENGTHS, NEW_TOKENS, SMALL, heads, 128, torch.bfloat16, device, SPARSE_FROM)


@pytest.mark.parametrize("group", CUDA_GROUPS)
def test_compiles_without_a_gpu(group):
    assert compile_source(SOURCE, definitions(group, HOPPER), architecture(HOPPER)).startswith(b"\x7fELF")


@pytest.mark.parametrize("capability", sorted(targets.PATHS[targets.SHARED_BLOCKS].possible), ids=str)
def test_compiles_for_every_gpu_that_can_be_forced(capability):
    defined = definitions(16, capability)
    assert defined["SHARED_BYTES"] <= targets.LIMITS[capability].program_shared_bytes
    assert defined["STAGES"] == (3 if capability == (12, 0) else 6)
    assert compile_source(SOURCE, defined, architecture(capability)).startswith(b"\x7fELF")


def test_gpus_before_hopper_are_refused():
    with pytest.raises(ValueError, match=r"\(8, 9\): shared_blocks\.cu needs \(9, 0\) or later"):
        definitions(16, (8, 9))


def test_a_program_has_no_more_registers_than_its_launch():
    with pytest.raises(RuntimeError, match="registers are given to four warps at a time"):
        compile_source(SOURCE, definitions(16, HOPPER) | {"WARPS": 7}, architecture(HOPPER))
    with pytest.raises(RuntimeError, match="a program has the registers of its launch"):
        compile_source(SOURCE, definitions(16, HOPPER) | {"WARPS": 12}, architecture(HOPPER))


def test_errors_of_the_compiler_are_shown(tmp_path):
    source = tmp_path / "wrong.cu"
    source.write_text("__global__ void kernel() { nothing(); }")
    with pytest.raises(RuntimeError, match=r"(?s)wrong\.cu does not compile for sm_90a:.*\"nothing\" is undefined"):
        compile_source(source, {}, "sm_90a")


@pytest.mark.parametrize("error", [RuntimeError("no libnvrtc"), ImportError("no libnvrtc")], ids=type)
def test_without_a_compiler_triton_serves(monkeypatch, caplog, error):
    def missing():
        raise error

    hopper = torch.device("cuda"), torch.bfloat16, 128
    monkeypatch.setattr(targets, "capability", lambda device: HOPPER)
    monkeypatch.setattr(contract, "has_cuda_compiler", cache(contract.has_cuda_compiler.__wrapped__))
    assert serving_implementation(*hopper, 16, 64) == "cuda"
    assert serving_implementation(*hopper, 4, 64) == "cuda" and serving_implementation(*hopper, 2, 64) == "triton"
    monkeypatch.setattr(contract, "has_cuda_compiler", cache(contract.has_cuda_compiler.__wrapped__))
    monkeypatch.setattr(nvrtc.nvrtc, "nvrtcVersion", missing)
    for _ in range(2):
        assert serving_implementation(*hopper, 16, 64) == "triton"
    assert caplog.text.count("NVRTC cannot be loaded: no libnvrtc") == 1


def test_other_devices_and_sizes_are_refused_by_name():
    inputs = ragged("cpu", (16, 1))
    message = (
        r"implementation 'cuda': expected a Hopper GPU.*, torch.bfloat16, D 128, .*, got cpu, torch.bfloat16, D 128"
    )
    with pytest.raises(ValueError, match=message):
        run(inputs, random_ids(inputs), "cuda")
    gpu = torch.device("cuda")  # sizes decide before it is looked at
    assert not is_compiled_for(gpu, torch.float16, 128, 16, 64)
    assert not is_compiled_for(gpu, torch.bfloat16, 64, 16, 64)
    assert not is_compiled_for(gpu, torch.bfloat16, 128, 3, 64)
    assert not is_compiled_for(gpu, torch.bfloat16, 128, 16, 32)


def test_tensors_that_the_source_would_misread_are_refused():
    inputs = ragged("cpu", (16, 1))
    ids, batch = random_ids(inputs), inputs.batch

    def attend(queries, batch):
        output = torch.empty(inputs.queries.shape, dtype=torch.bfloat16)
        tensors = queries, inputs.keys, inputs.values, ids
        attend_shared_blocks(Arguments(*tensors, batch, inputs.geometry, inputs.scale), output)

    strided = torch.zeros(*inputs.queries.shape, 2, dtype=torch.bfloat16)[..., 0]
    with pytest.raises(ValueError, match="queries: expected a contiguous last dimension, got strides"):
        attend(strided, batch)
    with pytest.raises(TypeError, match=r"request_rows: expected dtype torch\.int64, got torch\.int32"):
        attend(inputs.queries, replace(batch, request_rows=batch.request_rows.int()))
    with pytest.raises(TypeError, match=r"kv_lens: expected dtype torch\.int32, got torch\.int64"):
        attend(inputs.queries, replace(batch, kv_lens=batch.kv_lens.long()))


@pytest.mark.parametrize("tiles", [1, 131, 132, 133, 1025])
@pytest.mark.parametrize("context", [1000, 200_000, 2**20])
def test_every_tile_is_launched_once(monkeypatch, tiles, context):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: H100)
    inputs = ragged("cpu", (32, 2))
    grids = list(launches(tiles, inputs.keys, replace(inputs.batch, max_kv_tokens=context)))
    found = [
        (tile, head)
        for (width, heads), (first, first_head) in grids
        for tile in range(first, first + width)
        for head in range(first_head, first_head + heads)
    ]
    assert sorted(found) == [(tile, head) for tile in range(tiles) for head in range(2)]
    if context == 2**20:
        assert all(width <= 132 and heads == 1 for (width, heads), _ in grids)
    else:
        assert len(grids) == 1


@pytest.mark.parametrize(("heads", "least"), [((32, 2), 1048), ((16, 1), 2104), ((8, 1), 2096), ((4, 1), 4192)])
def test_steps_that_fill_a_gpu(monkeypatch, heads, least):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: H100)
    inputs = Inputs([64], [1], SMALL, heads, 128, torch.bfloat16, "cpu")
    ids = random_ids(inputs)
    for rows in (least - 1, least):
        tensors = torch.empty(rows, heads[0], 128), inputs.keys, inputs.values, ids
        assert fills_gpu(Arguments(*tensors, inputs.batch, inputs.geometry, inputs.scale)) == (rows == least)
    assert least <= LONG_ROWS, "a server that starts launches the kernel once"


@gpu
@every_group
def test_random_lists(device, heads):
    inputs = ragged(device, heads)
    check(inputs, random_ids(inputs), "cuda")


@gpu
@every_group
@pytest.mark.parametrize("kept", [0.0, 0.8])
def test_lists_of_neighbours(device, heads, kept):
    inputs = ragged(device, heads)
    check(inputs, neighbours_lists(inputs, kept), "cuda")


@gpu
@pytest.mark.parametrize("heads", [(32, 2), (4, 1)], ids=str)
def test_selected_blocks(device, heads):
    # Rows of one tile on both sides of the K_SEL-th block: some attend to all blocks, some to a list.
    inputs = Inputs([386, 70, 6200], [6, 70, 100], SMALL, heads, 128, torch.bfloat16, device)
    check(inputs, selected_ids(inputs), "cuda")


@gpu
@pytest.mark.parametrize("kind", ["constant", "huge"])
def test_extreme_keys(device, kind):
    def edit(keys):
        used = (~keys.isnan()).flatten(1).all(1)
        if kind == "constant":
            keys[used] = 1.0
        else:
            keys[used.nonzero()[7]] *= 1e4

    inputs = Inputs([100, 700], [3, 30], SMALL, (32, 2), 128, torch.bfloat16, device, [DENSE, 0], edit)
    check(inputs, selected_ids(inputs), "cuda")


@gpu
def test_it_serves_and_agrees_with_triton(device):
    inputs = ragged(device, (32, 2))
    ids = neighbours_lists(inputs, 0.8)
    served, exact = run(inputs, ids, None), exactly(inputs, ids)
    assert torch.equal(served, run(inputs, ids, "cuda"))
    assert row_errors(served, exact).max() <= 1.5 * row_errors(run(inputs, ids, "triton"), exact).max()


@gpu
@every_group
def test_each_request_and_each_chunk_as_if_alone(device, heads):
    inputs = ragged(device, heads)
    ids, queries = neighbours_lists(inputs, 0.5), inputs.queries
    together = run(inputs, ids, "cuda")
    for request in range(len(LENGTHS)):
        rows, alone = one_request(inputs.batch, request)
        if alone.max_query_tokens > 1:
            inputs.queries = queries[rows]
            assert torch.equal(run(inputs, ids[rows], "cuda", alone), together[rows])
    rows, alone = one_request(inputs.batch, 5)
    for begin, end in ((0, 37), (37, 300)):  # chunks that end inside a tile
        own = slice(rows.start + begin, rows.start + end)
        start = torch.tensor([0, end - begin], dtype=torch.int32, device=device)
        chunk = replace(alone, query_start=start, kv_lens=alone.kv_lens - (300 - end), max_query_tokens=end - begin)
        inputs.queries = queries[own]
        assert torch.equal(run(inputs, ids[own], "cuda", chunk), together[own])


@gpu
def test_short_steps_are_left_to_triton(device, monkeypatch):
    inputs = ragged(device, (32, 2))
    ids = random_ids(inputs)
    monkeypatch.setattr(cuda, "fills_gpu", fills_gpu)
    assert torch.equal(run(inputs, ids, "cuda"), run(inputs, ids, "triton"))


@gpu
def test_keeping_in_step_changes_nothing(device, monkeypatch):
    inputs = Inputs([9000], [3000], RELEASED, (32, 2), 128, torch.bfloat16, device)
    ids = random_ids(inputs)
    at_once = run(inputs, ids, "cuda")
    monkeypatch.setattr(shared_blocks, "CACHES", 0)
    assert len(list(launches(375, inputs.keys, inputs.batch))) > 2
    assert torch.equal(run(inputs, ids, "cuda"), at_once)


@gpu
@every_group
def test_fewer_stages_change_nothing(device, heads, monkeypatch):
    """With the shared memory of a program on (12, 0)."""
    inputs = ragged(device, heads)
    ids = neighbours_lists(inputs, 0.8)
    with_all = run(inputs, ids, "cuda")
    limits = targets.LIMITS | {HOPPER: targets.LIMITS[targets.BLACKWELL_SMALL]}
    monkeypatch.setattr(targets, "LIMITS", limits)
    monkeypatch.setattr(shared_blocks, "_loaded", cache(shared_blocks._loaded.__wrapped__))
    assert definitions(16, HOPPER)["STAGES"] == 3
    assert torch.equal(run(inputs, ids, "cuda"), with_all)


@gpu
def test_replayed_graph_is_the_eager_step(device):
    inputs = ragged(device, (32, 2))
    ids = random_ids(inputs)
    eager = run(inputs, ids, "cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(inputs, ids, "cuda")
    captured.fill_(torch.nan)
    graph.replay()
    assert torch.equal(captured, eager)


@gpu
def test_tensors_without_a_map_are_refused(device):
    keys = torch.zeros(64, 2, 129, dtype=torch.bfloat16, device=device)[..., :128]
    with pytest.raises(RuntimeError, match=r"a tensor map of shape \[64, 2, 128\].*CUDA_ERROR_INVALID_VALUE"):
        nvrtc.tensor_map(keys, (64, 1, 64))
    with pytest.raises(TypeError, match=r"expected torch\.bfloat16, got torch\.float32"):
        nvrtc.tensor_map(keys.float(), (64, 1, 64))
