"""Which products of a model skinny_linear computes."""

from types import SimpleNamespace

import pytest
import torch
from sala_kernels import targets
from sala_kernels.skinny_linear import MAX_ROWS
from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod, UnquantizedLinearMethod
from sglang.srt.layers.utils import PPMissingLayer

from sala_sglang.models import products
from sala_sglang.models import skinny_linear as module


@pytest.fixture
def model(monkeypatch):
    """A linear layer, a layer with a method of its own, and a head, on a Hopper GPU as far as products can tell."""
    found = torch.nn.Module()
    found.linear, found.other, found.lm_head = (torch.nn.Linear(32, 24, dtype=torch.bfloat16) for _ in range(3))
    found.linear.quant_method, found.other.quant_method = UnquantizedLinearMethod(), object()
    found.lm_head.quant_method = UnquantizedEmbeddingMethod()
    found.logits_processor = SimpleNamespace(use_fp32_lm_head=False, use_fp32_lm_head_output=False)
    execution = SimpleNamespace(
        kernel=SimpleNamespace(bf16_gemm_backend="auto", fp8_gemm_runner_backend="auto"),
        deterministic=SimpleNamespace(enable_deterministic_inference=False),
    )
    monkeypatch.setattr(module, "get_exec", lambda: execution)
    monkeypatch.setattr(module, "get_lora", lambda: SimpleNamespace(enable_lora=False))
    monkeypatch.delenv("SALA_OWN_PRODUCTS", raising=False)
    monkeypatch.setattr(module, "_takes", lambda path: path == targets.SKINNY_LINEAR)
    found.execution, found.quant_config = execution, None
    return found


def methods(model) -> list[str]:
    module.use_skinny_linear(model)
    return [type(layer.quant_method).__name__ for layer in (model.linear, model.other, model.lm_head)]


def test_linear_layers_and_head(model):
    assert methods(model) == ["SkinnyLinearMethod", "object", "SkinnyHeadMethod"]


def test_a_pipeline_stage_without_a_head(model):
    model.lm_head = PPMissingLayer()
    module.use_skinny_linear(model)
    assert type(model.linear.quant_method).__name__ == "SkinnyLinearMethod"


def test_what_was_asked_for_stays(model, monkeypatch):
    kept = ["UnquantizedLinearMethod", "object", "UnquantizedEmbeddingMethod"]
    monkeypatch.setattr(model.execution.kernel, "bf16_gemm_backend", "torch")
    assert methods(model) == kept
    monkeypatch.setattr(model.execution.kernel, "bf16_gemm_backend", "auto")
    monkeypatch.setattr(model.execution.deterministic, "enable_deterministic_inference", True)
    assert methods(model) == kept


def test_not_on_another_gpu(model, monkeypatch):
    monkeypatch.setattr(module, "_takes", lambda path: False)
    assert methods(model) == ["UnquantizedLinearMethod", "object", "UnquantizedEmbeddingMethod"]


def test_head_in_float32_stays(model):
    model.logits_processor.use_fp32_lm_head = True
    assert methods(model) == ["SkinnyLinearMethod", "object", "UnquantizedEmbeddingMethod"]


@pytest.mark.parametrize(
    ("rows", "bias", "dtype", "skinny"),
    [
        (1, False, torch.bfloat16, True),
        (MAX_ROWS, False, torch.bfloat16, True),
        (MAX_ROWS + 1, False, torch.bfloat16, False),
        (1, False, torch.float16, True),
        (2, True, torch.bfloat16, False),
        (2, False, torch.float32, False),
    ],
)
def test_few_rows_alone(model, monkeypatch, rows, bias, dtype, skinny):
    calls = []

    def recorded(x, weight):
        calls.append(x.shape)
        return skinny_linear(x, weight)

    skinny_linear = module.skinny_linear
    monkeypatch.setattr(products, "MIN_OUTPUTS", 24)
    monkeypatch.setattr(module, "skinny_linear", recorded)
    module.use_skinny_linear(model)
    layer = model.linear.to(dtype)
    x = torch.randn(rows, 32, dtype=dtype)
    output = layer.quant_method.apply(layer, x, layer.bias if bias else None)
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias if bias else None)
    torch.testing.assert_close(output, expected)
    assert bool(calls) == skinny


def test_several_rows_and_few_outputs_are_left_to_cublas(model, monkeypatch):
    monkeypatch.setattr(module, "skinny_linear", None)
    module.use_skinny_linear(model)
    weight = model.linear.weight
    assert model.linear.quant_method.apply(model.linear, torch.ones(2, 32, dtype=weight.dtype)).shape == (2, 24)
