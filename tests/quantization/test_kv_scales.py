"""Scales of keys and values in FP8: from the checkpoint to the heads of every rank, or not at all."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sala_sglang.checkpoint.make import TINY_CONFIG
from sala_sglang.config import SALAConfig
from sala_sglang.models import loading
from sala_sglang.models.loading import WeightLoader
from sala_sglang.models.pipeline import Stage
from sala_sglang.quantization.kv_scales import add_kv_scales, place_scale, scale_names

CONFIG = SALAConfig(**TINY_CONFIG)
FIRST, SPARSE = "model.layers.0.self_attn", CONFIG.full_attention_layer_ids
LIGHTNING = f"model.layers.{CONFIG.lightning_layer_ids[0]}.self_attn"
TWO = torch.tensor([0.5, 3.0])


def attention(kv_heads: int) -> dict[str, nn.Module]:
    """The attention of every sparse layer with ``kv_heads`` on this rank."""
    modules = {f"model.layers.{layer}.self_attn.attn": nn.Module() for layer in SPARSE}
    for module in modules.values():
        add_kv_scales(module, kv_heads)
    return modules


def test_only_sparse_layers_have_scales():
    names = scale_names(CONFIG)
    assert len(names) == 2 * len(SPARSE) and not any(name.startswith(LIGHTNING) for name in names)
    assert names[f"{FIRST}.v_scale"] == (f"{FIRST}.attn", 1)


def test_without_any_they_are_one_and_no_part_of_a_checkpoint():
    with torch.device("cpu"):
        torch.set_default_dtype(torch.bfloat16)  # as SGLang does while it builds a model
        try:
            module = attention(2)[f"{FIRST}.attn"]
        finally:
            torch.set_default_dtype(torch.float32)
    assert module.kv_scales.dtype == torch.float32 and torch.equal(module.kv_scales, torch.ones(2, 2))
    assert module.state_dict() == {} and not list(module.parameters())


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_rank_has_the_scales_of_its_heads(ranks):
    for rank in range(ranks):
        modules = attention(max(1, 2 // ranks))
        place_scale(modules, CONFIG, f"{FIRST}.v_scale", TWO, rank, ranks)
        found = modules[f"{FIRST}.attn"].kv_scales
        heads = [0, 1] if ranks == 1 else [rank // (ranks // 2)]
        assert found[0].tolist() == [1.0] * len(heads) and found[1].tolist() == TWO[heads].tolist()


@pytest.mark.parametrize(
    "tensor", [TWO.view(2, 1, 1), torch.tensor(3.0), torch.tensor([3.0]), torch.tensor([3.0, 3.0])]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_shapes_that_tools_write(tensor, dtype):
    modules = attention(2)
    place_scale(modules, CONFIG, f"{FIRST}.k_scale", tensor.to(dtype), 0, 1)
    expected = tensor.flatten().expand(2)
    assert torch.equal(modules[f"{FIRST}.attn"].kv_scales, torch.stack([expected, torch.ones(2)]))


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(3), r"k_scale has shape \[3\]; allowed: one number, or one for each of 2 KV heads"),
        (torch.ones(2, 2), r"k_scale has shape \[2, 2\]"),
        (torch.ones(2, dtype=torch.int32), r"k_scale is torch\.int32; allowed: torch\.float16"),
        (torch.tensor([1.0, 0.0]), r"k_scale has \[1\.0, 0\.0\]; allowed: positive numbers"),
        (torch.tensor(-1.0), "allowed: positive numbers"),
        (torch.tensor(torch.inf), "allowed: positive numbers"),
        (torch.tensor(torch.nan), "allowed: positive numbers"),
    ],
)
def test_what_cannot_be_a_scale_is_refused(tensor, words):
    with pytest.raises(ValueError, match=words):
        place_scale(attention(2), CONFIG, f"{FIRST}.k_scale", tensor, 0, 1)


@pytest.fixture
def load(monkeypatch):
    """A function that gives tensors to a model whose weights are there already, and returns its modules."""
    monkeypatch.setattr(loading, "get_parallel", lambda: SimpleNamespace(attn_tp_size=1, attn_tp_rank=0))

    def with_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, nn.Module]:
        modules = attention(2)
        model: Any = SimpleNamespace(named_modules=modules.items, named_parameters=dict().items)
        loader = WeightLoader(CONFIG, None, Stage(0, CONFIG.num_hidden_layers, CONFIG.num_hidden_layers))
        loader.complete = True
        loader.load(model, tensors.items())
        return modules

    return with_tensors


def test_the_loader_places_them(load):
    found = load({f"{FIRST}.k_scale": TWO, f"{FIRST}.v_scale": torch.tensor(5.0)})
    assert found[f"{FIRST}.attn"].kv_scales.tolist() == [[0.5, 3.0], [5.0, 5.0]]
    assert all(torch.equal(module.kv_scales, torch.ones(2, 2)) for name, module in found.items() if FIRST not in name)


def test_those_of_lightning_layers_are_unknown(load):
    with pytest.raises(ValueError, match=rf"unknown tensor: {LIGHTNING}\.k_scale"):
        load({f"{LIGHTNING}.k_scale": TWO})
