"""compress_keys: every window's mean at its place, whatever the chunks of the prompt, and nothing else."""

from dataclasses import replace

import pytest
import torch
from sala_kernels.compress_keys import compress_keys

from tests.kernels import brute_force
from tests.kernels.paging import empty_compressed, fill_pool, make_batch
from tests.kernels.sparse_inputs import GEOMETRIES, RELEASED, SMALL, both, geometries, gpu, real_steps

LENGTHS = [1, 15, 16, 31, 32, 63, 64, 127, 128, 129, 330]
NEW_TOKENS = [1, 2, 16, 1, 0, 40, 64, 20, 1, 129, 200]
UNTOUCHED = 4096.0  # in the compressed pool before the step; no mean comes near it, and NaN would hide a NaN written


def expected_rows(keys, compressed, batch, geometry):
    """UNTOUCHED everywhere but at the windows that end in this step, float64; rows of K2 follow those of K1."""
    expected = torch.full_like(compressed, UNTOUCHED, dtype=torch.float64)
    fine, coarse = expected.split([geometry.fine_rows, geometry.coarse_rows], dim=2)
    for request in range(batch.size):
        slots, positions = batch.slots(request), set(batch.rows(request)[1].tolist())
        for rows, factor in ((fine, 1), (coarse, 4)):
            size, stride = factor * geometry.kernel_size, factor * geometry.kernel_stride
            for start, mean in brute_force.windows(keys[slots].double(), size, stride):
                last = start + size - 1
                if last in positions:
                    rows[slots[last] // geometry.block_size, :, last // stride % rows.shape[2]] = mean
    return expected


def run(lengths, new_tokens, geometry, kv_heads, dtype, device, implementation, dim=16):
    batch, pages = make_batch(lengths, new_tokens, geometry, device)
    keys = fill_pool(batch, pages, geometry, kv_heads, dim)[0].to(dtype)
    compressed = empty_compressed(pages, geometry, kv_heads, dim, keys).fill_(UNTOUCHED)
    compress_keys(keys, compressed, batch, geometry, implementation=implementation)
    return keys, compressed, batch


def check_rounded_once(actual, expected, geometry):
    """Within half a unit in the last place, and what float32 sums of standard normal keys may lose."""
    assert torch.equal(actual == UNTOUCHED, expected == UNTOUCHED)
    unit = torch.finfo(actual.dtype).eps / 2
    sums = 4 * geometry.kernel_size * torch.finfo(torch.float32).eps
    assert ((actual.double() - expected).abs() <= expected.abs() * unit + sums).all()


@geometries
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_reference_is_the_definition(device, geometry, kv_heads):
    keys, compressed, batch = run(LENGTHS, NEW_TOKENS, geometry, kv_heads, torch.float64, device, "reference")
    expected = expected_rows(keys, compressed, batch, geometry)
    torch.testing.assert_close(compressed, expected, rtol=1e-12, atol=1e-12)


def count_windows(length, device, implementation):
    _, compressed, _ = run([length], [length], RELEASED, 1, torch.float32, device, implementation)
    written = (compressed != UNTOUCHED).all(-1).sum((0, 1))
    return tuple(int(rows.sum()) for rows in written.split([RELEASED.fine_rows, RELEASED.coarse_rows]))


@both
@pytest.mark.parametrize(("length", "windows"), [(31, (0, 0)), (127, (6, 0)), (128, (7, 1)), (1023, (62, 14))])
def test_number_of_windows(device, implementation, length, windows):
    assert count_windows(length, device, implementation) == windows


@pytest.mark.parametrize(("length", "windows"), [(8191, (510, 126)), (8192, (511, 127)), (8193, (511, 127))])
def test_number_of_windows_at_the_switch_to_sparse(device, length, windows):
    assert count_windows(length, device, "reference") == windows


def check_triton(geometry, dtype, device):
    lengths, new_tokens = [1, 16, 31, 64, 128, 257], [1, 0, 16, 64, 1, 130]
    keys, compressed, batch = run(lengths, new_tokens, geometry, 2, dtype, device, "triton")
    check_rounded_once(compressed, expected_rows(keys, compressed, batch, geometry), geometry)


@geometries
def test_triton_rounds_once(device, geometry):
    check_triton(geometry, torch.bfloat16, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_rounds_once_in_other_types(device, dtype):
    check_triton(SMALL, dtype, device)


@both
@pytest.mark.parametrize("geometry", [SMALL, GEOMETRIES["overlap 2"]], ids=["small", "overlap 2"])
def test_any_chunks_of_a_prompt(device, implementation, geometry):
    keys, once, batch = run([330, 200], [330, 200], geometry, 1, torch.bfloat16, device, implementation)
    chunked = torch.full_like(once, UNTOUCHED)
    done = [0, 0]
    for step in ([1, 17], [100, 64], [101, 65], [228, 192], [330, 200]):
        rows = torch.tensor([0, *(end - start for start, end in zip(done, step, strict=True))]).cumsum(0)
        kv_lens = torch.tensor(step, dtype=torch.int32, device=device)
        part = replace(batch, query_start=rows.int().to(device), kv_lens=kv_lens)  # bounds need not be tight
        compress_keys(keys, chunked, part, geometry, implementation=implementation)
        done = step
    assert torch.equal(once, chunked)


@both
def test_decode_steps(device, implementation):
    keys, once, batch = run([130, 70], [130, 70], SMALL, 2, torch.bfloat16, device, implementation)
    stepped = torch.full_like(once, UNTOUCHED)
    start = torch.tensor([0, 1, 2], dtype=torch.int32, device=device)
    for length in range(1, 131):
        kv_lens = torch.tensor([length, min(length, 70)], dtype=torch.int32, device=device)
        step = replace(batch, query_start=start, kv_lens=kv_lens, max_query_tokens=1)
        compress_keys(keys, stepped, step, SMALL, implementation=implementation)
    assert torch.equal(once, stepped)


def whole_pool_matches(keys, batch, compressed, geometry):
    expected = torch.full_like(compressed, UNTOUCHED)
    compress_keys(keys, expected, batch, geometry, implementation="reference")
    # Sums in another order may round to the neighbour.
    torch.testing.assert_close(compressed, expected, rtol=2**-7, atol=1e-6)


@gpu
@real_steps
def test_real_sizes(device, lengths, new_tokens):
    keys, compressed, batch = run(lengths, new_tokens, RELEASED, 2, torch.bfloat16, device, "triton", dim=128)
    whole_pool_matches(keys, batch, compressed, RELEASED)


@gpu
def test_pool_beyond_int32_offsets(device):
    batch, pages = make_batch([300], [300], RELEASED, device)
    far = 2**31 // (2 * 128) + RELEASED.block_size
    keys = torch.empty(far + pages * RELEASED.block_size, 2, 128, dtype=torch.bfloat16, device=device)
    keys[far:] = fill_pool(batch, pages, RELEASED, 2, 128)[0]
    batch = replace(batch, token_slots=batch.token_slots + far)
    compressed = empty_compressed(len(keys) // RELEASED.block_size, RELEASED, 2, 128, keys).fill_(UNTOUCHED)
    compress_keys(keys, compressed, batch, RELEASED, implementation="triton")
    whole_pool_matches(keys, batch, compressed, RELEASED)
