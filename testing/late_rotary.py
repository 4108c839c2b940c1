"""``sglang.launch_server`` with wrong rotary positions from LATE tokens on: an error that early tokens do not show.

Takes the arguments of ``sglang.launch_server``. SGLang's worker processes import this file again, and with it the
replacement.
"""

import runpy
from typing import Any

import torch
from sala_kernels import qk_norm_rope as package

LATE = 1024

right = package.qk_norm_rope


def rotate_too_far(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    positions: torch.Tensor,
    *rest: Any,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As qk_norm_rope, with the distances of late tokens doubled."""
    return right(q, k, q_weight, k_weight, positions + (positions - LATE).clamp(min=0), *rest, **options)


package.qk_norm_rope = rotate_too_far

if __name__ == "__main__":
    runpy.run_module("sglang.launch_server", run_name="__main__")
