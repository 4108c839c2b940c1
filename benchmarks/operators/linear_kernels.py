"""What can multiply rows with a weight of each format: this project's operator and other libraries, where installed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from sala_kernels.float8_rows import quantize_rows
from sala_kernels.quantised_weights import (
    MARLIN_INPUTS,
    MARLIN_OUTPUTS,
    SCALE_BLOCK,
    Float8Weight,
    Int4Weight,
    Weight,
)
from sala_kernels.skinny_linear import MAX_INT4_ROWS, MAX_ROWS, skinny_linear

GROUP = 128  # inputs of a scale of four-bit weights
SIXTEEN, CHANNEL, BLOCK, INT4 = "16 bits", "FP8", "FP8 in blocks", "int4"
FORMATS = SIXTEEN, CHANNEL, BLOCK, INT4
Product = Callable[[], torch.Tensor]


def make_weight(form: str, outputs: int, inputs: int, device: str) -> Weight | None:
    """A random weight; None where a format does not have the size."""
    if form == INT4:
        if outputs % MARLIN_OUTPUTS or inputs % GROUP:
            return None
        words = torch.randint(-(2**31), 2**31, (inputs // MARLIN_INPUTS, 2 * outputs), device=device)
        scales = torch.rand(inputs // GROUP, outputs, device=device).bfloat16() / 100
        return Int4Weight(words.int(), scales)
    values = torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16)
    if form == SIXTEEN:
        return values
    # As quantised rows of normal values: the largest of them is about 4.5 times the usual size.
    codes = (100 * values).clamp(-448, 448).to(torch.float8_e4m3fn)
    blocks = -(-outputs // SCALE_BLOCK), -(-inputs // SCALE_BLOCK)
    sizes = (outputs,) if form == CHANNEL else blocks
    return Float8Weight(codes, (0.5 + torch.rand(sizes, device=device)) / 100)


def weight_bytes(form: str, outputs: int, inputs: int) -> int:
    """Of codes and scales."""
    count = outputs * inputs
    if form == INT4:
        return count * 4 // 8 + 2 * outputs * (inputs // GROUP)
    scales = {SIXTEEN: 0, CHANNEL: outputs, BLOCK: -(-outputs // SCALE_BLOCK) * -(-inputs // SCALE_BLOCK)}[form]
    return count * (2 if form == SIXTEEN else 1) + 4 * scales


@dataclass(frozen=True)
class Kernel:
    """form: of the weight. make: a call for rows and a weight; it raises where a library is missing. most: rows."""

    name: str
    form: str
    make: Callable[[torch.Tensor, Weight], Product]
    most: int | None = None
    needs_gpu: bool = True


def cublas(x: torch.Tensor, weight: Weight) -> Product:
    assert isinstance(weight, torch.Tensor)
    return partial(torch.nn.functional.linear, x, weight)


def gemv(x: torch.Tensor, weight: Weight) -> Product:
    """SGLang's, also for sizes that its rule leaves to cuBLAS."""
    from sglang.kernels.ops.gemm.hopper_bf16_gemv import hopper_bf16_gemv

    return partial(hopper_bf16_gemv, x, weight)


def own(x: torch.Tensor, weight: Weight) -> Product:
    return partial(skinny_linear, x, weight)


def float8_operands(x: torch.Tensor, weight: Weight) -> tuple[torch.Tensor, ...]:
    """Codes of rows and of the transposed weight, and scales of both, [T, 1] and [1, N]."""
    assert isinstance(weight, Float8Weight)
    rows = quantize_rows(x)
    return rows.codes, weight.codes.t(), rows.scales, weight.scales[None]


def scaled_mm(x: torch.Tensor, weight: Weight) -> Product:
    codes, weight_codes, scales, weight_scales = float8_operands(x, weight)
    given: dict[str, Any] = {"scale_a": scales, "scale_b": weight_scales, "out_dtype": x.dtype, "use_fast_accum": True}
    return partial(torch._scaled_mm, codes, weight_codes, **given)


def cutlass(x: torch.Tensor, weight: Weight) -> Product:
    return partial(import_module("sgl_kernel").fp8_scaled_mm, *float8_operands(x, weight), x.dtype)


def as_served(x: torch.Tensor, weight: Weight) -> Product:
    """SGLang's quantiser and its choice of a product, which is what its FP8 layers run."""
    from sglang.kernels.ops.gemm import fp8_scaled_mm
    from sglang.kernels.ops.quantization.per_token_quant_fp8 import per_token_quant_fp8

    codes, weight_codes, scales, weight_scales = float8_operands(x, weight)

    def product() -> torch.Tensor:
        per_token_quant_fp8(x, codes, scales)
        return fp8_scaled_mm(codes, weight_codes, scales, weight_scales, x.dtype)

    return product


def blocks_as_served(x: torch.Tensor, weight: Weight) -> Product:
    """SGLang's quantiser of groups and DeepGEMM, as its layers with scales in blocks run them."""
    from sglang.srt.layers.quantization.fp8_utils import deepgemm_w8a8_block_fp8_linear_with_fallback

    _check_deep_gemm()
    return partial(deepgemm_w8a8_block_fp8_linear_with_fallback, x, weight[0], [SCALE_BLOCK] * 2, weight[1])


def deep_gemm(x: torch.Tensor, weight: Weight) -> Product:
    from sglang.kernels.ops.quantization.fp8_kernel import sglang_per_token_group_quant_fp8
    from sglang.srt.layers.quantization.fp8_utils import w8a8_block_fp8_matmul_deepgemm

    _check_deep_gemm()
    codes, scales = sglang_per_token_group_quant_fp8(
        x, SCALE_BLOCK, column_major_scales=True, scale_tma_aligned=True, scale_ue8m0=False
    )
    given = codes, weight[0], scales, weight[1], [SCALE_BLOCK] * 2
    return partial(w8a8_block_fp8_matmul_deepgemm, *given, output_dtype=x.dtype)


def _check_deep_gemm() -> None:
    from sglang.srt.layers import deep_gemm_wrapper

    if not deep_gemm_wrapper.ENABLE_JIT_DEEPGEMM:
        raise RuntimeError("DeepGEMM is off or not installed")


def marlin(x: torch.Tensor, weight: Weight) -> Product:
    from sglang.kernels.ops.gemm.gptq_marlin import gptq_marlin_gemm
    from sglang.srt.layers.quantization.marlin_utils import marlin_make_workspace

    assert isinstance(weight, Int4Weight)
    scalar_types = import_module("sgl_kernel.scalar_type").scalar_types
    operands = x, None, weight.words, weight.scales, None, None, None, None, marlin_make_workspace(x.device)
    sizes = {"size_m": x.shape[0], "size_n": weight.outputs, "size_k": x.shape[1]}
    return partial(gptq_marlin_gemm, *operands, scalar_types.uint4b8, **sizes, use_fp32_reduce=True)


KERNELS = (
    Kernel("cublas", SIXTEEN, cublas, needs_gpu=False),
    Kernel("gemv", SIXTEEN, gemv, most=1),
    Kernel("skinny_linear", SIXTEEN, own, most=MAX_ROWS, needs_gpu=False),
    Kernel("torch._scaled_mm", CHANNEL, scaled_mm),
    Kernel("CUTLASS", CHANNEL, cutlass),
    Kernel("SGLang's FP8 layer", CHANNEL, as_served),
    Kernel("skinny_linear FP8", CHANNEL, own, most=MAX_ROWS, needs_gpu=False),
    Kernel("DeepGEMM", BLOCK, deep_gemm),
    Kernel("SGLang's FP8 layer in blocks", BLOCK, blocks_as_served),
    Kernel("skinny_linear FP8 in blocks", BLOCK, own, most=MAX_ROWS, needs_gpu=False),
    Kernel("Marlin", INT4, marlin),
    Kernel("skinny_linear int4", INT4, own, most=MAX_INT4_ROWS, needs_gpu=False),
)
