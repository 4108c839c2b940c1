"""Adapters in the form of the merged layers: stacked, copied and scaled as SGLang's layers cut and apply them."""

import math
from types import SimpleNamespace

import pytest
import torch

from sala_sglang.checkpoint.make import TINY_CONFIG
from sala_sglang.checkpoint.parameter_shapes import layer_shapes
from sala_sglang.config import LIGHTNING, SPARSE, SALAConfig
from sala_sglang.models.merged_projections import kv_copies, merged_parts, qkvg_widths
from sala_sglang.plugin import lora

RANK, ALPHA = 4, 6
CONFIG = SALAConfig(**TINY_CONFIG | {"num_attention_heads": 8, "lightning_nh": 8, "lightning_nkv": 8})
LAYERS = {kind: CONFIG.layer_kinds.index(kind) for kind in (SPARSE, LIGHTNING)}


def adapter_of(kind: str, linears, ranks: dict[str, int] | None = None) -> dict[str, torch.Tensor]:
    """Random tensors of an adapter for layers ``linears``, such as self_attn.q_proj, by PEFT's names."""
    tensors = {}
    for linear in linears:
        outputs, inputs = layer_shapes(CONFIG, kind)[linear]
        rank = (ranks or {}).get(linear, RANK)
        front = f"base_model.model.model.layers.{LAYERS[kind]}.{linear}"
        tensors[f"{front}.lora_A.weight"] = torch.randn(rank, inputs, dtype=torch.float64)
        tensors[f"{front}.lora_B.weight"] = torch.randn(outputs, rank, dtype=torch.float64)
    return tensors


def merged(weights, kind: str, ranks: int, monkeypatch, **config) -> dict[str, torch.Tensor]:
    monkeypatch.setattr(lora, "_ranks", lambda: ranks)
    factors = lora.Factors({"r": RANK, "lora_alpha": ALPHA} | config)
    return lora.merge_layer(weights, CONFIG, LAYERS[kind], factors)


def delta(found: dict[str, torch.Tensor], name: str, widths: list[int]) -> list[torch.Tensor]:
    """What SGLang adds to each part of a merged weight: the factor of the adapter times B times A, part by part."""
    front = next(key for key in found if name in key).split(f"{name}.")[0]
    downs = found[f"{front}{name}.lora_A.weight"].split(RANK)
    ups = found[f"{front}{name}.lora_B.weight"].split(widths)
    return [ALPHA / RANK * up @ down for up, down in zip(ups, downs, strict=True)]


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", [SPARSE, LIGHTNING])
def test_every_part_gets_its_own_product(kind, ranks, monkeypatch):
    parts = merged_parts(kind)["self_attn.qkvg_proj"]
    weights = adapter_of(kind, parts)
    found = merged(weights, kind, ranks, monkeypatch)
    changes = delta(found, "self_attn.qkvg_proj", qkvg_widths(CONFIG, kind, ranks))
    for part, change in zip(parts, changes, strict=True):
        front = f"base_model.model.model.layers.{LAYERS[kind]}.{part}"
        expected = ALPHA / RANK * weights[f"{front}.lora_B.weight"] @ weights[f"{front}.lora_A.weight"]
        if part.endswith(("k_proj", "v_proj")):  # every KV head as often as ranks hold it, copies side by side
            heads = expected.view(-1, CONFIG.head_dim, CONFIG.hidden_size) if kind == SPARSE else expected[None]
            expected = torch.stack([heads] * kv_copies(CONFIG, kind, ranks), 1).flatten(0, 2).view_as(change)
        torch.testing.assert_close(change, expected)


def test_absent_parts_change_nothing(monkeypatch):
    found = merged(adapter_of(SPARSE, ["self_attn.v_proj", "mlp.up_proj"]), SPARSE, 1, monkeypatch)
    assert len(found) == 4
    q, k, v, gate = delta(found, "self_attn.qkvg_proj", qkvg_widths(CONFIG, SPARSE, 1))
    assert not q.any() and not k.any() and v.any() and not gate.any()
    gate, up = delta(found, "mlp.gate_up_proj", [CONFIG.intermediate_size] * 2)
    assert not gate.any() and up.any()


def test_a_layer_without_tensors_stays_empty(monkeypatch):
    assert merged({}, SPARSE, 1, monkeypatch) == {}


def test_ranks_and_factors_of_single_layers(monkeypatch):
    linear = "mlp.down_proj"
    weights = adapter_of(LIGHTNING, [linear], {linear: 2})
    config = {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {r".*mlp\.down_proj": 5}, "use_rslora": True}
    found = merged(weights, LIGHTNING, 1, monkeypatch, **config)
    down, up = (next(tensor for name, tensor in weights.items() if side in name) for side in ("lora_A", "lora_B"))
    (change,) = delta(found, linear, [CONFIG.hidden_size])
    scale = 5 / math.sqrt(2)
    rounding = 4 * torch.finfo(torch.float32).eps * scale * (up.abs() @ down.abs())  # scaled and summed in float32
    assert ((change - scale * up @ down).abs() <= rounding).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda name: name.replace("q_proj", "query"), "unknown tensor"),
        (lambda name: name.replace("q_proj", "q_norm"), "unknown tensor"),
        (lambda name: name.replace("q_proj", "o_gate"), "unknown tensor"),  # of the other mixer
        (lambda name: name.replace("lora_A", "lora_magnitude_vector"), "unknown tensor"),
    ],
)
def test_unknown_tensors_are_refused_by_name(change, words, monkeypatch):
    weights = adapter_of(LIGHTNING, ["self_attn.q_proj"])
    name = next(iter(weights))
    weights[change(name)] = weights.pop(name)
    with pytest.raises(ValueError, match=words):
        merged(weights, LIGHTNING, 1, monkeypatch)


def test_shapes_and_pairs(monkeypatch):
    weights = adapter_of(SPARSE, ["self_attn.k_proj"])
    down, up = weights
    with pytest.raises(ValueError, match=r"has shape \[2, 128\], expected \[4, 128\]"):
        merged(weights | {down: weights[down][:2]}, SPARSE, 1, monkeypatch)
    with pytest.raises(ValueError, match="has only lora_B"):
        merged({up: weights[up]}, SPARSE, 1, monkeypatch)
    with pytest.raises(ValueError, match=r"rank_pattern: got 8 .* allowed: up to r = 4"):
        merged(weights, SPARSE, 1, monkeypatch, rank_pattern={"k_proj": 8})


def check(backend: str = "csgmv", **config) -> None:
    adapter = SimpleNamespace(hf_config={"target_modules": ["q_proj"], "r": RANK} | config)
    manager = SimpleNamespace(lora_backend=SimpleNamespace(name=backend))
    lora.validate(lambda *arguments: None, manager, adapter, SimpleNamespace(lora_name="x"))


@pytest.mark.parametrize("field", [field for field, *_ in lora.ADAPTER_LIMITS])
def test_what_would_be_left_out_is_refused(field):
    with pytest.raises(ValueError, match=f"x: {field} = 'some' is not supported"):
        check(**{field: "some"})


def test_targets():
    check(target_modules=["model.layers.0.self_attn.q_proj", "o_gate", "z_proj", "lm_head"])
    check(target_modules="all-linear")
    with pytest.raises(ValueError, match="lm_head"):
        check("torch_native", target_modules=["lm_head"])
    with pytest.raises(ValueError, match="w_pack"):
        check(target_modules=["w_pack"])
    names = lora.merged_targets(set, ["q_proj", "z_proj", "o_proj"])
    assert names == {"qkvg_proj", "o_proj"}
