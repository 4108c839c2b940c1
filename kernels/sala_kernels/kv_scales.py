"""Keys and values in FP8: e4m3 (1 sign, 4 exponent and 3 mantissa bits), with a scale for each KV head.

A pool in e4m3 stands for its numbers times the scale of their head; ``kv_scales`` [2, Hkv] float32 are the scales of
keys and of values. They are constants: were they chosen by what a page holds, a page that grows would have to be
rounded anew, and its contents would depend on the chunks of a prompt. A pool of any other dtype has no scales.
"""

import torch

from sala_kernels.contract import check_dtypes, check_shapes

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0  # what is larger becomes this; e4m3 has no infinity
FIRST_CAPABILITY = (8, 9)  # of the GPUs for which Triton converts e4m3: Ada, Hopper, Blackwell


def check_pools(dtype: torch.dtype, kv_scales: torch.Tensor | None, **tensors: torch.Tensor) -> None:
    """Raise TypeError unless all pools, ``tensors``, have ``dtype`` and no scales, or are in e4m3 and have some.

    kv_scales: [2, Hkv] float32, contiguous, or None. Raises ValueError for those of a wrong shape.

    >>> check_pools(torch.float16, None, keys=torch.zeros(4, 2, 8, dtype=torch.float16))
    >>> check_pools(torch.float16, torch.ones(2, 2), keys=torch.zeros(4, 2, 8).to(E4M3))
    >>> check_pools(torch.float16, None, keys=torch.zeros(4, 2, 8).to(E4M3))
    Traceback (most recent call last):
    TypeError: keys: expected dtype torch.float16, got torch.float8_e4m3fn
    """
    check_dtypes(dtype if kv_scales is None else E4M3, **tensors)
    if kv_scales is not None:
        kv_heads = {pool.shape[1] for pool in tensors.values()}
        check_shapes({"Hkv": kv_heads.pop()}, kv_scales=(kv_scales, "2 Hkv"))
        check_dtypes(torch.float32, kv_scales=kv_scales)
        if not kv_scales.is_contiguous():
            raise ValueError(f"kv_scales: expected a contiguous tensor, got strides {kv_scales.stride()}")


def gather_rows(
    pool: torch.Tensor, slots: torch.Tensor, scales: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """What ``slots`` of a pool stand for, [L, Hkv, D] in ``dtype``.

    pool: [S, Hkv, D], any floating dtype.
    slots: [L], integers.
    scales: [Hkv] float32, the pool's own of ``kv_scales``; None: its numbers as they are.

    >>> pool = torch.tensor([1.0, 1.1, 1000.0]).clamp(max=E4M3_MAX).to(E4M3).view(3, 1, 1)
    >>> gather_rows(pool, torch.tensor([1, 2]), torch.tensor([2.0]), torch.float32).flatten()
    tensor([  2.2500, 896.0000])
    """
    # torch indexes bytes everywhere, but not e4m3.
    rows = pool.view(torch.uint8)[slots].view(E4M3) if pool.dtype == E4M3 else pool[slots]
    return rows.to(dtype) if scales is None else rows.to(dtype) * scales.to(dtype)[:, None]
