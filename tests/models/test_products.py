"""Which products of quantised layers are own ones, and that they are those of SGLang's weights."""

from types import SimpleNamespace

import pytest
import torch
from sala_kernels import targets
from sala_kernels.float8_rows import Float8Rows
from sala_kernels.quantised_weights import Float8Weight, Int4Weight
from sglang.srt.layers.quantization.fp8 import Fp8LinearMethod
from torch import nn

from sala_sglang import environment
from sala_sglang.models import skinny_linear as module
from sala_sglang.models.products import FEW_ROWS, MIN_OUTPUTS, is_own
from sala_sglang.quantization import own_weights
from sala_sglang.quantization.formats import AWQ, GPTQ, Float8, Int8, PackedIntegers
from sala_sglang.quantization.methods import DequantizedLinearMethod
from testing.quantised_checkpoints import Recipe

OUTPUTS, INPUTS = 128, 256
SCHEMES = {
    "gptq": (Recipe("gptq", group=64), GPTQ(4, 64, act_order=False)),
    "awq": (Recipe("awq", group=128), AWQ(128)),
    "compressed int": (Recipe("compressed int", group=128), PackedIntegers(4, 128)),
    "compressed fp8 channel": (Recipe("compressed fp8 channel"), Float8("channel", static=False)),
    "compressed fp8 tensor": (Recipe("compressed fp8 tensor"), Float8("tensor", static=False)),
    "fp8 block": (Recipe("fp8 block"), Float8("block", False, "weight_scale_inv")),
}


def meta(outputs: int, kind: str) -> torch.Tensor | Float8Weight | Int4Weight:
    if kind == "16 bits":
        return torch.empty(outputs, 128, device="meta")
    if kind == "int4":
        return Int4Weight(torch.empty(8, 2 * outputs, device="meta"), torch.empty(1, outputs, device="meta"))
    return Float8Weight(torch.empty(outputs, 128, device="meta"), torch.empty(outputs, device="meta"))


@pytest.mark.parametrize(
    ("kind", "rows", "outputs", "own", "wanted"),
    [
        ("16 bits", 1, 4096, True, True),
        ("16 bits", 2, 4096, False, True),
        ("16 bits", 9, 4096, False, False),
        ("16 bits", 64, MIN_OUTPUTS, True, True),
        ("16 bits", 65, MIN_OUTPUTS, False, False),
        ("fp8", 1, 4096, False, True),
        ("fp8", FEW_ROWS + 1, 4096, False, False),
        ("fp8", 64, MIN_OUTPUTS, False, True),
        ("fp8", 65, MIN_OUTPUTS, False, False),
        ("int4", 8, 4096, False, True),
        ("int4", 9, MIN_OUTPUTS, False, False),
    ],
)
def test_choice(kind, rows, outputs, own, wanted):
    weight = meta(outputs, kind)
    assert is_own(weight, rows, wanted=False) == own and is_own(weight, rows, wanted=True) == wanted


def loaded(name: str, dtype: torch.dtype) -> tuple[nn.Module, module.QuantizedLinearMethod]:
    """A layer of the scheme on a CPU, with the tensors that a file has."""
    recipe, scheme = SCHEMES[name]
    method = module.QuantizedLinearMethod(DequantizedLinearMethod(scheme), scheme, rows=True, float8_rows=True)
    layer = nn.Module()
    method.create_weights(layer, INPUTS, [OUTPUTS], INPUTS, OUTPUTS, params_dtype=dtype)
    encoded, _ = recipe.encode("layer.q_proj.weight", torch.randn(OUTPUTS, INPUTS))
    for suffix, stored in scheme.stored().items():
        parameter = getattr(layer, stored.parameter or suffix)
        if suffix in encoded:
            parameter.data.copy_(encoded[suffix].reshape(parameter.shape))
    method.process_weights_after_loading(layer)
    return layer, method


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
def test_both_choices_are_equal(name, rows, monkeypatch):
    calls = []
    skinny_linear = module.skinny_linear
    monkeypatch.setattr(module, "skinny_linear", lambda *given: calls.append(given) or skinny_linear(*given))
    layer, method = loaded(name, torch.float32)
    x = torch.randn(rows, INPUTS)
    expected = method.method.apply(layer, x)
    torch.testing.assert_close(method.apply(layer, x), expected, rtol=1e-5, atol=1e-4)
    assert len(calls) == (rows <= FEW_ROWS)
    method.rows = False
    assert torch.equal(method.apply(layer, x), expected) and len(calls) == (rows <= FEW_ROWS)


def test_what_a_gpu_holds_is_read_as_it_is():
    """Tensors by the names and in the layouts that SGLang's methods leave behind."""
    for name, names in {
        "gptq": ("qweight", "scales"),
        "compressed int": ("weight_packed", "weight_scale"),
        "awq": ("qweight", "scales", "qzeros"),
    }.items():
        weight = loaded(name, torch.bfloat16)[1].weight
        found = own_weights.on_gpu(SCHEMES[name][1], SimpleNamespace(**dict(zip(names, weight, strict=False))))
        assert isinstance(found, Int4Weight) and found.words is weight.words
        assert torch.equal(found.dequantize(), weight.dequantize())
    channel = loaded("compressed fp8 channel", torch.bfloat16)[1].weight
    # SGLang keeps the transposed view, and scales [N, 1], [1, N] or one of them.
    for scales in (channel.scales[:, None], channel.scales[None]):
        layer = SimpleNamespace(weight=channel.codes.t(), weight_scale=scales)
        found = own_weights.on_gpu(module.ONLINE_FP8, layer)
        assert torch.equal(found.dequantize(), channel.dequantize())
        assert found.codes.data_ptr() == channel.codes.data_ptr()
    one = SimpleNamespace(weight=channel.codes.t(), weight_scale=torch.tensor(0.5))
    assert torch.equal(own_weights.on_gpu(module.ONLINE_FP8, one).dequantize(), channel.codes.float() / 2)
    block = loaded("fp8 block", torch.bfloat16)[1].weight
    layer = SimpleNamespace(weight=block.codes, weight_scale_inv=block.scales)
    assert torch.equal(own_weights.on_gpu(SCHEMES["fp8 block"][1], layer).dequantize(), block.dequantize())


@pytest.mark.parametrize(
    "scheme",
    [GPTQ(8, 128, False), GPTQ(4, 128, True), GPTQ(4, -1, False), GPTQ(4, 32, False), PackedIntegers(8, 128), Int8()],
)
def test_what_own_products_cannot_read_is_left_to_sglang(scheme):
    groups = {-1: 1, 32: 8, 128: 2}[getattr(scheme, "group", 128)]
    tensors = torch.empty(INPUTS // 16, 2 * OUTPUTS, dtype=torch.int32), torch.empty(groups, OUTPUTS)
    assert own_weights.on_gpu(scheme, SimpleNamespace(qweight=tensors[0], scales=tensors[1])) is None


def test_layers_that_take_float8():
    codes = torch.empty(4096, 128, dtype=torch.float8_e4m3fn, device="meta")
    channel = Float8Weight(codes, torch.empty(4096, device="meta"))

    def layer(scheme=module.ONLINE_FP8, float8_rows=True, weight=channel):
        method = module.QuantizedLinearMethod(None, scheme, rows=True, float8_rows=float8_rows)
        method.weight = weight
        return SimpleNamespace(quant_method=method)

    rows = module.PREFILL_ROWS
    assert module.takes_float8([layer(), layer()], rows) and not module.takes_float8([layer()], rows - 1)
    assert not module.takes_float8([layer(), SimpleNamespace(quant_method=None)], rows)
    for other in (
        layer(float8_rows=False),
        layer(Float8("tensor", static=True)),
        layer(Float8("block", static=False)),
        layer(Int8(), weight=None),
    ):
        assert not module.takes_float8([layer(), other], rows)
    x = torch.ones(1, 2)
    assert module.as_input(x, torch.bfloat16) is x
    assert module.as_input(Float8Rows(x, x), torch.bfloat16) == (x, x, torch.bfloat16)


def test_methods_of_a_model(monkeypatch):
    """Off by default, but for rows of FP8 on Hopper; for layers of the plan and those that SGLang quantises itself."""
    execution = SimpleNamespace(
        kernel=SimpleNamespace(bf16_gemm_backend="auto", fp8_gemm_runner_backend="auto"),
        deterministic=SimpleNamespace(enable_deterministic_inference=False),
    )
    monkeypatch.setattr(module, "get_exec", lambda: execution)
    monkeypatch.setattr(module, "get_lora", lambda: SimpleNamespace(enable_lora=False))
    model = nn.Module()
    model.online = nn.Module()
    model.quant_config, model.online.quant_method = None, Fp8LinearMethod.__new__(Fp8LinearMethod)
    monkeypatch.delenv(environment.OWN_PRODUCTS, raising=False)
    module.use_skinny_linear(model)
    assert type(model.online.quant_method) is Fp8LinearMethod
    monkeypatch.setenv(environment.OWN_PRODUCTS, "rows")
    monkeypatch.setattr(execution.kernel, "fp8_gemm_runner_backend", "triton")
    module.use_skinny_linear(model)
    assert type(model.online.quant_method) is Fp8LinearMethod
    monkeypatch.setattr(execution.kernel, "fp8_gemm_runner_backend", "auto")
    module.use_skinny_linear(model)
    assert type(model.online.quant_method) is module.QuantizedLinearMethod
    assert model.online.quant_method.scheme == module.ONLINE_FP8
    assert model.online.quant_method.rows and not model.online.quant_method.float8_rows

    monkeypatch.delenv(environment.OWN_PRODUCTS)
    monkeypatch.setattr(module, "_takes", lambda path: path == targets.FLOAT8_ROWS)
    for with_lora, kind in (True, Fp8LinearMethod), (False, module.QuantizedLinearMethod):
        monkeypatch.setattr(module, "get_lora", lambda enabled=with_lora: SimpleNamespace(enable_lora=enabled))
        model.online.quant_method = Fp8LinearMethod.__new__(Fp8LinearMethod)
        module.use_skinny_linear(model)
        assert type(model.online.quant_method) is kind
    assert model.online.quant_method.float8_rows and not model.online.quant_method.rows


def test_words_of_the_environment(monkeypatch):
    for given, found in {"": False, "rows": True, " rows ": True}.items():
        monkeypatch.setenv(environment.OWN_PRODUCTS, given)
        assert environment.own_rows() == found
    monkeypatch.setenv(environment.OWN_PRODUCTS, "1")
    with pytest.raises(ValueError, match=r"SALA_OWN_PRODUCTS = '1' is not possible; allowed: 'rows'"):
        environment.own_rows()
