"""``sglang.launch_server`` with every free block of a selection replaced by a random one.

A model that still finds what it is asked for does not depend on the selection, and cannot tell whether it is right.
Takes the arguments of ``sglang.launch_server``. SGLang's worker processes import this file again, and with it the
replacement.
"""

import runpy
from typing import Any

import torch
from sala_kernels import select_blocks as package
from sala_kernels.layout import PagedBatch, SparseGeometry

select = package.select_blocks


def select_at_random(
    queries: torch.Tensor,
    compressed: torch.Tensor,
    batch: PagedBatch,
    geometry: SparseGeometry,
    scale: float,
    **options: Any,
) -> torch.Tensor:
    """As select_blocks, [T, Hkv, K_SEL] int32; forced blocks stay, the others are drawn without repetition."""
    blocks = select(queries, compressed, batch, geometry, scale, **options)
    end = (blocks.amax(-1, keepdim=True) - geometry.local_blocks).clamp(min=geometry.init_blocks)
    free = (blocks >= geometry.init_blocks) & (blocks < end)
    # A random start and even steps: different blocks, without a loop and of every age.
    candidates = (end - geometry.init_blocks).clamp(min=1)
    step = (candidates // free.sum(-1, keepdim=True).clamp(min=1)).clamp(min=1)
    start = (torch.rand(candidates.shape, device=blocks.device) * candidates).int()
    drawn = geometry.init_blocks + (start + (free.cumsum(-1) - 1) * step) % candidates
    last = torch.iinfo(torch.int32).max  # in the place of −1 while sorting
    chosen = torch.where(free, drawn.int(), blocks).masked_fill(blocks < 0, last).sort(-1).values
    return chosen.masked_fill(chosen == last, -1)


package.select_blocks = select_at_random

if __name__ == "__main__":
    runpy.run_module("sglang.launch_server", run_name="__main__")
