"""Keeps dense and sparse prompts apart in SGLang's prefix cache, where what they compute differs.

A prompt of fewer than ``dense_len`` tokens attends to everything, a longer one to selected blocks. As long as every
block is selected both are the same, and their pages are shared. Behind that, hidden states differ, and with them
keys, values and recurrent states: a page of one kind must not serve the other, or an answer would depend on what was
asked before. So in the cache's keys the token ids of dense prompts carry a mark there.
"""

from array import array
from contextvars import ContextVar
from typing import Any

import numpy
import torch

from sala_sglang import options
from sala_sglang.config import SALAConfig

DENSE_MARK = 1 << 32  # beyond every vocabulary; keys are int64

_checkpointed: ContextVar[Any] = ContextVar("request whose tokens are being inserted", default=None)


class PromptKinds:
    """Hooks around SGLang's cache for prompts that are dense below ``dense_len`` tokens.

    selected_tokens: length up to which selection takes every block.
    """

    def __init__(self, dense_len: int, selected_tokens: int):
        self.dense_len, self.selected_tokens = dense_len, selected_tokens

    @classmethod
    def of(cls, config: SALAConfig) -> "PromptKinds":
        geometry = config.sparse_geometry
        return cls(options.dense_len_tokens(config), geometry.selected_blocks * geometry.block_size)

    def hooks(self) -> dict[str, Any]:
        """SGLang's functions and what runs around them."""
        return {
            "sglang.srt.mem_cache.common._req_radix_key": self.match,
            "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.checkpoint_into_tree": self.checkpoint,
            "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.insert": self.insert,
            "sglang.srt.managers.schedule_batch.ScheduleBatch.prepare_for_extend": self.prepare_for_extend,
        }

    def match(self, original, tree_cache, request, *args, **kwargs):
        """The key by which a waiting request looks for its prefix."""
        # Kept for the inserts: tokens generated later do not change what the prompt was.
        request.sala_prompt_tokens = prompt_tokens(request)
        return self.mark(original(tree_cache, request, *args, **kwargs), request)

    def checkpoint(self, original, cache, request, **kwargs):
        token = _checkpointed.set(request)
        try:
            return original(cache, request, **kwargs)
        finally:
            _checkpointed.reset(token)

    def insert(self, original, cache, params):
        request = _checkpointed.get()
        if request is not None:
            params.key = self.mark(params.key, request)
        return original(cache, params)

    def prepare_for_extend(self, original, batch):
        """A retracted request is prefilled again with what it had generated; all chunks of that are of one kind."""
        original(batch)
        if any(request.output_ids for request in batch.reqs):
            lengths = [prompt_tokens(request) for request in batch.reqs]
            batch.orig_seq_lens = torch.tensor(lengths, dtype=torch.int32, device=batch.orig_seq_lens.device)

    def mark(self, key, request):
        """``key`` for the kind of prompt that ``request`` is."""
        if not self.selected_tokens < self.dense_len < options.NEVER_SPARSE:
            return key  # one kind only
        if request.sala_prompt_tokens >= self.dense_len or len(key.token_ids) <= self.selected_tokens:
            return key
        ids = numpy.array(key.token_ids, dtype=numpy.int64)
        ids[self.selected_tokens :] |= DENSE_MARK
        return type(key)(array("q", ids.tobytes()), key.extra_key, key.is_bigram, key.limit, key.cache_salt)


def prompt_tokens(request: Any) -> int:
    """Tokens that a request waiting for its prefill brings, those it had generated before a retraction included."""
    return len(request.origin_input_ids) + len(request.output_ids)
