"""The specification of qk_norm_rope in code."""

import torch

from sala_kernels.contract import working_dtype
from sala_kernels.qk_norm_rope import Arguments


def qk_norm_rope(arguments: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, q_weight, k_weight, positions, inv_freq, eps = arguments
    # Angles are float32 in every precision: the model's own tables are.
    angles = (positions.float()[:, None] * inv_freq)[:, None]
    return _rotate(_norm(q, q_weight, eps), angles), _rotate(_norm(k, k_weight, eps), angles)


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.to(working_dtype(x))
    return (wide * (wide.pow(2).mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype) * weight


def _rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    first, second = x.to(working_dtype(x)).chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
