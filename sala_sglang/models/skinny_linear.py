"""Products of a few rows by skinny_linear, where that is chosen, and the FP8 rows that other products may be given."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from sala_kernels import targets
from sala_kernels.float8_rows import Float8Rows
from sala_kernels.quantised_weights import Float8Weight, Int4Weight, Weight
from sala_kernels.skinny_linear import skinny_linear
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from sglang.srt.layers.quantization.fp8 import Fp8LinearMethod
from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod, UnquantizedLinearMethod
from sglang.srt.layers.utils import PPMissingLayer
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
from sglang.srt.runtime_context import get_exec, get_lora
from torch import nn

from sala_sglang.environment import own_rows
from sala_sglang.models.products import is_own, reads_float8_rows
from sala_sglang.quantization import own_weights
from sala_sglang.quantization.formats import Float8
from sala_sglang.quantization.methods import DequantizedLinearMethod, PlannedConfig
from sala_sglang.quantization.scheme import Scheme

logger = logging.getLogger(__name__)

ONLINE_FP8 = Float8("channel", static=False)  # what SGLang makes of weights of 16 bits
PREFILL_ROWS = 512  # from which on rows come in FP8: it was measured in prefill, and decode steps have fewer


class LanguageModel(Protocol):
    """What is looked at of a served model."""

    lm_head: ParallelLMHead
    logits_processor: LogitsProcessor
    quant_config: QuantizationConfig | None

    def modules(self) -> Iterator[nn.Module]: ...


def use_skinny_linear(model: LanguageModel) -> None:
    """Give the linear layers and the head of ``model`` the methods below, where these compute some products.

    Not where the user named a backend, nor for deterministic inference: sums depend on the number of rows.
    """
    execution, rows = get_exec(), own_rows()
    if execution.deterministic.enable_deterministic_inference:
        return
    # Layers with LoRA read their input beside the product.
    float8_rows = _takes(targets.FLOAT8_ROWS) and not get_lora().enable_lora
    if (rows or float8_rows) and execution.kernel.fp8_gemm_runner_backend == "auto":
        _use_quantized(model, rows, float8_rows)
    if execution.kernel.bf16_gemm_backend != "auto" or not _takes(targets.SKINNY_LINEAR):
        return
    for module in model.modules():
        if type(getattr(module, "quant_method", None)) is UnquantizedLinearMethod:
            module.quant_method = SkinnyLinearMethod()
    if isinstance(model.lm_head, PPMissingLayer):
        return  # it is on another pipeline stage
    processor = model.logits_processor
    wide = processor.use_fp32_lm_head or processor.use_fp32_lm_head_output
    if type(model.lm_head.quant_method) is UnquantizedEmbeddingMethod and not wide:
        model.lm_head.quant_method = SkinnyHeadMethod()


def _use_quantized(model: LanguageModel, rows: bool, float8_rows: bool) -> None:
    planned: Mapping[nn.Module, Scheme] = {}
    if isinstance(model.quant_config, PlannedConfig):
        planned = model.quant_config.schemes
    count = 0
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        scheme = planned.get(module) or (ONLINE_FP8 if type(method) is Fp8LinearMethod else None)
        if scheme is not None:
            module.quant_method = QuantizedLinearMethod(method, scheme, rows, float8_rows)
            count += 1
    if count:
        chosen = [name for name, taken in (("own products of few rows", rows), ("FP8 rows", float8_rows)) if taken]
        logger.info("%d quantised layers have %s", count, " and ".join(chosen))


def _takes(path: str) -> bool:
    return torch.cuda.is_available() and targets.uses(path, torch.device("cuda"))


class WeightedLayer(Protocol):
    """A linear layer or a head."""

    weight: torch.Tensor  # [outputs, inputs]


class SkinnyRows(QuantizeMethodBase):
    """Computes products of few rows by skinny_linear, and leaves all others to the next class."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted = own_rows()

    def apply(self, layer: WeightedLayer, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        weight = layer.weight
        if bias is None and x.dtype == weight.dtype and weight.stride(1) == 1 and _fits(x, weight, self.wanted):
            return skinny_linear(x, weight)
        return super().apply(layer, x, bias)


class SkinnyLinearMethod(SkinnyRows, UnquantizedLinearMethod):
    """For linear layers."""


class SkinnyHeadMethod(SkinnyRows, UnquantizedEmbeddingMethod):
    """For the head that makes logits."""


class QuantizedLinearMethod(QuantizeMethodBase):
    """Computes products of few rows with quantised weights by skinny_linear, and leaves all else to ``method``.

    rows: whether it does. float8_rows: whether the rows of others may come in FP8.
    """

    def __init__(self, method: Any, scheme: Scheme, rows: bool, float8_rows: bool) -> None:
        super().__init__()
        self.method, self.scheme, self.rows, self.float8_rows = method, scheme, rows, float8_rows
        self.weight: Weight | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def create_weights(self, layer: nn.Module, *sizes: Any, **attributes: Any) -> None:
        self.method.create_weights(layer, *sizes, **attributes)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        if isinstance(self.method, DequantizedLinearMethod):
            tensors = {name: tensor.clone() for name, tensor in self.method.tensors(layer).items()}
            self.weight = own_weights.on_cpu(self.scheme, tensors, self.method.widths, self.method.dtype)
            self.method.process_weights_after_loading(layer)
        else:
            self.method.process_weights_after_loading(layer)
            self.weight = own_weights.on_gpu(self.scheme, layer)

    def apply(
        self, layer: nn.Module, x: torch.Tensor | tuple[torch.Tensor, ...], bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        weight = self.weight if self.rows and bias is None else None
        if weight is not None and isinstance(x, torch.Tensor) and _fits(x, weight, wanted=True):
            return skinny_linear(x, weight)
        return self.method.apply(layer, x, bias)

    def takes_float8(self, rows: int) -> bool:
        """Whether the product of so many rows is one of FP8 with FP8, to which its rows may come quantised."""
        if not self.float8_rows or torch.compiler.is_compiling() or rows < PREFILL_ROWS:
            return False
        if not isinstance(self.weight, Float8Weight) or self.weight.codes.is_cpu:
            return False
        return reads_float8_rows(self.scheme)


def takes_float8(layers: list[nn.Module], rows: int) -> bool:
    """Whether all of ``layers``, which have the same input, take so many rows in FP8."""
    methods = [getattr(layer, "quant_method", None) for layer in layers]
    return all(isinstance(method, QuantizedLinearMethod) and method.takes_float8(rows) for method in methods)


def as_input(x: torch.Tensor | Float8Rows, dtype: torch.dtype) -> Any:
    """``x`` as SGLang's linear layers take it; ``dtype`` is that of their output."""
    return (x.codes, x.scales, dtype) if isinstance(x, Float8Rows) else x


def _fits(x: torch.Tensor, weight: Weight, wanted: bool) -> bool:
    if isinstance(weight, Int4Weight) and weight.scales.dtype != x.dtype:
        return False
    # Under torch.compile the number of rows is a symbol.
    return (
        not torch.compiler.is_compiling()
        and x.ndim == 2
        and is_own(weight, x.shape[0], wanted)
        and (x.dtype in (torch.bfloat16, torch.float16) or (x.is_cpu and not isinstance(weight, torch.Tensor)))
        and x.stride(1) == 1
    )
