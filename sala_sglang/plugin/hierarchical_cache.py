"""What of SGLang's hierarchical cache works with MiniCPM-SALA, and what runs around it.

SGLang copies pages and recurrent states to host memory and back (``--enable-hierarchical-cache``); the compressed keys
of a page travel with it (``attention/host_pool.py``), also to files and back (``storage.py``).

A copy of a state has two parts, what a convolution remembers and the recurrent state. Lightning layers have no
convolution. SGLang tells a strided buffer by rows that are further apart than they are long, finds the empty part to be
one (stride 1, length 0), copies it to a buffer of the same shape to get rid of the stride, and never comes to an end.
So the empty part is left out.
"""

from collections.abc import Callable
from typing import Any

LAYOUTS = ("page_first", "page_first_direct")
STORAGE_BACKENDS = (None, "file")
STORAGE_REASONS = {
    "mooncake": "ranks would write their compressed keys over each other's, and states have an empty part it rejects",
    "nixl": "its files have no checksum, and their names tell neither dtypes nor weights apart",
}
OTHER_STORAGE = "it was not tried with compressed keys and states; files have checksums, and names of their own"


def argument_limits(enabled: bool, device: str, storage: str | None) -> tuple[tuple[str, tuple, str], ...]:
    """(field, the values that work, what is missing for the others) for ServerArgs with the cache ``enabled``.

    storage: the storage backend that is asked for.
    """
    if not enabled:
        return (("hicache_storage_backend", (None,), "it keeps what --enable-hierarchical-cache has in host memory"),)
    backends = ("direct",) if device == "cpu" else ("kernel", "direct")
    return (
        ("hicache_mem_layout", LAYOUTS, "SGLang's MambaPoolHost copies recurrent states in these layouts only"),
        ("hicache_io_backend", backends, f"SGLang has no copies of recurrent states for it on {device}"),
        ("hicache_storage_backend", STORAGE_BACKENDS, storage_reason(storage)),
    )


def storage_reason(backend: str | None) -> str:
    """Why a storage backend other than STORAGE_BACKENDS does not work."""
    return STORAGE_REASONS.get(backend or "", OTHER_STORAGE)


def skip_empty(original: Callable, *args: Any, **kwargs: Any) -> None:
    """A copy of one part of recurrent states to the tensor ``dst``, if there is anything to copy."""
    dst = kwargs["dst"] if "dst" in kwargs else args[1]
    if dst.numel():
        original(*args, **kwargs)


def attach_storage(original: Callable, cache: Any, storage_backend: str, **kwargs: Any) -> tuple[bool, str]:
    """The answer to a storage backend that is attached while the server runs."""
    if storage_backend in STORAGE_BACKENDS:
        return original(cache, storage_backend, **kwargs)
    allowed = ", ".join(repr(name) for name in STORAGE_BACKENDS if name)
    return False, (
        f"MiniCPM-SALA: hicache_storage_backend = {storage_backend!r} is not supported "
        f"({storage_reason(storage_backend)}); allowed: {allowed}"
    )


_STATES = "sglang.srt.mem_cache.pool_host.mamba.MambaPoolHost"
# SGLang's functions and what runs around them.
HOOKS: dict[str, Callable] = {
    f"{_STATES}._copy_tensor_pf_lf": skip_empty,
    f"{_STATES}._copy_tensor_all_layers_lf_pf": skip_empty,
    "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.attach_storage_backend": attach_storage,
}
