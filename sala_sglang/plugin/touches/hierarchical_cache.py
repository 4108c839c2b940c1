"""Touches of workers with pages in host memory: ``hierarchical_cache.py``, ``attention/host_pool.py``, ``cpu.py``."""

from sala_sglang.plugin.touches.touch import (
    AROUND,
    HIERARCHICAL,
    NO_CUDA,
    OFFICIAL,
    REGISTRY,
    REPLACED,
    SUBCLASS,
    WORKER,
    Touch,
)

_ANYWHERE = (
    Touch(
        target="sglang.srt.mem_cache.pool_host.host_pool_decl.HostPoolDecl",
        how=REGISTRY,
        process=WORKER,
        when=HIERARCHICAL,
        why="has compressed keys copied to the host and back with their pages, under the name of SGLang's indexer keys",
        until=OFFICIAL,
        upstream="sgl-project/sglang#40608",
    ),
    Touch(
        target="sglang.srt.mem_cache.memory_pool_host.DeepSeekV4PagedHostPool",
        how=SUBCLASS,
        process=WORKER,
        names=("get_ksize_per_token", "get_size_per_token"),
        when=HIERARCHICAL,
        why="the host memory of compressed keys: rows of bytes per page and layer, which is what this class copies",
        until="SGLang has such a pool under a name that is no model's",
    ),
    Touch(
        target="sglang.srt.mem_cache.pool_host.mamba.MambaPoolHost._copy_tensor_pf_lf",
        how=AROUND,
        process=WORKER,
        when=HIERARCHICAL,
        why="copying the empty convolution part of a state to the device never ends",
        until="SGLang skips empty parts",
    ),
    Touch(
        target="sglang.srt.mem_cache.pool_host.mamba.MambaPoolHost._copy_tensor_all_layers_lf_pf",
        how=AROUND,
        process=WORKER,
        when=HIERARCHICAL,
        why="copying the empty convolution part of a state to the host never ends",
        until="SGLang skips empty parts",
    ),
    Touch(
        target="sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.attach_storage_backend",
        how=AROUND,
        process=WORKER,
        when=HIERARCHICAL,
        why="other storage backends than file would be attached while the server runs",
        until="SGLang's check of arguments covers what is attached later",
    ),
    Touch(
        target="sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.reset",
        how=AROUND,
        process=WORKER,
        when=HIERARCHICAL,
        why="files of weights that have been replaced must not be found",
        until="SGLang names files by the weights too",
    ),
    Touch(
        target="sglang.srt.mem_cache.hicache_storage.HiCacheFile",
        how=SUBCLASS,
        process=WORKER,
        names=("batch_get", "get", "set", "_get_suffixed_key"),
        when=HIERARCHICAL,
        why="files of other weights, dtypes or layouts are not found, and damaged ones not used",
        until="SGLang's files say what is in them, and have a checksum",
    ),
    Touch(
        target="sglang.srt.mem_cache.storage.backend_factory.StorageBackendFactory.register_backend",
        how=REGISTRY,
        process=WORKER,
        when=HIERARCHICAL,
        why="the storage backend file is the class above",
        until="the class above can go",
    ),
)

_ON_CPU = (
    *(
        Touch(
            target=f"sglang.srt.mem_cache.{module}.{name}",
            how=REPLACED,
            process=WORKER,
            when=f"{HIERARCHICAL} on {NO_CUDA}",
            why="SGLang's library has copies between pools and host for GPUs only",
            until="SGLang copies with torch on a CPU",
        )
        for module in ("memory_pool_host", "pool_host.mamba", "pool_host.mha")
        for name in ("transfer_kv_all_layer_direct_lf_pf", "transfer_kv_per_layer_direct_pf_lf")
    ),
    *(
        Touch(
            target=f"sglang.srt.mem_cache.{module}.torch",
            how=REPLACED,
            process=WORKER,
            when=f"{HIERARCHICAL} on {NO_CUDA}",
            why="what is read from files goes to pinned tensors, which need a driver",
            until="SGLang pins only where there is an accelerator",
        )
        for module in ("memory_pool_host", "pool_host.mamba", "pool_host.mha")
    ),
    Touch(
        target="sglang.srt.mem_cache.pool_host.common._cuda_host_register",
        how=REPLACED,
        process=WORKER,
        when=f"{HIERARCHICAL} on {NO_CUDA}",
        why="host memory cannot be registered with a driver that is not there",
        until="SGLang registers it only where there is an accelerator",
    ),
    Touch(
        target="sglang.srt.mem_cache.pool_host.base.HICACHE_HOST_MEMORY_RESERVE_BYTES",
        how=REPLACED,
        process=WORKER,
        when=f"{HIERARCHICAL} on {NO_CUDA}",
        why="10 GiB that stay free would be more than a small machine has",
        until="the reserve is an option, as the share of what is behind it is one",
        upstream="sgl-project/sglang#40135",
    ),
)

TOUCHES = (*_ANYWHERE, *_ON_CPU)
