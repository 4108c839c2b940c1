"""Causal softmax attention over chosen blocks (InfLLM-V2, arXiv 2509.24663, section 3)."""

from typing import NamedTuple

import torch

from sala_kernels import contract
from sala_kernels.contract import check_dtypes, check_groups, check_shapes, implementation_of
from sala_kernels.layout import PagedBatch, SparseGeometry

# What there is CUDA C++ for: groups of 16 heads as released, and those of tensor-parallel ranks that share a KV head.
CUDA_CAPABILITY, CUDA_DEVICE = (9, 0), "a Hopper GPU"
CUDA_DTYPE, CUDA_HEAD_DIM, CUDA_GROUPS, CUDA_BLOCK = torch.bfloat16, 128, (4, 8, 16), 64


class Arguments(NamedTuple):
    """What ``sparse_attention`` takes, checked, as its implementations take it."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    block_ids: torch.Tensor
    batch: PagedBatch
    geometry: SparseGeometry
    scale: float

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.queries.shape[1] // self.keys.shape[1]


def sparse_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_ids: torch.Tensor,
    batch: PagedBatch,
    geometry: SparseGeometry,
    scale: float,
    *,
    implementation: str | None = None,
) -> torch.Tensor:
    """Attend to the tokens of the selected blocks that are not after the query.

    queries: [T, Hq, D]; heads of one group are adjacent. keys, values: [pool slots, Hkv, D].
    block_ids: [T, Hkv, K_SEL] int32 as select_blocks returns it; read only for rows from their request's
    ``sparse_from`` on, which hold at least the current block. Rows before it attend to all blocks. Returns
    [T, Hq, D] in the dtype of the queries; softmax and sums are float32 or better. Raises ValueError or
    TypeError on a shape or dtype that does not fit, and on implementation "cuda" where is_compiled_for is false.
    """
    sizes = check_shapes(
        {"K_SEL": geometry.selected_blocks},
        queries=(queries, "T Hq D"),
        keys=(keys, "S Hkv D"),
        values=(values, "S Hkv D"),
        block_ids=(block_ids, "T Hkv K_SEL"),
    )
    check_groups(sizes["Hq"], sizes["Hkv"])
    check_dtypes(queries.dtype, keys=keys, values=values)
    check_dtypes(torch.int32, block_ids=block_ids)
    described = queries.device, queries.dtype, sizes["D"], sizes["Hq"] // sizes["Hkv"], geometry.block_size
    if implementation == "cuda" and not is_compiled_for(*described):
        form = "{}, {}, D {}, groups of {} heads, blocks of {} tokens"
        expected = form.format(CUDA_DEVICE, CUDA_DTYPE, CUDA_HEAD_DIM, CUDA_GROUPS, CUDA_BLOCK)
        raise ValueError(f"implementation 'cuda': expected {expected}, got {form.format(*described)}")
    implementation = implementation or serving_implementation(*described)
    module = implementation_of(__name__, implementation, queries)
    return module.sparse_attention(Arguments(queries, keys, values, block_ids, batch, geometry, scale))


def serving_implementation(device: torch.device, dtype: torch.dtype, head_dim: int, group: int, block_size: int) -> str:
    """Name of the implementation that serves calls with ``group`` query heads per KV head, unless one is asked for."""
    if is_compiled_for(device, dtype, head_dim, group, block_size):
        return "cuda"
    return contract.default_implementation(device)


def is_compiled_for(device: torch.device, dtype: torch.dtype, head_dim: int, group: int, block_size: int) -> bool:
    """Whether there is CUDA C++ for such calls, and what compiles it."""
    if device.type != "cuda" or group not in CUDA_GROUPS:
        return False
    if (dtype, head_dim, block_size) != (CUDA_DTYPE, CUDA_HEAD_DIM, CUDA_BLOCK):
        return False
    return torch.cuda.get_device_capability(device) == CUDA_CAPABILITY and contract.has_cuda_compiler()
