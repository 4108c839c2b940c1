"""Host memory for the compressed keys of pages that SGLang's hierarchical cache keeps there.

SGLang brings pages back layer by layer, and the forward pass waits for each layer when it asks the pool for its
buffers. Whatever else belongs to a page is copied with it, under the same indices and before the same wait, when the
pool declares it: here the compressed keys, one row of bytes per page and layer.
"""

from typing import Any

import torch
from sglang.srt.mem_cache.hicache_storage import PoolName
from sglang.srt.mem_cache.memory_pool_host import DeepSeekV4PagedHostPool
from sglang.srt.mem_cache.pool_host import HostKVCache
from sglang.srt.mem_cache.pool_host.host_pool_decl import HostPoolDecl, HostPoolStorageInfo


def compressed_keys_declaration(pool: Any) -> HostPoolDecl:
    """What SGLang shall keep on the host beside the pages of ``pool``, a SalaKVPool."""
    rows = pool.compressed[0]
    page_bytes = rows[0].nbytes
    return HostPoolDecl(
        pool_name=PoolName.INDEXER,
        device_pool=pool,
        indices_from_pool=PoolName.KV,
        layout_source=PoolName.KV,
        storage_info=HostPoolStorageInfo(bytes_per_token_per_layer=-(-page_bytes // pool.page_size), dtype=rows.dtype),
        host_pool_builder=CompressedKeysBuilder(),
    )


class CompressedKeysBuilder:
    """Makes the host pool of a declaration, as SGLang's ``HostPoolBuilder`` has it."""

    def validate(
        self, *, decl: HostPoolDecl, transfer_page_size: int, packed_draft_device_pools: tuple[Any, ...]
    ) -> None:
        """Raise ValueError where pages are not copied whole, or a draft model's pages are to be copied with them."""
        page = decl.device_pool.page_size
        if transfer_page_size != page:
            raise ValueError(f"transfer_page_size: got {transfer_page_size}, allowed is {page}, the sparse block")
        if packed_draft_device_pools:
            raise ValueError(f"packed_draft_device_pools: got {len(packed_draft_device_pools)}, allowed is none")

    def build(
        self,
        *,
        decl: HostPoolDecl,
        anchor_host: HostKVCache,
        allocator_type: str,
        packed_draft_device_pools: tuple[Any, ...],
    ) -> "CompressedKeysHostPool":
        return CompressedKeysHostPool(decl.device_pool, anchor_host, allocator_type)


class CompressedKeysHostPool(DeepSeekV4PagedHostPool):
    """Compressed keys on the host: one row of bytes for each page of ``anchor_host`` and each sparse layer."""

    def __init__(self, pool: Any, anchor_host: HostKVCache, allocator_type: str):
        rows = [layer.flatten(1).view(torch.uint8) for layer in pool.compressed]
        super().__init__(
            pool_name="compressed_keys",
            device_buffers=rows,
            item_bytes=rows[0].shape[1],
            num_host_pages=anchor_host.page_num,
            slot_page_size=anchor_host.page_size,
            layout=anchor_host.layout,
            device=anchor_host.device,
            pin_memory=anchor_host.pin_memory,
            allocator_type=allocator_type,
            page_aligned_only=True,
        )
        self.size_per_token = self.get_size_per_token()

    def get_size_per_token(self) -> int:
        """Bytes per token over all layers, rounded up."""
        return -(-self.layer_num * self.item_bytes // self.slot_page_size)

    get_ksize_per_token = get_size_per_token
