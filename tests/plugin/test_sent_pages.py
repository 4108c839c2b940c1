"""Pages that a server that prefills has handed to its sender stay those of the prompt until all have been read."""

from array import array
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.disaggregation.prefill import SchedulerDisaggregationPrefillMixin
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.sampling.sampling_params import SamplingParams

from sala_sglang.plugin.disaggregation import send_pages_that_stay

PAGE, POOL_PAGES, LONGEST = 64, 32, 1024


class Sender:
    """What SGLang's scheduler asks of a backend: takes numbers of pages, which threads read at some later time."""

    def __init__(self) -> None:
        self.pages: list[int] = []

    def get_max_transfer_tokens(self) -> None: ...

    def should_send_kv_chunk(self, pages: int, last_chunk: bool) -> bool:
        return pages > 0 or last_chunk

    def send(self, pages, state_indices, num_kv_tokens: int) -> None:
        self.pages += pages.tolist()


class Scheduler(SchedulerDisaggregationPrefillMixin):
    """SGLang's functions that send, over its prefix cache and allocator, in place of a server."""

    kv_checksum_computer, enable_staging = None, False

    def __init__(self, cached: bool):
        self.req_to_token_pool = ReqToTokenPool(4, LONGEST, "cpu", enable_memory_saver=False)
        self.token_to_kv_pool_allocator = PagedTokenToKVPoolAllocator(
            POOL_PAGES * PAGE, PAGE, torch.float32, "cpu", None, need_sort=False
        )
        self.tree_cache = UnifiedRadixCache(
            CacheInitParams(
                disable=not cached,
                req_to_token_pool=self.req_to_token_pool,
                token_to_kv_pool_allocator=self.token_to_kv_pool_allocator,
                page_size=PAGE,
                tree_components=(ComponentType.FULL,),
                tree_core_backend="python",
            )
        )
        self.disagg_prefill_pending_chunk_rids: set[str] = set()
        self.disagg_metadata_buffers = SimpleNamespace(set_buf=lambda request: None)
        manager = SimpleNamespace(kv_args=SimpleNamespace(state_types=[]))
        self.disagg_prefill_bootstrap_queue = SimpleNamespace(kv_manager=manager)

    def request(self, tokens: list[int]) -> Req:
        made = Req(str(tokens[-1]), "", array("q", tokens), SamplingParams(max_new_tokens=1))
        made.full_untruncated_fill_ids = made.origin_input_ids
        made.disagg_kv_sender, made.start_send_idx, made.disagg_decode_prefix_len = Sender(), 0, 0
        self.req_to_token_pool.alloc([made])
        return made

    def compute(self, request: Req, end: int) -> None:
        """Pages for the tokens up to ``end``, as a chunk of a prompt takes them."""
        begin, whole = request.kv.kv_allocated_len, -(-end // PAGE) * PAGE
        slots = self.token_to_kv_pool_allocator.alloc(whole - begin)
        self.req_to_token_pool.write((request.kv.req_pool_idx, slice(begin, whole)), slots)
        request.kv.kv_allocated_len, request.extend_end = whole, end

    def snapshot(self, request: Req, depth: int) -> None:
        """Insert the tokens up to ``depth``, where the request has left a snapshot of its state."""
        self.tree_cache.checkpoint(request, up_to=depth)

    def send(self, request: Req, **arguments) -> None:
        send_pages_that_stay(SchedulerDisaggregationPrefillMixin.send_kv_chunk, self, request, **arguments)

    def pages(self, request: Req, tokens: int) -> list[int]:
        row = self.req_to_token_pool.req_to_token[request.kv.req_pool_idx]
        return (row[:tokens:PAGE] // PAGE).tolist()


def test_pages_on_their_way_are_never_given_back():
    """A dense prompt and a sparse one part after 384 tokens, in the second chunk, whose snapshot lies there."""
    scheduler = Scheduler(cached=True)
    before = scheduler.request([*range(384), *range(2000, 2512)])
    scheduler.compute(before, 896)
    scheduler.snapshot(before, 896)
    request = scheduler.request(list(range(700)))
    sent = request.disagg_kv_sender.pages
    for end, snapshot in ((256, None), (512, 384), (640, None)):
        scheduler.compute(request, end)
        if snapshot:
            own = scheduler.pages(request, end)
            scheduler.snapshot(request, snapshot)
            freed = set(own) - set(scheduler.pages(request, end))
            assert len(freed) == snapshot // PAGE and not freed & set(sent)
        scheduler.send(request, end_idx=end)
        assert sent == scheduler.pages(request, request.kv.cache_protected_len)
    scheduler.compute(request, 700)
    scheduler.snapshot(request, 640)
    scheduler.send(request, last_chunk=True)
    assert sent == scheduler.pages(request, 700) and len(sent) == 11


@pytest.mark.parametrize("given", [{}, {"end_idx": 256}])
def test_without_a_prefix_cache_chunks_are_sent_at_once(given):
    scheduler = Scheduler(cached=False)
    request = scheduler.request(list(range(700)))
    scheduler.compute(request, 256)
    scheduler.send(request, **given)
    assert request.disagg_kv_sender.pages == scheduler.pages(request, 256)
    assert len(request.disagg_kv_sender.pages) == 4
