"""Products of a few rows with weights that are not quantized, on GPUs where skinny_linear reads those fastest."""

from collections.abc import Iterator
from typing import Protocol

import torch
from sala_kernels import targets
from sala_kernels.skinny_linear import MAX_ROWS, skinny_linear
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.quantization.base_config import QuantizeMethodBase
from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod, UnquantizedLinearMethod
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
from sglang.srt.runtime_context import get_exec
from torch import nn

MIN_OUTPUTS = 16384  # of products of several rows; with fewer ones cuBLAS is as fast or faster


class LanguageModel(Protocol):
    """What is looked at of a served model."""

    lm_head: ParallelLMHead
    logits_processor: LogitsProcessor

    def modules(self) -> Iterator[nn.Module]: ...


def use_skinny_linear(model: LanguageModel) -> None:
    """Give the unquantized linear layers and the head of ``model`` the methods below, where they are faster.

    Not where the user named a backend, nor for deterministic inference: sums depend on the number of rows.
    """
    execution = get_exec()
    deterministic = execution.deterministic.enable_deterministic_inference
    if execution.kernel.bf16_gemm_backend != "auto" or deterministic or not _is_chosen():
        return
    for module in model.modules():
        if type(getattr(module, "quant_method", None)) is UnquantizedLinearMethod:
            module.quant_method = SkinnyLinearMethod()
    processor = model.logits_processor
    wide = processor.use_fp32_lm_head or processor.use_fp32_lm_head_output
    if type(model.lm_head.quant_method) is UnquantizedEmbeddingMethod and not wide:
        model.lm_head.quant_method = SkinnyHeadMethod()


def _is_chosen() -> bool:
    return torch.cuda.is_available() and targets.uses(targets.SKINNY_LINEAR, torch.device("cuda"))


class WeightedLayer(Protocol):
    """A linear layer or a head."""

    weight: torch.Tensor  # [outputs, inputs]


class SkinnyRows(QuantizeMethodBase):
    """Computes products of at most MAX_ROWS rows by skinny_linear, and leaves all others to the next class."""

    def apply(self, layer: WeightedLayer, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if bias is None and _fits(x, layer.weight):
            return skinny_linear(x, layer.weight)
        return super().apply(layer, x, bias)


class SkinnyLinearMethod(SkinnyRows, UnquantizedLinearMethod):
    """For linear layers."""


class SkinnyHeadMethod(SkinnyRows, UnquantizedEmbeddingMethod):
    """For the head that makes logits."""


def _fits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    # Under torch.compile the number of rows is a symbol.
    return (
        not torch.compiler.is_compiling()
        and x.ndim == 2
        and (x.shape[0] == 1 or (x.shape[0] <= MAX_ROWS and weight.shape[0] >= MIN_OUTPUTS))
        and x.dtype == weight.dtype
        and x.dtype in (torch.bfloat16, torch.float16)
        and x.stride(1) == weight.stride(1) == 1
    )
