"""Keeps SGLang's prefix cache exact: a hit continues from what a miss would have computed.

**Dense and sparse prompts are kept apart where they differ.** A prompt of fewer than ``dense_len`` tokens attends to
everything, a longer one to selected blocks. As long as every block is selected both are the same, and their pages are
shared. Behind that, hidden states differ, and with them keys, values and recurrent states: a page of one kind must not
serve the other, or an answer would depend on what was asked before. So in the cache's keys the token ids of dense
prompts carry a mark there.

**Snapshots of the recurrent state lie where pages end.** A chunk of a prompt may end anywhere, as it does when decode
rows take a part of a mixed step. SGLang counts the depth of the next snapshot from there, inserts it with the whole
pages below, and so pairs them with a state of some tokens more. So chunks are cut at pages, and where a cut would leave
nothing of a chunk, what follows leaves no snapshot.

**Snapshots are few.** Each takes as much memory as thousands of tokens. A prompt leaves one at its end, one where it
parts from prompts that came before, and in between one per ``SALA_SNAPSHOT_SPACING`` tokens, at the end of the chunk
that passes them.

**The tree is kept in Python where torch is another than SGLang's.** The tree in Rust is compiled into SGLang's wheel
against the C++ interface of the torch that it requires. With another one it loads, and servers have stopped answering
at one of their first prompts (torch 2.11 in place of 2.14.1: docs/lab-notes/2026-11-24-sparse-operators.md).
"""

import logging
import os
from array import array
from collections.abc import Callable
from contextvars import ContextVar
from importlib.metadata import requires, version
from typing import Any

import numpy
import torch

from sala_sglang import environment
from sala_sglang.config import SALAConfig

logger = logging.getLogger(__name__)

TREE_VARIABLE = "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND"
DENSE_MARK = 1 << 32  # beyond every vocabulary; keys are int64

_checkpointed: ContextVar[Any] = ContextVar("request whose tokens are being inserted", default=None)
_prefetched: ContextVar[Any] = ContextVar("request whose prefix is being looked for in storage", default=None)


def hooks(config: SALAConfig) -> dict[str, Callable]:
    """SGLang's functions and what runs around them."""
    geometry = config.sparse_geometry
    kinds = PromptKinds(environment.dense_len_tokens(config), geometry.selected_blocks * geometry.block_size)
    return kinds.hooks() | Snapshots(geometry.block_size, environment.snapshot_spacing_tokens()).hooks()


class Snapshots:
    """Prefill chunks end where pages of ``page_size`` tokens end, and so do snapshots, ``spacing`` tokens apart."""

    def __init__(self, page_size: int, spacing: int):
        self.page_size, self.spacing = page_size, spacing

    def hooks(self) -> dict[str, Callable]:
        return {
            "sglang.srt.managers.schedule_policy.PrefillAdder.__init__": self.cut_at_pages,
            "sglang.srt.managers.schedule_batch.ScheduleBatch._mamba_radix_cache_v2_req_prepare_for_extend": self.track,
        }

    def cut_at_pages(self, original: Callable, adder: Any, *args: Any, **kwargs: Any) -> None:
        original(adder, *args, **kwargs)
        adder.mamba_chunk_grid = max(adder.mamba_chunk_grid, self.page_size)

    def track(self, original: Callable, batch: Any, request: Any) -> Any:
        """SGLang's choice of a snapshot for the next chunk of a request, or none."""
        entry = original(batch, request)
        if not entry.track_mask or self.wanted(request, request.kv.mamba_last_track_seqlen):
            return entry
        request.kv.mamba_last_track_seqlen = None
        return entry._replace(track_mask=False, track_seqlen=-1)

    def wanted(self, request: Any, depth: int) -> bool:
        """Whether the chunk of ``request`` that is computed next shall leave a snapshot at ``depth`` tokens."""
        begin = request.prefix_len
        if begin % self.page_size:
            return False
        left = len(request.origin_input_ids) + len(request.output_ids) - depth
        passes = depth // self.spacing > begin // self.spacing
        return passes or left < self.page_size or depth == request.mamba_branching_seqlen


class PromptKinds:
    """Prompts that are dense below ``dense_len`` tokens. selected_tokens: up to there selection takes every block."""

    def __init__(self, dense_len: int, selected_tokens: int):
        self.dense_len, self.selected_tokens = dense_len, selected_tokens

    def hooks(self) -> dict[str, Callable]:
        return {
            "sglang.srt.mem_cache.common._req_radix_key": self.match,
            "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.checkpoint_into_tree": self.checkpoint,
            "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.insert": self.insert,
            "sglang.srt.managers.scheduler.Scheduler._prefetch_kvcache": self.prefetch,
            "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.prefetch_from_storage": self.look_up,
            "sglang.srt.managers.schedule_batch.ScheduleBatch.prepare_for_extend": self.prepare_for_extend,
        }

    def match(self, original: Callable, tree_cache: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        """The key by which a waiting request looks for its prefix."""
        return self.mark(original(tree_cache, request, *args, **kwargs), request)

    def checkpoint(self, original: Callable, cache: Any, request: Any, **kwargs: Any) -> Any:
        token = _checkpointed.set(request)
        try:
            return original(cache, request, **kwargs)
        finally:
            _checkpointed.reset(token)

    def insert(self, original: Callable, cache: Any, params: Any) -> Any:
        request = _checkpointed.get()
        if request is not None:
            params.key = self.mark(params.key, request)
        return original(cache, params)

    def prefetch(self, original: Callable, scheduler: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        token = _prefetched.set(request)
        try:
            return original(scheduler, request, *args, **kwargs)
        finally:
            _prefetched.reset(token)

    def look_up(
        self, original: Callable, cache: Any, handle: Any, node: Any, tokens: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """tokens: those behind ``matched_prefix_tokens``. A file is named by the keys of the tree, marks included."""
        matched = kwargs.get("matched_prefix_tokens")
        request = _prefetched.get()
        if request is not None and matched is not None:
            prompt_tokens = len(request.origin_input_ids)
            kwargs["matched_prefix_tokens"] = self.marked(matched, prompt_tokens)
            tokens = self.marked(tokens, prompt_tokens, begin=len(matched))
        return original(cache, handle, node, tokens, *args, **kwargs)

    def prepare_for_extend(self, original: Callable, batch: Any) -> None:
        """A retracted request is prefilled again with what it had generated, but its prompt stays what it was."""
        original(batch)
        if any(request.output_ids for request in batch.reqs):
            lengths = [len(request.origin_input_ids) for request in batch.reqs]
            batch.orig_seq_lens = torch.tensor(lengths, dtype=torch.int32, device=batch.orig_seq_lens.device)

    def mark(self, key: Any, request: Any) -> Any:
        """``key`` for the kind of prompt that ``request`` is."""
        ids = self.marked(key.token_ids, len(request.origin_input_ids))
        if ids is key.token_ids:
            return key
        return type(key)(ids, key.extra_key, key.is_bigram, key.limit, key.cache_salt)

    def marked(self, ids: Any, prompt_tokens: int, begin: int = 0) -> Any:
        """Token ids from position ``begin`` on as a prompt of so many tokens has them in its keys."""
        if not self.selected_tokens < self.dense_len < environment.NEVER_SPARSE:
            return ids  # one kind only
        if prompt_tokens >= self.dense_len or begin + len(ids) <= self.selected_tokens:
            return ids
        words = numpy.array(ids, dtype=numpy.int64)
        words[max(0, self.selected_tokens - begin) :] |= DENSE_MARK
        return array("q", words.tobytes())


def use_python_tree_with_another_torch() -> None:
    """Choose SGLang's tree in Python, unless the user chose one, where torch is not the one that SGLang requires."""
    from packaging.requirements import Requirement  # here, because most processes do not need them
    from packaging.specifiers import SpecifierSet

    requirements = map(Requirement, requires("sglang") or ())
    pinned = next((one.specifier for one in requirements if one.name == "torch"), SpecifierSet())
    installed = version("torch")
    if TREE_VARIABLE in os.environ or pinned.contains(installed, prereleases=True):
        return
    os.environ[TREE_VARIABLE] = "python"  # workers inherit the environment
    logger.warning(
        "torch %s is not what SGLang was built for (%s): the prefix cache keeps its tree in Python (%s=python)",
        *(installed, pinned, TREE_VARIABLE),
    )
