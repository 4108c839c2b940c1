"""What lets SGLang serve MiniCPM-SALA on a machine without an NVIDIA driver.

SGLang's scheduler, pools and prefix cache run on the CPU as they are (``--device cpu``, without its separate
CPU engine). A few places assume an accelerator although nothing behind them needs one; they are opened
here, only on machines without CUDA.
"""

import os
from collections.abc import Callable
from typing import Any

import torch

from sala_sglang.config import SALAConfig

# Sizes unless the user gives others. SGLang would size the pools for most of the machine's memory and touch all of
# it, which takes minutes and leaves nothing for anybody else; and the share it computes for them assumes a GPU's
# memory, down to a negative one for unchunked prefill.
MEMORY_DEFAULTS = {"max_total_tokens": 131_072, "max_mamba_cache_size": 64, "mem_fraction_static": 0.8}


def without_cuda() -> bool:
    """Whether this machine has no usable NVIDIA GPU and driver."""
    return not torch.cuda.is_available()


def pin_memory_in_place(original: Callable, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Pinned memory speeds up copies to a GPU; without one, pageable memory serves and pinning would raise."""
    return tensor


def allow_state_snapshots(original: Callable) -> bool:
    """The snapshots of recurrent states for the prefix cache are plain tensor writes here."""
    return True


def group_without_nccl(original: Callable, *args: Any, **kwargs: Any) -> None:
    """A process group that communicates through gloo alone; NCCL's communicator can only live on a GPU."""
    original(*args, **kwargs | {"use_pynccl": False})


def keep_head_counts(original: Callable, model_config: Any, *args: Any, **kwargs: Any) -> Any:
    """SGLang pads head counts that tensor parallelism does not divide; this model replicates KV heads instead."""
    if isinstance(model_config.hf_config, SALAConfig):
        return model_config
    return original(model_config, *args, **kwargs)


# SGLang's functions and what runs around them.
HOOKS: dict[str, Callable] = {
    "torch.Tensor.pin_memory": pin_memory_in_place,
    "sglang.srt.arg_groups.mamba_hook._platform_supports_mamba_cache_extra_buffer": allow_state_snapshots,
    "sglang.srt.distributed.parallel_state.GroupCoordinator.__init__": group_without_nccl,
    "sglang.srt.configs.update_config.adjust_config_with_unaligned_cpu_tp": keep_head_counts,
}


class UnpinnedTorch:
    """torch, except that new tensors are never pinned."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(torch, name)
        if name not in ("empty", "tensor", "zeros"):
            return found
        return lambda *args, **kwargs: found(*args, **kwargs | {"pin_memory": False})


def unpin_lora() -> None:
    """Let SGLang's LoRA make its tables in pageable memory."""
    from sglang.srt.lora import layers
    from sglang.srt.lora.backend import torch_backend

    for module in (layers, torch_backend):
        module.torch = UnpinnedTorch()


def provide_host_copies() -> None:
    """Let SGLang's hierarchical cache copy with torch: its library has the copies for GPUs only.

    Nothing is pinned, and no 10 GiB are left free, which would be more than a small machine has.
    """
    from sglang.srt.mem_cache import memory_pool_host
    from sglang.srt.mem_cache.pool_host import base, common, mamba, mha

    for module in (memory_pool_host, mamba, mha):
        module.transfer_kv_all_layer_direct_lf_pf = copy_layers_to_host
        module.transfer_kv_per_layer_direct_pf_lf = copy_layer_to_device
        module.torch = UnpinnedTorch()  # makes the tensors that files are read to
    common._cuda_host_register = lambda buffer, granularity_bytes=None: None
    base.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0


def send_without_early_pages() -> None:
    """Let SGLang send cached pages behind the step: before it, it would record an event of CUDA."""
    os.environ["SGLANG_DISAGG_PREFILL_EARLY_SEND_CACHED_PREFIX"] = "0"


def send_without_event(original: Callable, sender: Any, *args: Any, **kwargs: Any) -> None:
    """SGLang copies the numbers of pages from a GPU through pinned memory; on the CPU they are there."""
    original(sender, *args, **kwargs)
    sender.supports_host_tensor_indices = False


# The same where prefill and decode are apart.
DISAGGREGATION_HOOKS: dict[str, Callable] = {
    "sglang.srt.disaggregation.mooncake.conn.MooncakeKVSender.__init__": send_without_event,
}


def copy_layers_to_host(
    src_ptrs: list[torch.Tensor],
    dst_ptrs: list[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """Copy rows of all layers to host pages; the names of the arguments are SGLang's.

    src_ptrs: [rows, ...] per layer, for the first host buffer and then for the next. dst_ptrs: host buffers
    [pages, layers, page_size, ...]. src_indices, dst_indices: rows of whole pages, here and there.
    """
    pages = dst_indices[::page_size] // page_size
    layers = len(src_ptrs) // len(dst_ptrs)
    for index, rows in enumerate(src_ptrs):
        dst_ptrs[index // layers][pages, index % layers] = rows[src_indices].unflatten(0, (-1, page_size))


def copy_layer_to_device(
    src_ptrs: list[torch.Tensor],
    dst_ptrs: list[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    layer_id: int,
    page_size: int,
) -> None:
    """Copy host pages to rows of one layer: the reverse of ``copy_layers_to_host``, for one layer of each buffer."""
    pages = src_indices[::page_size] // page_size
    for host, rows in zip(src_ptrs, dst_ptrs, strict=True):
        rows[dst_indices] = host[pages, layer_id].flatten(0, 1)
