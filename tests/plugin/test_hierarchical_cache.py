"""Copies of compressed keys and states to host memory and back, and what cannot be served."""

import functools
from types import SimpleNamespace

import pytest
import torch
from sala_kernels.layout import SparseGeometry
from sglang.srt.mem_cache import memory_pool_host
from sglang.srt.mem_cache.device_pool_info import MambaStateBufferInfo
from sglang.srt.mem_cache.hicache_storage import PoolName, PoolTransfer
from sglang.srt.mem_cache.l2_transfer import L2Transfer, L2TransferEngine
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool
from sglang.srt.mem_cache.pool_host import base, common, mamba, mha

from sala_sglang.attention.host_pool import CompressedKeysHostPool
from sala_sglang.attention.kv_pool import layer_buffers, pool_class
from sala_sglang.plugin import cpu, hierarchical_cache, storage
from sala_sglang.plugin.server_arguments import check_limits
from tests.plugin.test_storage import ALONE, ONE_RANK, runner

LAYERS, HEADS, HEAD_DIM, PAGE, PAGES = 3, 2, 128, 64, 6
LAYOUT = "page_first_direct"


@pytest.fixture
def host_copies(monkeypatch):
    """cpu.provide_host_copies, undone afterwards."""
    replaced = {name: None for name in ("transfer_kv_all_layer_direct_lf_pf", "transfer_kv_per_layer_direct_pf_lf")}
    for module in (memory_pool_host, mamba, mha):
        monkeypatch.setattr(module, "torch", torch)
        for name in replaced:
            monkeypatch.setattr(module, name, None, raising=False)
    monkeypatch.setattr(common, "_cuda_host_register", None)
    monkeypatch.setattr(base, "HICACHE_HOST_MEMORY_RESERVE_BYTES", None)
    cpu.provide_host_copies()


@pytest.fixture
def pool():
    """A pool of the released geometry with PAGES pages, each filled with numbers of its own."""
    made = pool_class(SparseGeometry(), torch.bfloat16)(
        size=PAGES * PAGE,
        page_size=PAGE,
        dtype=torch.bfloat16,
        head_num=HEADS,
        head_dim=HEAD_DIM,
        layer_num=LAYERS,
        device="cpu",
        enable_memory_saver=False,
    )
    generator = torch.Generator().manual_seed(1)
    for rows in made.compressed:
        rows.copy_(torch.randn(rows.shape, generator=generator))
    return made


def slots(pages: list[int]) -> torch.Tensor:
    """Token slots of whole pages, in order."""
    return (torch.tensor(pages)[:, None] * PAGE + torch.arange(PAGE)).flatten()


def test_pool_declares_its_compressed_keys(pool):
    pages, compressed = pool.host_pool_decls()
    assert (pages.pool_name, pages.is_primary) == (PoolName.KV, True)
    assert compressed.device_pool is pool and not compressed.is_primary
    assert (compressed.indices_from_pool, compressed.layout_source) == (PoolName.KV, PoolName.KV)
    # 320 bytes per token in eight layers, as the size of a token has them
    assert compressed.storage_info.bytes_per_token_per_layer * 8 == 320
    assert SparseGeometry().compressed_bytes_per_token(8, HEADS, HEAD_DIM, 2) == 320


@pytest.mark.parametrize(("page_size", "drafts", "field"), [(32, (), "transfer_page_size"), (64, (1,), "packed_draft")])
def test_what_the_declaration_cannot_be_used_for(pool, page_size, drafts, field):
    declaration = pool.host_pool_decls()[1]
    with pytest.raises(ValueError, match=f"{field}.*allowed is"):
        declaration.host_pool_builder.validate(
            decl=declaration, transfer_page_size=page_size, packed_draft_device_pools=drafts
        )


@pytest.fixture
def host(pool, host_copies) -> CompressedKeysHostPool:
    """Nine pages on the host, made as SGLang does it."""
    anchor = SimpleNamespace(page_num=9, page_size=PAGE, layout=LAYOUT, device="cpu", pin_memory=False)
    declaration = pool.host_pool_decls()[1]
    return declaration.host_pool_builder.build(
        decl=declaration, anchor_host=anchor, allocator_type="default", packed_draft_device_pools=()
    )


def test_compressed_keys_go_to_the_host_and_back(pool, host):
    """Pages come back to other places than they left, and nothing else changes; layers come back one by one."""
    assert host.get_hybrid_pool_buffer()[0].nbytes == 9 * PAGE * host.size_per_token
    before = [rows.clone() for rows in pool.compressed]
    host.backup_from_device_all_layer(pool, slots([7, 0, 3]), slots([5, 1, 6]), "direct")
    for layer in (1, 0, 2):
        expected = [rows.clone() for rows in pool.compressed]
        expected[layer][2], expected[layer][4] = before[layer][6], before[layer][5]
        host.load_to_device_per_layer(pool, slots([3, 7]), slots([2, 4]), layer, "direct")
        torch.testing.assert_close(pool.compressed, expected, rtol=0, atol=0)


def test_parts_of_pages_are_refused(pool, host):
    with pytest.raises(ValueError, match="compressed_keys expects page-aligned indices"):
        host.load_to_device_per_layer(pool, slots([3])[:10], slots([2])[:10], 0, "direct")


def test_a_layer_is_announced_when_its_compressed_keys_are_there(pool, host):
    """SGLang copies layer by layer and announces each; layers 0, 3 and 4 of the model are sparse here."""
    host.backup_from_device_all_layer(pool, slots([7]), slots([5]), "direct")
    for rows in pool.compressed:
        rows.zero_()
    there = {}
    transfer = L2Transfer(host, pool, slots([7]), slots([2]), layer_mapper={0: 0, 3: 1, 4: 2}.get)
    L2TransferEngine("direct").submit_host_to_device(
        [transfer],
        transfer_layer_id_max=5,
        on_layer_done=lambda layer: there.update({layer: sum(bool(rows[2].any()) for rows in pool.compressed)}),
    )
    assert there == {0: 1, 1: 1, 2: 1, 3: 2, 4: 3}


def test_a_layer_is_waited_for_before_its_compressed_keys_are_read():
    hybrid = HybridLinearKVPool(
        size=PAGES * PAGE,
        dtype=torch.bfloat16,
        page_size=PAGE,
        head_num=HEADS,
        head_dim=HEAD_DIM,
        full_attention_layer_ids=[0, 3, 4],
        device="cpu",
        mamba_pool=None,
        full_kv_pool_class=pool_class(SparseGeometry(), torch.bfloat16),
    )
    waited = []
    hybrid.register_layer_transfer_counter(SimpleNamespace(wait_until=waited.append))
    assert layer_buffers(hybrid, 3)[2] is hybrid.full_kv_pool.compressed[1]
    assert waited == [3]


def test_a_copy_of_a_request_has_its_compressed_keys(pool):
    """SGLang may keep a retracted request's pages in host memory, and bring them back to other places."""
    expected = [rows.clone() for rows in pool.compressed]
    saved = pool.get_cpu_copy(slots([5, 1]))
    for rows in expected:
        rows[2], rows[4] = rows[5].clone(), rows[1].clone()
    pool.load_cpu_copy(saved, slots([2, 4]))
    torch.testing.assert_close(pool.compressed, expected, rtol=0, atol=0)


@pytest.fixture
def states(host_copies):
    """Recurrent states [layers, slots, heads, D, D] of layers without a convolution, and SGLang's host pool of them."""
    temporal = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    info = MambaStateBufferInfo(temporal=temporal, conv=(torch.zeros(2, 5, 0, 0),))
    return temporal, mamba.MambaPoolHost(info, 2.0, 0, device_capacity=4, pin_memory=False, layout=LAYOUT)


def copy_states(host) -> None:
    """Slots 3 and 1 to the host, and from there to 2 and 4."""
    host.backup_from_device_all_layer(None, torch.tensor([6, 0]), torch.tensor([3, 1]), "direct")
    for layer in range(2):
        host.load_to_device_per_layer(None, torch.tensor([6, 0]), torch.tensor([2, 4]), layer, "direct")


def test_states_without_a_convolution(states, monkeypatch):
    temporal, host = states
    expected = temporal.clone()
    expected[:, 2], expected[:, 4] = expected[:, 3], expected[:, 1]
    for target, around in hierarchical_cache.HOOKS.items():
        if "MambaPoolHost" in target:
            name = target.rsplit(".", 1)[1]
            original = getattr(mamba.MambaPoolHost, name)
            monkeypatch.setattr(mamba.MambaPoolHost, name, staticmethod(functools.partial(around, original)))
    copy_states(host)
    torch.testing.assert_close(temporal, expected, rtol=0, atol=0)


def test_compressed_keys_and_states_come_back_from_files(pool, host, states, tmp_path, monkeypatch):
    """To other places of the host than they were written from."""
    monkeypatch.setenv("SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR", str(tmp_path))
    monkeypatch.setattr(storage, "get_hash_str", lambda *arguments, **options: "")
    monkeypatch.setattr(storage, "_served", [runner()])
    monkeypatch.setattr(storage, "get_parallel", lambda: ALONE)
    files = storage.PageFiles(ONE_RANK)
    _, host_states = states
    files.register_mem_host_pool_v2(host, PoolName.INDEXER)
    files.register_mem_host_pool_v2(host_states, PoolName.MAMBA)
    host.backup_from_device_all_layer(pool, slots([7, 3]), slots([5, 1]), "direct")
    host_states.temporal_buffer.copy_(torch.randn(host_states.temporal_buffer.shape))
    expected = host_states.get_data_page(6, flat=True).clone()

    def transfers(pages: list[int], state: int) -> list[PoolTransfer]:
        return [
            PoolTransfer(name=PoolName.INDEXER, host_indices=slots(pages), keys=["first", "second"]),
            PoolTransfer(name=PoolName.MAMBA, host_indices=torch.tensor([state]), keys=["second"]),
        ]

    whole = {PoolName.INDEXER: [True, True], PoolName.MAMBA: [True]}
    assert files.batch_set_v2(transfers([7, 3], 6)) == whole
    assert files.batch_get_v2(transfers([2, 4], 1)) == whole
    assert torch.equal(host_states.get_data_page(1, flat=True), expected)
    wanted = [rows.clone() for rows in pool.compressed]
    for layer, rows in enumerate(wanted):
        rows[2], rows[6] = rows[5].clone(), rows[1].clone()
        host.load_to_device_per_layer(pool, slots([2, 4]), slots([2, 6]), layer, "direct")
    torch.testing.assert_close(pool.compressed, wanted, rtol=0, atol=0)


def test_sglang_does_not_copy_them_itself(states):
    """When this fails, SGLang has learned to, and the two hooks can go."""
    with pytest.raises(RecursionError):
        copy_states(states[1])


def limits(enabled: bool, device: str, storage: str | None = None) -> dict[str, tuple]:
    return {field: allowed for field, allowed, _ in hierarchical_cache.argument_limits(enabled, device, storage)}


def test_limits():
    assert limits(False, "cuda") == {"hicache_storage_backend": (None,)}
    on = limits(True, "cuda")
    assert on["hicache_io_backend"] == ("kernel", "direct") and on["hicache_storage_backend"] == (None, "file")
    assert limits(True, "cpu")["hicache_io_backend"] == ("direct",)


@pytest.mark.parametrize(
    "backend, reason", [("nixl", "no checksum"), ("mooncake", "over each other"), ("eic", "tried")]
)
def test_other_storage_is_refused_with_its_own_reason(backend, reason):
    limits = hierarchical_cache.argument_limits(True, "cuda", backend)
    with pytest.raises(ValueError, match=f"hicache_storage_backend = '{backend}' is not supported .*{reason}"):
        check_limits({"hicache_storage_backend": backend}.get, limits[-1:])


def test_other_storage_is_refused_while_the_server_runs():
    def attach(cache, backend, **others):
        return True, f"{cache} {backend} {others}"

    done, message = hierarchical_cache.attach_storage(attach, "cache", storage_backend="mooncake")
    assert not done and "hicache_storage_backend = 'mooncake' is not supported" in message and "'file'" in message
    assert hierarchical_cache.attach_storage(attach, "cache", storage_backend="file", policy=1) == (
        True,
        "cache file {'policy': 1}",
    )
