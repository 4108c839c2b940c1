"""The products of quantised layers: SGLang's own on a GPU, and those of the dequantised weight elsewhere."""

from collections.abc import MutableMapping
from functools import singledispatch
from typing import Any
from weakref import WeakKeyDictionary

import torch
from compressed_tensors.quantization import QuantizationArgs
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.quantization.awq.awq import AWQLinearMethod, AWQMarlinConfig
from sglang.srt.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from sglang.srt.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsLinearMethod
from sglang.srt.layers.quantization.compressed_tensors.schemes import CompressedTensorsW8A8Fp8, CompressedTensorsWNA16
from sglang.srt.layers.quantization.fp8 import Fp8Config, Fp8LinearMethod
from sglang.srt.layers.quantization.gptq import GPTQMarlinConfig, GPTQMarlinLinearMethod
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.layers.quantization.w8a8_int8 import W8A8Int8Config, W8A8Int8LinearMethod
from torch import nn

from sala_sglang.quantization import METHOD
from sala_sglang.quantization.formats import AWQ, FP8_BLOCK, GPTQ, Float8, Int8, PackedIntegers
from sala_sglang.quantization.plan import QuantizationPlan
from sala_sglang.quantization.scheme import Scheme


class PlannedConfig(QuantizationConfig):
    """What SGLang asks for the method of a linear layer. Layers are known by the released name of their first part."""

    def __init__(self, plan: QuantizationPlan) -> None:
        super().__init__()
        self.plan = plan
        # Of the layers that were asked for; SGLang's registry keeps this object longer than the model.
        self.schemes: MutableMapping[nn.Module, Scheme] = WeakKeyDictionary()

    def get_name(self) -> str:
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        products = [torch.bfloat16, torch.float16]
        return products if torch.cuda.is_available() else [*products, torch.float32]

    def get_min_capability(self) -> int:
        """Of the GPU, as two digits."""
        return 89 if any(isinstance(scheme, Float8) for scheme in self.plan.schemes.values()) else 80

    def get_config_filenames(self) -> list[str]:
        return ["quantize_config.json"]

    def from_config(self, config: dict[str, Any]) -> "PlannedConfig":
        """SGLang's registry has this object in the place of a class: the plan is made before, from the files too."""
        return self

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if not isinstance(layer, LinearBase):
            return None
        scheme = self.plan.schemes.get(prefix)
        if scheme is None:
            return UnquantizedLinearMethod()
        self.schemes[layer] = scheme
        return gpu_method(scheme, layer, self) if torch.cuda.is_available() else DequantizedLinearMethod(scheme)

    def get_scaled_act_names(self) -> list[str]:
        return []


class DequantizedLinearMethod(UnquantizedLinearMethod):
    """Keeps the weight for which the tensors of a quantised layer stand, in the dtype of the model."""

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        self.widths, self.dtype = output_partition_sizes, params_dtype
        for suffix, stored in self.scheme.stored().items():
            inputs = input_size if stored.whole else input_size_per_partition
            shape = stored.shape(sum(output_partition_sizes), inputs) if stored.axes else (len(output_partition_sizes),)
            dtype = torch.float32 if stored.scale else stored.dtypes[0]
            parameter = nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
            layer.register_parameter(stored.parameter or suffix, parameter)

    def tensors(self, layer: nn.Module) -> dict[str, torch.Tensor]:
        """Loaded tensors by their suffixes."""
        stored = self.scheme.stored().items()
        return {suffix: getattr(layer, one.parameter or suffix).data for suffix, one in stored}

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        weight = self.scheme.dequantize(self.tensors(layer), self.widths).to(self.dtype).contiguous()
        for suffix, stored in self.scheme.stored().items():
            delattr(layer, stored.parameter or suffix)
        layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))


@singledispatch
def gpu_method(scheme: Scheme, layer: LinearBase, config: PlannedConfig) -> QuantizeMethodBase:
    """SGLang's method for a layer of ``scheme``."""
    raise NotImplementedError(f"SGLang has no products of {scheme.name}")


@gpu_method.register
def _(scheme: GPTQ, layer: LinearBase, config: PlannedConfig) -> QuantizeMethodBase:
    return GPTQMarlinLinearMethod(
        GPTQMarlinConfig(
            weight_bits=scheme.bits,
            group_size=scheme.group,
            desc_act=scheme.act_order,
            is_sym=True,
            lm_head_quantized=False,
            dynamic={},
            full_config={},
        )
    )


@gpu_method.register
def _(scheme: AWQ, layer: LinearBase, config: PlannedConfig) -> QuantizeMethodBase:
    marlin = AWQMarlinConfig(
        4, scheme.group, True, lm_head_quantized=False, modules_to_not_convert=None, full_config={}
    )
    layer.scheme = marlin.get_linear_scheme(layer)
    return AWQLinearMethod(marlin)


@gpu_method.register
def _(scheme: PackedIntegers, layer: LinearBase, config: PlannedConfig) -> QuantizeMethodBase:
    grouped = scheme.group != -1
    layer.scheme = CompressedTensorsWNA16(
        "group" if grouped else "channel", scheme.bits, scheme.group if grouped else None, symmetric=True
    )
    return CompressedTensorsLinearMethod(config)


@gpu_method.register
def _(scheme: Float8, layer: LinearBase, config: PlannedConfig) -> QuantizeMethodBase:
    if scheme.scales == "channel":
        weights = QuantizationArgs(num_bits=8, type="float", strategy="channel", symmetric=True)
        layer.scheme = CompressedTensorsW8A8Fp8(weights, is_static_input_scheme=False)
        return CompressedTensorsLinearMethod(config)
    # This method keeps the scales of merged layers apart, where that of compressed-tensors rounds a second time.
    block = [FP8_BLOCK, FP8_BLOCK] if scheme.scales == "block" else None
    return Fp8LinearMethod(Fp8Config(True, "static" if scheme.static else "dynamic", weight_block_size=block))


@gpu_method.register
def _(scheme: Int8, layer: LinearBase, config: PlannedConfig) -> QuantizeMethodBase:
    return W8A8Int8LinearMethod(W8A8Int8Config({}))
