"""What lets SGLang serve MiniCPM-SALA on a machine without an NVIDIA driver.

SGLang's scheduler, pools and prefix cache run on the CPU as they are (``--device cpu``, without its separate
CPU engine). A few places assume an accelerator although nothing behind them needs one; they are opened
here, only on machines without CUDA.
"""

import torch

from sala_sglang.config import SALAConfig

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


def group_without_nccl(original, *args, **kwargs):
    """A process group that communicates through gloo alone; NCCL's communicator can only live on a GPU."""
    return original(*args, **kwargs | {"use_pynccl": False})


def keep_head_counts(original, model_config, *args, **kwargs):
    """SGLang pads head counts that tensor parallelism does not divide; this model replicates KV heads instead."""
    if isinstance(model_config.hf_config, SALAConfig):
        return model_config
    return original(model_config, *args, **kwargs)


# SGLang's functions and what runs around them.
HOOKS = {
    "torch.Tensor.pin_memory": pin_memory_in_place,
    "sglang.srt.arg_groups.mamba_hook._platform_supports_mamba_cache_extra_buffer": allow_state_snapshots,
    "sglang.srt.distributed.parallel_state.GroupCoordinator.__init__": group_without_nccl,
    "sglang.srt.configs.update_config.adjust_config_with_unaligned_cpu_tp": keep_head_counts,
}
