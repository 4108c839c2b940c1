"""Writing of keys and values into pools in FP8."""

import torch

from sala_kernels.contract import check_dtypes, check_shapes, implementation_of
from sala_kernels.kv_scales import check_pools


def store_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    kv_scales: torch.Tensor,
    *,
    implementation: str | None = None,
) -> None:
    """Write rows into the pools: ``keys[slots[t]] = e4m3(clamp(k[t] / scale, ±448))``, and values likewise.

    k, v: [T, Hkv, D], a floating dtype; not changed.
    keys, values: [S, Hkv, D], dtype e4m3; the pools, written in place at ``slots``.
    slots: [T] int64. Of rows with the same slot any one may stay.
    kv_scales: [2, Hkv] float32, those of keys and of values.

    Quotients are float32 and rounded once, to nearest even; NaN stays NaN.
    Raises ValueError on a shape that does not fit, TypeError on a dtype that does not fit.
    Source: OCP 8-bit Floating Point Specification (OFP8), revision 1.0, for e4m3 and its conversion with saturation.

    >>> keys, values = (torch.zeros(4, 1, 2).to(torch.float8_e4m3fn) for _ in range(2))
    >>> k, v = torch.tensor([[[1.1, 1000.0]]]), torch.tensor([[[3.0, -5.0]]])
    >>> store_kv(k, v, keys, values, torch.tensor([2]), torch.tensor([[1.0], [2.0]]))
    >>> keys[2].float(), values[2].float()  # values stand for 3 and −5
    (tensor([[  1.1250, 448.0000]]), tensor([[ 1.5000, -2.5000]]))
    """
    check_shapes(
        k=(k, "T Hkv D"),
        v=(v, "T Hkv D"),
        keys=(keys, "S Hkv D"),
        values=(values, "S Hkv D"),
        slots=(slots, "T"),
    )
    check_dtypes(k.dtype, v=v)
    check_dtypes(torch.int64, slots=slots)
    check_pools(k.dtype, kv_scales, keys=keys, values=values)
    implementation_of(__name__, implementation, k).store_kv(k, v, keys, values, slots, kv_scales)
