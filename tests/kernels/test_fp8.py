"""Keys and values in e4m3: every number at its place, and errors no larger than those that bfloat16 pools have."""

from dataclasses import replace

import pytest
import torch
from sala_kernels.compress_keys import compress_keys
from sala_kernels.kv_scales import E4M3, E4M3_MAX, gather_rows
from sala_kernels.layout import PagedBatch
from sala_kernels.select_blocks import select_blocks
from sala_kernels.sparse_attention import serving_implementation, sparse_attention
from sala_kernels.store_kv import store_kv

from tests.kernels.attention_checks import check, neighbours_lists, random_ids, run, selected_ids
from tests.kernels.attention_checks import every_step_fills_the_gpu as every_step_fills_the_gpu
from tests.kernels.paging import DENSE, relative_error
from tests.kernels.sparse_inputs import (
    RELEASED,
    SMALL,
    TINY,
    Inputs,
    both,
    gpu,
    one_request,
    real_steps,
    whole_prompts,
)
from tests.kernels.sparse_inputs import poisoned_memory as poisoned_memory

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero encountered in log2")  # the logarithm of no slots

# No powers of two, which would leave all roundings as they are; of values so small that their numbers are subnormal.
SCALES = torch.tensor([[0.7, 3.0], [0.3, 90.0]])
LENGTHS, NEW_TOKENS = [1, 64, 65, 9 * 64 + 5, 5 * 64 - 1], [1, 0, 3, 9, 4]
SPARSE_FROM = [0, DENSE, 0, 9 * 64 - 1, DENSE]
NAN_BYTES = 0x7F, 0xFF


def store(k, v, slots, scales, implementation, pool_slots=64):
    """Pools as bytes after a store into pools of NaN."""
    keys, values = (torch.full((pool_slots, *k.shape[1:]), 0x7F, dtype=torch.uint8, device=k.device) for _ in range(2))
    pools = keys.view(E4M3), values.view(E4M3)
    store_kv(k, v, *pools, slots, scales.to(k.device), implementation=implementation)
    return keys, values


def projected(rows: int, device: str, dtype=torch.bfloat16):
    """k and v as parts of a projection's output, some of them too large, too small, or no numbers."""
    numbers = torch.randn(rows, 6, 16, dtype=torch.float64) * 2.0 ** torch.randint(-14, 12, (rows, 6, 16))
    numbers[0, :, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0])
    return numbers.to(device, dtype)[:, 2:].split(2, dim=1)


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [1, 37])
def test_stored_numbers_are_the_nearest(device, implementation, dtype, rows):
    k, v = projected(rows, device, dtype)
    slots = torch.randperm(64, device=device)[:rows]
    before = k.clone(), v.clone()
    numbers = torch.arange(256, dtype=torch.uint8).view(E4M3).double()
    numbers = numbers[~numbers.isnan()].unique()  # all that e4m3 has
    for pool, given, scales in zip(store(k, v, slots, SCALES, implementation), (k, v), SCALES, strict=True):
        untouched = torch.ones(64, dtype=torch.bool, device=device)
        untouched[slots] = False
        assert (pool[untouched] == 0x7F).all()
        stored = pool[slots].view(E4M3).double().cpu()
        exact = (given.float().cpu() / scales[:, None]).double().clamp(-E4M3_MAX, E4M3_MAX)
        assert torch.equal(stored.isnan(), exact.isnan())
        distance = (exact[..., None] - numbers).abs().amin(-1)
        assert ((stored - exact).abs() == distance)[~exact.isnan()].all()
    # SGLang's own pools divide in place.
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip((k, v), before, strict=True))


def test_triton_stores_the_bytes_of_the_reference(device):
    k, v = projected(300, device)
    slots = torch.randperm(400, device=device)[:300]
    expected, stored = (store(k, v, slots, SCALES, name, 400) for name in ("reference", "triton"))
    for a, b in zip(expected, stored, strict=True):
        is_nan = torch.isin(a, torch.tensor(NAN_BYTES, dtype=torch.uint8, device=device))
        assert torch.equal(is_nan, torch.isin(b, torch.tensor(NAN_BYTES, dtype=torch.uint8, device=device)))
        assert torch.equal(a[~is_nan], b[~is_nan])


def fp8_inputs(device, lengths=LENGTHS, new_tokens=NEW_TOKENS, geometry=SMALL, heads=(4, 2), dim=16, **options):
    options = {"dtype": torch.bfloat16, "sparse_from": SPARSE_FROM if lengths is LENGTHS else None} | options
    scales = SCALES[:, : heads[1]].contiguous()
    return Inputs(lengths, new_tokens, geometry, heads, dim, device=device, kv_scales=scales, **options)


def test_pools_hold_nan_where_nobody_may_read(device):
    inputs = fp8_inputs(device)
    owned = torch.cat([inputs.batch.slots(request) for request in range(inputs.batch.size)])
    for pool in (inputs.keys, inputs.values):
        poisoned = pool.float().isnan().flatten(1).any(1)
        assert not poisoned[owned].any() and int(poisoned.sum()) == len(pool) - len(owned) > 64


def compressed_by(inputs: Inputs, implementation: str, batch: PagedBatch | None = None) -> torch.Tensor:
    compressed = torch.full_like(inputs.compressed, torch.nan)
    arguments = inputs.keys, compressed, batch or whole_prompts(inputs.batch), inputs.geometry
    compress_keys(*arguments, kv_scales=inputs.kv_scales, implementation=implementation)
    return compressed


@both
@pytest.mark.parametrize("geometry", [SMALL, TINY], ids=["small", "tiny"])
def test_compressed_keys_are_those_of_dequantised_keys(device, implementation, geometry):
    """Half a unit in the last place of bfloat16, and what float32 sums may lose."""
    inputs = fp8_inputs(device, [1, 65, 330], [1, 65, 330], geometry)
    every_slot = torch.arange(len(inputs.keys), device=device)
    exact = torch.full_like(inputs.compressed, torch.nan, dtype=torch.float64)
    keys = gather_rows(inputs.keys, every_slot, inputs.kv_scales[0], torch.float64)
    compress_keys(keys, exact, whole_prompts(inputs.batch), geometry, implementation="reference")
    actual = compressed_by(inputs, implementation)
    assert torch.equal(actual.isnan(), exact.isnan()) and not exact.isnan().all()
    unit, sums = torch.finfo(torch.bfloat16).eps / 2, 8 * geometry.kernel_size * torch.finfo(torch.float32).eps
    largest = keys.nan_to_num().abs().max()
    within = (actual.double() - exact).abs() <= exact.abs() * unit + sums * largest
    assert within[~exact.isnan()].all()


@both
def test_compressed_keys_do_not_depend_on_chunks(device, implementation):
    inputs = fp8_inputs(device, [330], [330], heads=(1, 1))
    whole = compressed_by(inputs, implementation)
    chunked = torch.full_like(whole, torch.nan)
    for begin, end in ((0, 17), (17, 100), (100, 101), (101, 228), (228, 330)):
        start = torch.tensor([0, end - begin], dtype=torch.int32, device=device)
        kv_lens = torch.tensor([end], dtype=torch.int32, device=device)
        part = replace(inputs.batch, query_start=start, kv_lens=kv_lens)
        arguments = inputs.keys, chunked, part, inputs.geometry
        compress_keys(*arguments, kv_scales=inputs.kv_scales, implementation=implementation)
    assert torch.equal(whole.nan_to_num(), chunked.nan_to_num())


@pytest.mark.parametrize(
    ("dtype", "step"),
    [
        (torch.bfloat16, "prefill"),
        (torch.bfloat16, "decode"),
        (torch.float16, "decode"),
        (torch.float32, "prefill"),
    ],
    ids=str,
)
def test_attention(device, dtype, step):
    new_tokens = NEW_TOKENS if step == "prefill" else [1] * 5
    inputs = fp8_inputs(device, new_tokens=new_tokens, heads=(16, 2), dim=32, dtype=dtype)
    check(inputs, random_ids(inputs))


@pytest.mark.parametrize("kept", [0.0, 0.8])
def test_attention_of_rows_that_share_blocks(device, kept):
    """Parts of a tile and of its rows have the scale of values once."""
    inputs = fp8_inputs(device, [1000, 600], [12, 5], heads=(8, 2), dim=32)
    check(inputs, neighbours_lists(inputs, kept))


def test_attention_of_selected_blocks(device):
    inputs = fp8_inputs(device, [386, 70, 900], [6, 70, 1])
    check(inputs, selected_ids(inputs))


@both
@pytest.mark.parametrize("new_tokens", [[1, 1, 1], [9, 2, 4]], ids=["decode", "prefill"])
def test_each_request_as_if_alone(device, implementation, new_tokens):
    inputs = fp8_inputs(device, [500, 200, 330], new_tokens, heads=(4, 2), sparse_from=[0, DENSE, 325])
    block_ids, queries = random_ids(inputs), inputs.queries
    together = run(inputs, block_ids, implementation)
    for request in range(3):
        rows, alone = one_request(inputs.batch, request)
        inputs.queries = queries[rows]
        assert torch.equal(run(inputs, block_ids[rows], implementation, alone), together[rows])


@both
def test_scales_of_one_are_pools_of_exact_numbers(device, implementation):
    """Every number of e4m3 is one of bfloat16: pools of these give the same bits."""
    inputs = fp8_inputs(device)
    inputs.kv_scales = torch.ones(2, 2, device=device)
    block_ids = random_ids(inputs)
    in_fp8 = run(inputs, block_ids, implementation)
    inputs.keys, inputs.values, inputs.kv_scales = inputs.keys.bfloat16(), inputs.values.bfloat16(), None
    assert torch.equal(in_fp8, run(inputs, block_ids, implementation))


def test_triton_serves_where_there_is_no_cuda_kernel(monkeypatch, device):
    hopper = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("sala_kernels.contract.has_cuda_compiler", lambda: True)
    assert serving_implementation(hopper, torch.bfloat16, 128, 16, 64) == "cuda"
    assert serving_implementation(hopper, E4M3, 128, 16, 64) == "triton"
    inputs = fp8_inputs(device, heads=(16, 1), dim=128)
    with pytest.raises(ValueError, match=r"implementation 'cuda': .*torch\.bfloat16.*got .*torch\.float8_e4m3fn"):
        run(inputs, random_ids(inputs), "cuda")


def test_scales_and_dtypes_belong_together(device):
    inputs = fp8_inputs(device)
    ids, scales = random_ids(inputs), inputs.kv_scales
    with pytest.raises(TypeError, match=r"keys: expected dtype torch\.bfloat16, got torch\.float8_e4m3fn"):
        inputs.kv_scales = None
        run(inputs, ids, None)
    for wrong, error, message in (
        (scales[:, :1], ValueError, r"kv_scales: expected Hkv = 2, got shape \[2, 1\]"),
        (scales[0], ValueError, r"kv_scales: expected shape \[2, Hkv\], got \[2\]"),
        (scales.double(), TypeError, r"kv_scales: expected dtype torch\.float32, got torch\.float64"),
        (scales.T.contiguous().T, ValueError, "kv_scales: expected a contiguous tensor"),
    ):
        inputs.kv_scales = wrong
        with pytest.raises(error, match=message):
            run(inputs, ids, None)
    inputs.kv_scales, inputs.keys = scales, inputs.keys.bfloat16()
    with pytest.raises(TypeError, match=r"keys: expected dtype torch\.float8_e4m3fn, got torch\.bfloat16"):
        run(inputs, ids, None)
    with pytest.raises(TypeError, match=r"values: expected dtype torch\.float8_e4m3fn, got torch\.float8_e5m2"):
        inputs.keys, inputs.values = inputs.values, inputs.values.view(torch.float8_e5m2)
        run(inputs, ids, None)


def whole_step(inputs: Inputs, batch: PagedBatch, k, v, slots, implementation=None) -> torch.Tensor:
    """Store, compress, select and attend, as a layer does."""
    scales = {"kv_scales": inputs.kv_scales, "implementation": implementation}
    store_kv(k, v, inputs.keys, inputs.values, slots, **scales)
    compress_keys(inputs.keys, inputs.compressed, batch, inputs.geometry, **scales)
    rest = batch, inputs.geometry, inputs.scale
    ids = select_blocks(inputs.queries, inputs.compressed, *rest, implementation=implementation)
    return sparse_attention(inputs.queries, inputs.keys, inputs.values, ids, *rest, **scales)


@gpu
@real_steps
def test_real_sizes(device, lengths, new_tokens):
    inputs = fp8_inputs(device, lengths, new_tokens, RELEASED, (32, 2), 128)
    check(inputs, selected_ids(inputs), "triton")
    assert relative_error(compressed_by(inputs, "triton").nan_to_num(), inputs.compressed.nan_to_num()) < 2**-8


@gpu
@pytest.mark.parametrize("requests", [1, 6])
def test_replayed_graph_is_the_eager_step(device, requests):
    lengths = [30000, 8400, 200, 6300, 131072, 2000][-requests:]
    inputs = fp8_inputs(device, lengths, [1] * requests, RELEASED, (32, 2), 128)
    batch = replace(inputs.batch, max_kv_tokens=inputs.batch.token_slots.shape[1])
    k, v = (torch.randn(requests, 2, 128, device=device, dtype=torch.bfloat16) for _ in range(2))
    slots = torch.stack([batch.slots(request)[-1] for request in range(requests)])
    eager = whole_step(inputs, batch, k, v, slots)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = whole_step(inputs, batch, k, v, slots)
    captured.fill_(torch.nan)
    graph.replay()
    assert torch.equal(captured, eager)
