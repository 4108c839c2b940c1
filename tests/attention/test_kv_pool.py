"""The pool in FP8: what is written, what its compressed keys are, and what a token takes."""

from types import SimpleNamespace

import pytest
import sglang.srt.runtime_context
import torch
from sala_kernels.kv_scales import E4M3
from sala_kernels.layout import SparseGeometry
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool, KVWriteLoc
from sglang.srt.model_executor.pool_configurator import DefaultPoolConfigurator

from sala_sglang.attention.kv_pool import layer_buffers, pool_class, scales_of
from sala_sglang.config import SALAConfig
from sala_sglang.plugin.worker import add_compressed_keys

PAGE, PAGES, HEADS, HEAD_DIM = 64, 4, 2, 16
SCALES = torch.tensor([[0.5, 3.0], [0.01, 1.0]])


def make_pool(dtype: torch.dtype) -> HybridLinearKVPool:
    """Sparse layers 0, 3 and 4 of a model in bfloat16."""
    return HybridLinearKVPool(
        size=PAGES * PAGE,
        dtype=dtype,
        page_size=PAGE,
        head_num=HEADS,
        head_dim=HEAD_DIM,
        full_attention_layer_ids=[0, 3, 4],
        device="cpu",
        mamba_pool=None,
        full_kv_pool_class=pool_class(SparseGeometry(), torch.bfloat16),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, E4M3])
def test_rows_go_to_their_slots_and_layer(dtype):
    pool, layer = make_pool(dtype), SimpleNamespace(layer_id=3, kv_scales=SCALES)
    k, v = torch.randn(2, 3, HEADS, HEAD_DIM).bfloat16()
    before, slots = (k.clone(), v.clone()), torch.tensor([70, 200, 65])
    pool.set_kv_buffer(layer, KVWriteLoc(slots), k, v)
    for index in (0, 3, 4):
        keys, values, compressed = layer_buffers(pool, index)
        assert keys.dtype == values.dtype == dtype and compressed.dtype == torch.bfloat16
        others = torch.ones(len(keys), dtype=torch.bool)
        others[slots] = False
        for rows, stored, scales in ((k, keys, SCALES[0]), (v, values, SCALES[1])):
            numbers = stored.float()
            assert not numbers[others].any()
            if index != 3:
                assert not numbers.any()
            elif dtype == E4M3:
                # Half a unit in the last of three places.
                error = (numbers[slots] * scales[:, None] - rows.float()).abs()
                assert (error <= rows.float().abs() / 16 + scales[:, None] * 2.0**-10)[rows.abs() < 4].all()
            else:
                assert torch.equal(stored[slots], rows)
    assert torch.equal(k, before[0]) and torch.equal(v, before[1])


def test_scales_are_for_fp8_alone():
    layer = SimpleNamespace(kv_scales=SCALES)
    assert scales_of(layer, torch.zeros(1)) is None and scales_of(layer, torch.zeros(1).to(E4M3)) is SCALES


def test_a_copy_of_a_request_comes_back():
    """SGLang may keep a retracted request's pages in host memory, and bring them back to other places."""
    pool = make_pool(E4M3).full_kv_pool
    for layer in range(3):
        for buffer in (pool.k_buffer[layer], pool.v_buffer[layer]):
            buffer.copy_(torch.randint(0, 127, buffer.shape, dtype=torch.uint8))
        pool.compressed[layer].normal_()
    old, new = torch.arange(2 * PAGE, 3 * PAGE), torch.arange(PAGE, 2 * PAGE)
    expected = [(k[old].clone(), v[old].clone(), c[2].clone()) for k, v, c in _layers(pool)]
    pool.load_cpu_copy(pool.get_cpu_copy(old), new)
    for (k, v, compressed), wanted in zip(_layers(pool), expected, strict=True):
        assert all(map(torch.equal, (k[new], v[new], compressed[1]), wanted))


def _layers(pool):
    return zip(pool.k_buffer, pool.v_buffer, pool.compressed, strict=True)


@pytest.mark.parametrize(("dtype", "ranks", "expected"), [
    (torch.bfloat16, 1, 8192 + 320), (E4M3, 1, 4096 + 320), (torch.bfloat16, 4, 4096 + 160), (E4M3, 4, 2048 + 160),
])  # fmt: skip
def test_bytes_of_a_token(monkeypatch, dtype, ranks, expected):
    """What SGLang divides its memory by: nearly twice as many tokens fit in FP8."""
    parallel = SimpleNamespace(attn_tp_size=ranks, attn_dcp_size=1)
    monkeypatch.setattr(sglang.srt.runtime_context, "get_parallel", lambda: parallel)
    monkeypatch.setattr("sglang.srt.model_executor.pool_configurator.get_parallel", lambda: parallel)
    config = SALAConfig()
    model = SimpleNamespace(
        hf_config=config,
        dtype=torch.bfloat16,
        head_dim=config.head_dim,
        v_head_dim=config.head_dim,
        get_num_kv_heads=lambda ranks, copies=1: max(1, config.num_key_value_heads // ranks),
    )
    arguments = SimpleNamespace(enable_hisparse=False, kv_cache_dtype="auto")
    configurator = SimpleNamespace(
        model_config=model, kv_cache_dtype=dtype, server_args=arguments, use_mla_backend=False, kv_cache_dtype_str=None
    )
    layers = len(config.full_attention_layer_ids)
    monkeypatch.setattr(
        "sglang.srt.layers.cp.utils.get_glm_dsa_layer_split_effective_num_layers", lambda kvc, layers: layers
    )
    sizes = object.__new__(DefaultPoolConfigurator)  # it would measure a GPU's memory
    sizes.kv_cache_dtype_str = None
    plain = sizes._compute_cell_size(configurator, layers)
    assert add_compressed_keys(plain, None, configurator, layers) == expected
