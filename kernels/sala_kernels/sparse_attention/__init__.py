"""Causal softmax attention over chosen blocks (InfLLM-V2, arXiv 2509.24663, section 3)."""

from typing import NamedTuple

import torch

from sala_kernels import contract, targets
from sala_kernels.contract import check_dtypes, check_groups, check_shapes, implementation_of
from sala_kernels.kv_scales import check_pools
from sala_kernels.layout import PagedBatch, SparseGeometry

# What there is CUDA C++ for: groups of 16 heads as released, and those of tensor-parallel ranks that share a KV head.
CUDA_DEVICE = "a Hopper GPU, or a later one on which shared_blocks is forced"
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
    kv_scales: torch.Tensor | None = None

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
    kv_scales: torch.Tensor | None = None,
    implementation: str | None = None,
) -> torch.Tensor:
    """Attend to the tokens of the selected blocks that are not after the query.

    ``o_h = Σ_i softmax_i(scale·q_h·k_i)·v_i`` over the tokens ``i ≤ t`` whose block is listed for query t and the KV
    head of h.

    queries: [T, Hq, D], a floating dtype; heads of one group are adjacent.
    keys, values: [S, Hkv, D], same dtype or e4m3; the pools.
    block_ids: [T, Hkv, K_SEL] int32 as select_blocks returns it; read only for rows from their request's
        ``sparse_from`` on, which hold at least the current block. Rows before it attend to all blocks.
    scale: factor of the logits, positive; ``D^−½`` in the released model.
    kv_scales: [2, Hkv] float32, positive, where keys and values are in e4m3, as in sala_kernels.kv_scales.

    Returns [T, Hq, D] in the dtype of the queries; softmax and sums are float32 or better.
    Raises ValueError on a shape that does not fit, and on implementation "cuda" where is_compiled_for is false,
    TypeError on a dtype that does not fit.
    Source: InfLLM-V2 (arXiv 2509.24663), section 3, and the attention of the released modelling code.

    Queries of 0 weigh all tokens the same, and every value is the number of its pool slot. Row 0 reads slots 4 to 7
    and 16 to 19, row 1 slot 20 and row 2 slots 20 and 21:

    >>> queries, values = torch.zeros(3, 1, 1), torch.arange(36.0).view(36, 1, 1)
    >>> block_ids = torch.tensor([[[0, 3, -1]], [[0, -1, -1]], [[0, -1, -1]]]).int()
    >>> sparse_attention(queries, values, values, block_ids, batch, geometry, scale=1.0).flatten()
    tensor([11.5000, 20.0000, 20.5000])
    """
    sizes = check_shapes(
        {"K_SEL": geometry.selected_blocks},
        queries=(queries, "T Hq D"),
        keys=(keys, "S Hkv D"),
        values=(values, "S Hkv D"),
        block_ids=(block_ids, "T Hkv K_SEL"),
    )
    check_groups(sizes["Hq"], sizes["Hkv"])
    check_pools(queries.dtype, kv_scales, keys=keys, values=values)
    check_dtypes(torch.int32, block_ids=block_ids)
    described = queries.device, keys.dtype, sizes["D"], sizes["Hq"] // sizes["Hkv"], geometry.block_size
    if implementation == "cuda" and not is_compiled_for(*described):
        form = "{}, {}, D {}, groups of {} heads, blocks of {} tokens"
        expected = form.format(CUDA_DEVICE, CUDA_DTYPE, CUDA_HEAD_DIM, CUDA_GROUPS, CUDA_BLOCK)
        raise ValueError(f"implementation 'cuda': expected {expected}, got {form.format(*described)}")
    implementation = implementation or serving_implementation(*described)
    module = implementation_of(__name__, implementation, queries)
    return module.sparse_attention(Arguments(queries, keys, values, block_ids, batch, geometry, scale, kv_scales))


def serving_implementation(device: torch.device, dtype: torch.dtype, head_dim: int, group: int, block_size: int) -> str:
    """Name of the implementation that serves calls with ``group`` query heads per KV head, unless one is asked for.

    "cuda" where is_compiled_for is true, else default_implementation of ``device``. ``dtype`` and ``head_dim``
    are those of keys and values, which queries have too unless these are in e4m3; ``block_size`` counts tokens.

    >>> serving_implementation(torch.device("cpu"), torch.bfloat16, head_dim=128, group=16, block_size=64)
    'reference'
    """
    if is_compiled_for(device, dtype, head_dim, group, block_size):
        return "cuda"
    return contract.default_implementation(device)


def is_compiled_for(device: torch.device, dtype: torch.dtype, head_dim: int, group: int, block_size: int) -> bool:
    """Whether there is CUDA C++ for such calls, and what compiles it.

    There is on ``device`` where ``targets`` chooses SHARED_BLOCKS, on Hopper GPUs, for the ``dtype``, ``head_dim``,
    ``group`` (query heads per KV head) and ``block_size`` below:

    >>> CUDA_DTYPE, CUDA_HEAD_DIM, CUDA_GROUPS, CUDA_BLOCK
    (torch.bfloat16, 128, (4, 8, 16), 64)
    >>> is_compiled_for(torch.device("cpu"), torch.bfloat16, head_dim=128, group=16, block_size=64)
    False
    """
    if device.type != "cuda" or group not in CUDA_GROUPS:
        return False
    if (dtype, head_dim, block_size) != (CUDA_DTYPE, CUDA_HEAD_DIM, CUDA_BLOCK):
        return False
    return targets.uses(targets.SHARED_BLOCKS, device) and contract.has_cuda_compiler()
