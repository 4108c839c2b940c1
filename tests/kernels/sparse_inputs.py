"""Inputs shared by the tests of the sparse operators."""

from dataclasses import replace

import pytest
import torch
from sala_kernels.compress_keys import compress_keys
from sala_kernels.kv_scales import E4M3, E4M3_MAX, gather_rows
from sala_kernels.layout import PagedBatch, SparseGeometry

from tests.kernels.interpreter import repair_short_floats
from tests.kernels.paging import empty_compressed, fill_pool, make_batch
from tests.kernels.quick_interpreter import patch_once_per_launch

repair_short_floats()
patch_once_per_launch()

RELEASED = SparseGeometry()
SMALL = SparseGeometry(block_size=64, kernel_size=32, kernel_stride=16, local_blocks=2, selected_blocks=6)
TINY = replace(SMALL, block_size=16, kernel_size=8, kernel_stride=4)
GEOMETRIES = {
    "small": SMALL,
    "tiny": TINY,
    "overlap 2": replace(SMALL, kernel_size=48),
    "no overlap": replace(SMALL, kernel_size=16),
    "4 coarse rows": replace(SMALL, kernel_size=8, kernel_stride=4),
    "no initial block": replace(TINY, kernel_size=16, init_blocks=0, local_blocks=1, selected_blocks=3),
    "no local block": replace(TINY, local_blocks=0, selected_blocks=4),
    "nothing free": replace(TINY, init_blocks=2, local_blocks=3),
}

geometries = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
both = pytest.mark.parametrize("implementation", ["reference", "triton"])

REAL_STEPS = {
    "one prompt": ([9000], [9000]),
    "chunk at 20000": ([20000], [256]),
    "chunk at 131072": ([131072], [256]),
    "decode": ([1, 6144, 6145, 8191, 8192, 131072] + [911 * i for i in range(1, 27)], [1] * 32),
    "mixed": ([12000, 9000, 70, 30000], [300, 1, 70, 64]),
}
real_steps = pytest.mark.parametrize(("lengths", "new_tokens"), REAL_STEPS.values(), ids=REAL_STEPS)


def gpu(test):
    """Mark a test that needs an NVIDIA GPU, and skip it without one."""
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")(test))


@pytest.fixture(autouse=True)
def poisoned_memory():
    """New tensors hold NaN or the largest integer until they are written."""
    torch.set_deterministic_debug_mode("warn")
    yield
    torch.set_deterministic_debug_mode("default")


def whole_prompts(batch: PagedBatch) -> PagedBatch:
    """The same requests with every token in this step."""
    start = torch.nn.functional.pad(batch.kv_lens.cumsum(0), (1, 0)).int()
    return replace(batch, query_start=start, max_query_tokens=batch.max_kv_tokens)


def one_request(batch: PagedBatch, request: int) -> tuple[slice, PagedBatch]:
    """The rows of ``request``, and the batch that holds it alone."""
    rows, _ = batch.rows(request)
    own = slice(request, request + 1)
    start = torch.tensor([0, rows.stop - rows.start], dtype=torch.int32, device=batch.kv_lens.device)
    alone = {name: getattr(batch, name)[own] for name in ("kv_lens", "sparse_from", "request_rows")}
    return rows, replace(batch, query_start=start, max_query_tokens=rows.stop - rows.start, **alone)


class Inputs:
    """A batch with its pools, compressed keys of every complete window, and queries, all in one dtype.

    ``edit(keys)`` may change the keys [slots, Hkv, D] before they are compressed. With ``kv_scales`` [2, Hkv] the pools
    are in e4m3, where what nobody may read is NaN too.
    """

    def __init__(
        self,
        lengths,
        new_tokens,
        geometry,
        heads,
        dim,
        dtype,
        device,
        sparse_from=None,
        edit=lambda keys: None,
        kv_scales=None,
    ):
        query_heads, kv_heads = heads
        self.geometry, self.scale = geometry, dim**-0.5
        self.batch, pages = make_batch(lengths, new_tokens, geometry, device, sparse_from)
        pools = fill_pool(self.batch, pages, geometry, kv_heads, dim)
        # Keys of a block have something in common, else the means of windows, and all scores, would be alike.
        pools[0].unflatten(0, (pages, -1)).add_(torch.randn(pages, 1, kv_heads, dim, device=device))
        edit(pools[0])
        self.kv_scales = None if kv_scales is None else kv_scales.to(device)
        self.keys, self.values = (pool.to(dtype) for pool in pools) if kv_scales is None else self._rounded(pools)
        # Queries are a part of a projection's output, as they are in a model.
        projected = torch.randn(sum(new_tokens), query_heads + 2 * kv_heads, dim, dtype=torch.float64)
        self.queries = projected.to(device, dtype)[:, :query_heads]
        self.compressed = empty_compressed(pages, geometry, kv_heads, dim, self.queries)
        self.compress()

    def _rounded(self, pools):
        quotients = (pool / scales[:, None] for pool, scales in zip(pools, self.kv_scales, strict=True))
        return ((one.clamp(-E4M3_MAX, E4M3_MAX)).float().to(E4M3) for one in quotients)

    def compress(self) -> None:
        """Bring the compressed keys up to date with the keys."""
        batch = whole_prompts(self.batch)
        arguments = self.keys, self.compressed, batch, self.geometry
        compress_keys(*arguments, kv_scales=self.kv_scales, implementation="reference")

    def request(self, index: int, kv_head: int):
        """Positions, queries [rows, G, D], keys and values [L, D] of one request and KV head, float64 on the CPU."""
        rows, positions = self.batch.rows(index)
        slots = self.batch.slots(index)
        grouped = self.queries[rows].unflatten(1, (self.keys.shape[1], -1))[:, kv_head]
        scales = (None, None) if self.kv_scales is None else self.kv_scales
        pools = zip((self.keys, self.values), scales, strict=True)
        parts = (gather_rows(pool, slots, factors, torch.float64)[:, kv_head] for pool, factors in pools)
        return positions.tolist(), grouped.double().cpu(), *(part.cpu() for part in parts)
