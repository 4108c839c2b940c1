"""Pages and states that SGLang's mooncake backend sends, and the compressed keys that are made from what arrived."""

import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy
import pytest
import torch
from sala_kernels.compress_keys import compress_keys
from sala_kernels.kv_scales import E4M3
from sala_kernels.layout import PagedBatch, SparseGeometry
from sglang.srt.disaggregation import utils
from sglang.srt.disaggregation.base.conn import KVArgs
from sglang.srt.disaggregation.mooncake import conn
from sglang.srt.distributed.device_communicators.mooncake_transfer_engine import MooncakeTransferEngine
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool, MambaPool

from sala_sglang.attention.arrived_pages import compress_arrived
from sala_sglang.attention.kv_pool import layer_buffers, pool_class, scales_of
from testing.copying_engine import TransferEngine

GEOMETRY = SparseGeometry()
PAGE, PAGES, HEADS, HEAD_DIM, STATES = GEOMETRY.block_size, 60, 2, 16, 5
SPARSE, LIGHTNING = [0, 3, 4], [1, 2]
SCALES = torch.tensor([[0.5, 3.0], [0.01, 1.0]])
POISON = 0x7F  # of every byte: not a number in e4m3, and far from any that is written in the others
LAYERS = [SimpleNamespace(layer_id=layer, kv_scales=SCALES) for layer in SPARSE]
# (tokens of a prompt, of which the decoding server has so many): a part of a window, of a page, of a coarse window;
# whole pages; prompts whose beginnings are there already.
PROMPTS = ((7, 0), (70, 0), (640, 0), (1000, 0), (1300, 640), (128, 64))
CHUNK = 256


class Side:
    """The pools of one server, all poison, and where its requests lie: each in a row of ``token_slots``."""

    def __init__(self, dtype: torch.dtype, compressed: torch.dtype, seed: int):
        shape = SimpleNamespace(conv=[(0, 0)], temporal=(4, HEAD_DIM, HEAD_DIM))
        dtypes = SimpleNamespace(conv=torch.bfloat16, temporal=torch.float32)
        self.states = MambaPool(
            size=STATES,
            spec_state_size=0,
            cache_params=SimpleNamespace(shape=shape, dtype=dtypes, layers=LIGHTNING),
            mamba_layer_ids=LIGHTNING,
            device="cpu",
        )
        self.pool = HybridLinearKVPool(
            size=PAGES * PAGE,
            dtype=dtype,
            page_size=PAGE,
            head_num=HEADS,
            head_dim=HEAD_DIM,
            full_attention_layer_ids=SPARSE,
            device="cpu",
            mamba_pool=self.states,
            full_kv_pool_class=pool_class(GEOMETRY, compressed),
        )
        for buffer in self.buffers():
            buffer.view(torch.uint8).fill_(POISON)
        pages = iter((1 + torch.randperm(PAGES, generator=torch.Generator().manual_seed(seed))).tolist())
        self.token_slots = torch.zeros(len(PROMPTS), 2048, dtype=torch.int32)
        self.pages = []
        for row, (tokens, _) in zip(self.token_slots, PROMPTS, strict=True):
            own = torch.tensor([next(pages) for _ in range(-(-tokens // PAGE))], dtype=torch.int32)
            row[: len(own) * PAGE] = (own[:, None] * PAGE + torch.arange(PAGE)).flatten()
            self.pages.append(own.numpy())
        self.arguments = KVArgs()
        (
            self.arguments.kv_data_ptrs,
            self.arguments.kv_data_lens,
            self.arguments.kv_item_lens,
        ) = utils.get_kv_transfer_buf_infos(self.pool)
        self.arguments.kv_layer_ids = utils.build_kv_layer_ids(
            token_to_kv_pool=self.pool, draft_token_to_kv_pool=None, num_draft_entries=0, num_hidden_layers=5
        )
        utils.setup_state_kv_args(self.arguments, self.pool, None, total_kv_layers=5)
        self.engine = MooncakeTransferEngine("127.0.0.1")
        self.engine.batch_register(self.arguments.kv_data_ptrs, self.arguments.kv_data_lens)
        for pointers, lengths in zip(self.arguments.state_data_ptrs, self.arguments.state_data_lens, strict=True):
            self.engine.batch_register(pointers, lengths)

    def buffers(self) -> list[torch.Tensor]:
        full = self.pool.full_kv_pool
        return [*full.k_buffer, *full.v_buffer, *full.compressed, self.states.mamba_cache.temporal]

    def slots(self, request: int) -> torch.Tensor:
        return self.token_slots[request, : PROMPTS[request][0]].long()


def plan(side: Side, request: int, begin: int, end: int) -> PagedBatch:
    """That of the prefill chunk from ``begin`` to ``end``, as sala_sglang/attention/plan.py makes it."""
    return PagedBatch(
        query_start=torch.tensor([0, end - begin], dtype=torch.int32),
        kv_lens=torch.tensor([end], dtype=torch.int32),
        sparse_from=torch.zeros(1, dtype=torch.int32),
        request_rows=torch.tensor([request]),
        token_slots=side.token_slots,
        max_query_tokens=end - begin,
        max_kv_tokens=end,
    )


def prefill(side: Side, request: int, begin: int, end: int) -> None:
    """Keys, values and compressed keys of a chunk; they depend on request, layer and position alone."""
    tokens = PROMPTS[request][0]
    for layer in LAYERS:
        keys, values, compressed = layer_buffers(side.pool, layer.layer_id)
        whole = torch.randn(2, tokens, HEADS, HEAD_DIM, generator=seeded(request, layer.layer_id))
        slots = side.slots(request)[begin:end]
        for pool, rows in ((keys, whole[0]), (values, whole[1])):
            # As bytes, because torch does not copy rows of e4m3 everywhere.
            pool.view(torch.uint8)[slots] = rows[begin:end].to(pool.dtype).view(torch.uint8)
        compress_keys(keys, compressed, plan(side, request, begin, end), GEOMETRY, kv_scales=scales_of(layer, keys))


def seeded(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash(numbers) % 2**31)


@pytest.fixture
def sender(monkeypatch):
    """A function from two sides to SGLang's manager of the first, without its threads."""
    monkeypatch.setitem(sys.modules, "mooncake.engine", SimpleNamespace(TransferEngine=TransferEngine))
    monkeypatch.setattr(conn, "get_memory", lambda: SimpleNamespace(enable_unified_memory=False))

    def manager_of(side: Side) -> conn.MooncakeKVManager:
        manager = conn.MooncakeKVManager.__new__(conn.MooncakeKVManager)
        manager.kv_args, manager.engine = side.arguments, side.engine
        manager.is_mla_backend = manager.is_hybrid_mla_backend = manager.enable_custom_mem_pool = False
        manager.max_transfer_batch_indices, manager.pp_size, manager.state_tp_size = 0, 1, 1
        manager.state_strides_validated = set()
        return manager

    return manager_of


def send_prompt(manager: conn.MooncakeKVManager, source: Side, target: Side, request: int, slots: tuple) -> None:
    """Whole pages with every chunk, the rest and the state with the last, as SGLang's scheduler asks for them."""
    tokens, there = PROMPTS[request]
    sent = there // PAGE
    with ThreadPoolExecutor(1) as pool:
        for end in [*range(CHUNK, tokens, CHUNK), tokens]:
            upto = -(-tokens // PAGE) if end == tokens else end // PAGE
            if upto <= sent:
                continue
            pages = [side.pages[request][sent:upto] for side in (source, target)]
            arguments = target.engine.get_session_id(), pages[0], target.arguments.kv_data_ptrs, pages[1], pool
            assert manager.send_kvcache(*arguments, dst_layer_ids=target.arguments.kv_layer_ids) == 0
            sent = upto
        peer = SimpleNamespace(
            mooncake_session_id=target.engine.get_session_id(), dst_state_indices=[numpy.array([slots[1]])]
        )
        layout = SimpleNamespace(
            dst_state_data_ptrs=target.arguments.state_data_ptrs,
            dst_state_item_lens=target.arguments.state_item_lens,
            dst_state_dim_per_tensor=target.arguments.state_dim_per_tensor,
            dst_state_layer_ids=target.arguments.state_layer_ids,
            dst_attn_tp_size=1,
            dst_tp_rank=0,
        )
        assert manager.maybe_send_extra(peer, [numpy.array([slots[0]])], pool, layout) == 0


@pytest.mark.parametrize(
    ("dtype", "compressed"), [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (E4M3, torch.bfloat16)]
)
def test_what_arrives_is_what_was_sent(sender, dtype, compressed):
    """Bit by bit: keys, values, states, and the compressed keys, which did not travel. All else stays poison."""
    source, target = Side(dtype, compressed, seed=1), Side(dtype, compressed, seed=2)
    manager, before = sender(source), [buffer.clone() for buffer in target.buffers()]
    state_slots = [(1 + index % STATES, STATES - index % STATES) for index in range(len(PROMPTS))]
    for request, (tokens, there) in enumerate(PROMPTS):
        for begin in range(0, tokens, CHUNK):
            prefill(source, request, begin, min(begin + CHUNK, tokens))
        if there:
            prefill(target, request, 0, there)
        here, _ = state_slots[request]
        source.states.mamba_cache.temporal[:, here].normal_(generator=seeded(request))
        send_prompt(manager, source, target, request, state_slots[request])
        sent, arrived = (
            side.states.mamba_cache.temporal[:, slot]
            for side, slot in zip((source, target), state_slots[request], strict=True)
        )
        assert same(sent, arrived)
    # As a step does, for several requests at a time.
    requests = [(row, there, tokens) for row, (tokens, there) in enumerate(PROMPTS)]
    for some in (requests[:1], requests[1:]):
        compress_arrived(LAYERS, target.pool, target.token_slots, some, GEOMETRY)
    check_pages(source, target, before)


def check_pages(source: Side, target: Side, before: list[torch.Tensor]) -> None:
    requests = range(len(PROMPTS))
    slots = [(source.slots(request), target.slots(request)) for request in requests]
    pages = [[torch.from_numpy(side.pages[request]).long() for side in (source, target)] for request in requests]
    others = torch.ones(PAGES + 1, dtype=torch.bool)
    others[torch.cat([there for _, there in pages])] = False
    for sent, arrived, poison in zip(source.buffers(), target.buffers(), before, strict=True):
        if len(sent) == len(LIGHTNING):
            continue  # states, of which slots were taken by several requests
        # Rows whose windows are not whole are poison on both sides.
        for here, there in pages if len(sent) == PAGES + 1 else slots:
            assert same(sent[here], arrived[there])
        if len(sent) != PAGES + 1:
            arrived, poison = (buffer.unflatten(0, (-1, PAGE)) for buffer in (arrived, poison))
        assert same(arrived[others], poison[others]) and not same(arrived, poison)


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))


def test_memory_that_was_not_registered_is_not_touched(sender):
    source, target = Side(torch.float32, torch.float32, seed=1), Side(torch.float32, torch.float32, seed=2)
    stray = torch.zeros(4)
    address, session = source.arguments.kv_data_ptrs[0], target.engine.get_session_id()
    assert source.engine.transfer_sync(session, address, stray.data_ptr(), 16) < 0
    assert source.engine.transfer_sync(session, stray.data_ptr(), target.arguments.kv_data_ptrs[0], 16) < 0
    assert not stray.any()
