"""Launches shared_blocks.cu: neighbouring rows share the loads of the blocks that they choose."""

import ctypes
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from sala_kernels import targets
from sala_kernels.contract import check_dtypes
from sala_kernels.layout import PagedBatch
from sala_kernels.nvrtc import Binary, CudaKernel, cached_binary, tensor_map
from sala_kernels.row_tiles import LOG2_E, tile_count
from sala_kernels.sparse_attention import CUDA_BLOCK, CUDA_HEAD_DIM, Arguments

SOURCE = Path(__file__).with_name("shared_blocks.cu")
NAME = "_shared_blocks_kernel"
WARPS, FETCHING_WARPS = 8, 4  # of a program; one of the latter works, but registers are given to four warps at a time
VECTORS = 16  # query vectors of a warp
STAGES = 6  # blocks in shared memory, or as many as fit
HALF_DIM = CUDA_HEAD_DIM // 2  # elements that a swizzled row of shared memory holds
STAGE_BYTES = 2 * CUDA_BLOCK * CUDA_HEAD_DIM * 2  # keys and values in bfloat16
ROOM_BYTES = 2048  # to begin at a multiple of 1024, and for barriers and queue
# Programs per multiprocessor, by heads of a group, from which on this is faster than listed_rows; except that
# independent picks take 7 % longer where a round of few programs follows two full ones.
LEAST_PROGRAMS = {16: 2, 8: 1, 4: 1}
CACHES = 2  # programs keep in step if the context of a head is larger than so many L2 caches


def attend_shared_blocks(arguments: Arguments, output: torch.Tensor) -> None:
    """Fill ``output`` [T, Hq, D] of the rows that do not attend to every block up to their own.

    Raises ValueError unless heads lie contiguous, and TypeError on integers of another size.
    """
    queries, keys, values, block_ids, batch, geometry, scale, _ = arguments
    for name, tensor in dict(queries=queries, keys=keys, values=values, block_ids=block_ids, output=output).items():
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name}: expected a contiguous last dimension, got strides {tensor.stride()}")
    integers = dict(query_start=batch.query_start, kv_lens=batch.kv_lens, sparse_from=batch.sparse_from)
    check_dtypes(torch.int32, **integers, token_slots=batch.token_slots)
    check_dtypes(torch.int64, request_rows=batch.request_rows)
    box = geometry.block_size, 1, HALF_DIM
    tensors = queries, block_ids, output, batch.query_start, batch.kv_lens, batch.sparse_from, batch.request_rows
    strides = batch.token_slots.stride(0), *queries.stride()[:2], *block_ids.stride()[:2], *output.stride()[:2]
    common = [
        tensor_map(keys, box),
        tensor_map(values, box),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (*tensors, batch.token_slots)),
        *map(ctypes.c_int64, strides),
        *map(ctypes.c_int32, (batch.size, len(queries), geometry.selected_blocks)),
        ctypes.c_float(scale * LOG2_E),
    ]
    kernel = compile_shared_blocks(arguments.group, queries.device)
    for grid, first in launches(count_tiles(arguments), keys, batch):
        kernel.launch(grid, 32 * (WARPS + FETCHING_WARPS), [*common, *map(ctypes.c_int32, first)])


def fills_gpu(arguments: Arguments) -> bool:
    """Whether a step has the programs of LEAST_PROGRAMS; each takes in the blocks of its rows one by one."""
    least = LEAST_PROGRAMS[arguments.group]
    gpu = torch.cuda.get_device_properties(arguments.keys.device)
    return count_tiles(arguments) * arguments.keys.shape[1] >= least * gpu.multi_processor_count


def count_tiles(arguments: Arguments) -> int:
    """Tiles of rows for each KV head."""
    return tile_count(len(arguments.queries), arguments.batch.size, WARPS * VECTORS // arguments.group)


def launches(tiles: int, keys: torch.Tensor, batch: PagedBatch) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Grids over tiles and KV heads, and the first tile and KV head of each.

    All at once while a head's keys and values are not larger than CACHES times the L2 cache. Beyond, as many programs
    of one head as run at the same time: those that begin together go through the context together, since the ones in
    front wait for memory and the others find in the cache what these have read.
    """
    gpu, kv_heads = torch.cuda.get_device_properties(keys.device), keys.shape[1]
    if batch.max_kv_tokens * STAGE_BYTES // CUDA_BLOCK <= CACHES * gpu.L2_cache_size:
        yield (tiles, kv_heads), (0, 0)
        return
    waves = -(-tiles // gpu.multi_processor_count)
    width = -(-tiles // waves)
    for kv_head in range(kv_heads):
        for first in range(0, tiles, width):
            yield (min(width, tiles - first), 1), (first, kv_head)


def compile_shared_blocks(group: int, device: torch.device) -> CudaKernel:
    """The kernel for ``group`` query heads per KV head, loaded for ``device``; compiled where it never was."""
    return _loaded(group, device)


@cache
def _loaded(group: int, device: torch.device) -> CudaKernel:
    capability = targets.capability(device)
    assert capability
    shared_bytes = definitions(group, capability)["SHARED_BYTES"]
    return CudaKernel(binary(group, capability).code, NAME, device, shared_bytes)


def binary(group: int, capability: targets.Capability) -> Binary:
    """The compiled kernel; half a second where it never was. Raises ValueError before Hopper."""
    return cached_binary(SOURCE, definitions(group, capability), architecture(capability))


def architecture(capability: targets.Capability) -> str:
    """What NVRTC calls a GPU of this compute capability; "a" stands for the instructions that later ones may lack.

    >>> architecture((9, 0))
    'sm_90a'
    """
    return "sm_{}{}a".format(*capability)


def definitions(group: int, capability: targets.Capability) -> dict[str, int]:
    """What the source takes as given, for ``group`` query heads per KV head. Raises ValueError before Hopper."""
    known = targets.known(capability)
    if known not in targets.PATHS[targets.SHARED_BLOCKS].possible:
        raise ValueError(f"compute capability {capability}: {SOURCE.name} needs (9, 0) or later")
    stages = min(STAGES, (targets.LIMITS[known].program_shared_bytes - ROOM_BYTES) // STAGE_BYTES)
    return {
        "GROUP": group,
        "HEAD_DIM": CUDA_HEAD_DIM,
        "BLOCK": CUDA_BLOCK,
        "VECTORS": VECTORS,
        "WARPS": WARPS,
        "FETCHING_WARPS": FETCHING_WARPS,
        "STAGES": stages,
        "SHARED_BYTES": stages * STAGE_BYTES + ROOM_BYTES,
    }
