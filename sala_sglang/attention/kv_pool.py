"""KV pool of the sparse layers with the compressed keys as its companion."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from sala_kernels.kv_scales import E4M3
from sala_kernels.layout import SparseGeometry
from sala_kernels.store_kv import store_kv
from sglang.srt.constants import GPU_MEMORY_TYPE_KV_CACHE
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool, MHATokenToKVPool, unwrap_write_loc

if TYPE_CHECKING:  # imports SGLang's copy kernels
    from sglang.srt.mem_cache.pool_host.host_pool_decl import HostPoolDecl


class SalaKVPool(MHATokenToKVPool):
    """Keys and values of the sparse layers; every page also holds its compressed keys.

    ``compressed[i]``: [pages, Hkv, page_rows, D] of the i-th sparse layer. A compressed row lives with the
    page of the last token of its window, so it depends only on the prefix that the page ends and is shared,
    evicted and reused exactly as the page is. They have the model's dtype, also where keys and values are in FP8.
    """

    geometry: SparseGeometry  # set by pool_class, as the next one is
    compressed_dtype: torch.dtype

    def _create_buffers(self) -> None:
        if self.post_capture_active:
            raise ValueError(
                "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING = 1 is not supported (compressed keys are allocated once, with "
                "their pages); allowed: 0"
            )
        super()._create_buffers()
        # One page beyond the capacity: page 0 takes the writes of padding rows.
        pages = self.size // self.page_size + 1
        shape = (pages, self.head_num, self.geometry.page_rows, self.head_dim)
        memory_pool = torch.cuda.use_mem_pool(self.custom_mem_pool) if self.enable_custom_mem_pool else nullcontext()
        with self.memory_saver_adapter.region(GPU_MEMORY_TYPE_KV_CACHE), memory_pool:
            self.compressed = [
                torch.zeros(shape, dtype=self.compressed_dtype, device=self.device) for _ in range(self.layer_num)
            ]

    def _clear_buffers(self) -> None:
        super()._clear_buffers()
        del self.compressed

    def set_kv_buffer(
        self, layer: Any, loc_info: Any, cache_k: torch.Tensor, cache_v: torch.Tensor, *args: Any, **options: Any
    ) -> None:
        """Write k and v [T, Hkv, D] of ``layer``; in FP8 with the scales of its heads, and without changing them.

        SGLang's own way has one scale for all heads and divides k and v in place.
        """
        if self.dtype != E4M3:
            return super().set_kv_buffer(layer, loc_info, cache_k, cache_v, *args, **options)
        compact_id = options["layer_id_override"]
        keys, values = self._get_key_buffer(compact_id), self._get_value_buffer(compact_id)
        store_kv(cache_k, cache_v, keys, values, unwrap_write_loc(loc_info)[0], layer.kv_scales)

    def _init_kv_copy_and_warmup(self) -> None:
        """Nothing: drafts are chains, of which accepted tokens stay where they are."""

    def get_kv_size_bytes(self) -> tuple[int, int]:
        """Bytes of keys, compressed ones included, and of values."""
        key_bytes, value_bytes = super().get_kv_size_bytes()
        return key_bytes + sum(rows.nbytes for rows in self.compressed), value_bytes

    def host_pool_decls(self) -> tuple[HostPoolDecl, ...]:
        """What the hierarchical cache keeps on the host: pages, and their compressed keys."""
        from sala_sglang.attention.host_pool import compressed_keys_declaration  # imports SGLang's copy kernels

        return *super().host_pool_decls(), compressed_keys_declaration(self)

    def get_cpu_copy(
        self, indices: torch.Tensor, mamba_indices: torch.Tensor | None = None, req_pool_index: int | None = None
    ) -> tuple[Any, list[torch.Tensor]]:
        pages = self._pages(indices)
        return super().get_cpu_copy(indices), [rows[pages].cpu() for rows in self.compressed]

    def load_cpu_copy(
        self,
        kv_cache_cpu: tuple[Any, list[torch.Tensor]],
        indices: torch.Tensor,
        mamba_indices: torch.Tensor | None = None,
        req_pool_index: int | None = None,
    ) -> None:
        keys_values, saved = kv_cache_cpu
        super().load_cpu_copy(keys_values, indices)
        pages = self._pages(indices)
        for rows, copy in zip(self.compressed, saved, strict=True):
            rows[pages] = copy.to(rows.device)

    def _pages(self, indices: torch.Tensor) -> torch.Tensor:
        return indices[:: self.page_size] // self.page_size


def pool_class(geometry: SparseGeometry, dtype: torch.dtype) -> type[SalaKVPool]:
    """The pool class of a model in ``dtype``: SGLang constructs pools by class, and tells them nothing of the model."""
    return type("SalaKVPool", (SalaKVPool,), {"geometry": geometry, "compressed_dtype": dtype})


def layer_buffers(pool: HybridLinearKVPool, layer_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values [slots, Hkv, D] and compressed keys [pages, Hkv, page_rows, D] of a sparse layer."""
    keys, values = pool.get_kv_buffer(layer_id)  # waits for a layer that is being loaded
    compact_id = pool.full_attention_layer_id_mapping[layer_id]
    return keys, values, pool.full_kv_pool.compressed[compact_id]


def scales_of(layer: Any, keys: torch.Tensor) -> torch.Tensor | None:
    """What the operators take as ``kv_scales`` of a layer with the pool ``keys``."""
    return layer.kv_scales if keys.dtype == E4M3 else None
