"""The specification of store_kv in code."""

import torch

from sala_kernels.kv_scales import E4M3, E4M3_MAX


def store_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    kv_scales: torch.Tensor,
) -> None:
    for rows, pool, scales in ((k, keys, kv_scales[0]), (v, values, kv_scales[1])):
        quotients = rows.float() / scales[:, None]
        rounded = quotients.clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)
        pool.view(torch.uint8)[slots] = rounded.view(torch.uint8)  # torch writes bytes at indices, but no e4m3
