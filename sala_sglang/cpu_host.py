"""What lets SGLang serve MiniCPM-SALA on a machine without an NVIDIA driver.

SGLang's scheduler, pools and prefix cache run on the CPU as they are (``--device cpu``, without its separate
CPU engine). Two places assume an accelerator although nothing behind them needs one; both are opened here,
only on machines without CUDA.
"""

import torch

# Sizes unless the user gives others. SGLang would size the pools for most of the machine's memory and touch all of
# it, which takes minutes and leaves nothing for anybody else; and the share it computes for them assumes a GPU's
# memory, down to a negative one for unchunked prefill.
MEMORY_DEFAULTS = {"max_total_tokens": 131_072, "max_mamba_cache_size": 64, "mem_fraction_static": 0.8}


def without_cuda() -> bool:
    """Whether this machine has no usable NVIDIA GPU and driver."""
    return not torch.cuda.is_available()


def pin_memory_in_place(original, tensor: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """Pinned memory speeds up copies to a GPU; without one, pageable memory serves and pinning would raise."""
    return tensor


def allow_state_snapshots(original) -> bool:
    """The snapshots of recurrent states for the prefix cache are plain tensor writes here."""
    return True
