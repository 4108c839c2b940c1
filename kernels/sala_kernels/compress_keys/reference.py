"""The specification of compress_keys in code."""

import torch

from sala_kernels.contract import working_dtype
from sala_kernels.kv_scales import gather_rows
from sala_kernels.layout import COARSE_FACTOR, PagedBatch, SparseGeometry


def compress_keys(
    keys: torch.Tensor,
    compressed: torch.Tensor,
    batch: PagedBatch,
    geometry: SparseGeometry,
    kv_scales: torch.Tensor | None,
) -> None:
    scales = None if kv_scales is None else kv_scales[0]
    fine, coarse = compressed.split([geometry.fine_rows, geometry.coarse_rows], dim=2)
    for request in range(batch.size):
        slots = batch.slots(request)
        _, positions = batch.rows(request)
        for rows, factor in ((fine, 1), (coarse, COARSE_FACTOR)):
            size, stride = factor * geometry.kernel_size, factor * geometry.kernel_stride
            for end in positions[(positions + 1) % stride == 0].tolist():
                if end + 1 < size:
                    continue
                window = gather_rows(keys, slots[end + 1 - size : end + 1], scales, working_dtype(compressed))
                slot = (end + 1) // stride - 1
                page = slots[end] // geometry.block_size
                rows[page, :, slot % rows.shape[2]] = window.mean(0).to(compressed.dtype)
