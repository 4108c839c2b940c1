"""Files of pages, compressed keys and states that outlive a server (``--hicache-storage-backend file``).

SGLang names a file by the hash of all tokens up to the end of its page, and by the model's name and rank. What is in
it depends on more, and is raw bytes that would be taken for keys and values whatever they are. So:

**The name has a fingerprint** in place of the model's name, of everything that decides about the bytes: configuration,
dtypes, layout, versions, and the weights themselves, also those of other ranks. What was written with others is not
found. Weights may be replaced while the server runs; the fingerprint is taken anew whenever the prefix cache is
emptied, as SGLang does then.

**The content has a seal**, a checksum of its bytes and its name. A file whose seal is not right is removed and counts
as missing, so that the page is computed and written again.
"""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import xxhash
from sglang.srt.mem_cache.hicache_storage import HiCacheFile, HiCacheStorageConfig
from sglang.srt.mem_cache.storage import StorageBackendFactory
from sglang.srt.mem_cache.utils import get_hash_str
from sglang.srt.runtime_context import get_parallel

from sala_sglang.plugin.fingerprint import digest, facts
from sala_sglang.plugin.weight_digests import digest_of_ranks

logger = logging.getLogger(__name__)

SEAL_BYTES = 16
READERS = 8  # reads of one batch at a time: a single one leaves a disk idle between two files

_served: list[Any] = []  # the model runner whose pages are stored


def serve(runner: Any) -> None:
    """Have files belong to ``runner``, SGLang's model runner of this process, and be this module's."""
    _served[:] = [runner]
    StorageBackendFactory.register_backend("file", __name__, PageFiles.__name__)


def fingerprint(runner: Any, page_first: bool) -> str:
    """What decides about the bytes of a file beside tokens and rank, as 32 hexadecimal digits.

    page_first: whether host memory is laid out as ``page_first``, and not as ``page_first_direct``.
    """
    model, parallel = runner.model_config, get_parallel()
    known = facts(model.hf_config, model.dtype, runner.kv_cache_dtype)
    weights = digest_of_ranks(runner.model, parallel.tp_group, parallel.pp_group)
    return digest(known | {"page_first": page_first, "weights": weights})


class PageFiles(HiCacheFile):
    """SGLang's directory of files, with fingerprints in their names and seals at their ends."""

    def __init__(self, storage_config: HiCacheStorageConfig):
        self.storage_config = storage_config
        self.fingerprint = ""
        self.readers = ThreadPoolExecutor(READERS, thread_name_prefix="page-files")
        get_hash_str([0], page_size=1)  # compiled at its first use: better now than with the first request
        self.renew()

    def renew(self) -> None:
        """Take the fingerprint again; files of another one are out of reach from then on."""
        (runner,) = _served
        found = fingerprint(runner, self.storage_config.is_page_first_layout)
        if found != self.fingerprint:
            self.fingerprint = found
            super().__init__(dataclasses.replace(self.storage_config, model_name=found))

    def get(self, key: str, target_location: torch.Tensor, target_sizes: Any = None) -> torch.Tensor | None:
        """The content of a file as a tensor like ``target_location``; None where there is none that is whole."""
        sealed = torch.empty(target_location.nbytes + SEAL_BYTES, dtype=torch.uint8)
        try:
            if super().get(key, sealed) is None:
                return None
        except OSError as error:
            self._remove(key, str(error))
            return None
        content, seal = sealed[:-SEAL_BYTES], sealed[-SEAL_BYTES:]
        if bytes(seal.numpy()) != self._seal(key, content):
            self._remove(key, "its checksum is wrong")
            return None
        return content.view(target_location.dtype)

    def set(self, key: str, value: torch.Tensor, target_location: Any = None, target_sizes: Any = None) -> bool:
        """Write a file; whether it is there afterwards. A disk that is full costs only the file."""
        if not self.exists(key):
            content = value.contiguous().flatten().view(torch.uint8)
            value = torch.cat((content, torch.frombuffer(bytearray(self._seal(key, content)), dtype=torch.uint8)))
        return super().set(key, value)

    def batch_get(
        self, keys: list[str], target_locations: Sequence[torch.Tensor], target_sizes: Any = None
    ) -> list[torch.Tensor | None]:
        return list(self.readers.map(self.get, keys, target_locations))

    def close(self) -> None:
        self.readers.shutdown()

    def _seal(self, key: str, content: torch.Tensor) -> bytes:
        checksum = xxhash.xxh3_128(self._get_suffixed_key(key).encode())
        checksum.update(content.numpy().data)
        return checksum.digest()

    def _remove(self, key: str, reason: str) -> None:
        name = self._get_suffixed_key(key)
        logger.warning("Removed %s.bin from %s: %s", name, self.file_path, reason)
        if self.metadata_cache is not None:
            self.metadata_cache.remove(name)
        try:
            os.remove(os.path.join(self.file_path, f"{name}.bin"))
        except OSError as error:
            logger.warning("It could not be removed: %s", error)


def renew_after_reset(original: Callable, cache: Any) -> None:
    """SGLang empties the prefix cache when weights have been replaced, and on request."""
    original(cache)
    files = getattr(cache.cache_controller, "storage_backend", None)
    if isinstance(files, PageFiles):
        files.renew()


# SGLang's functions and what runs around them.
HOOKS: dict[str, Callable] = {"sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.reset": renew_after_reset}
