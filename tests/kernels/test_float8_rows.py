"""Operators that quantise their rows: as quantising their output in 16 bits, and as SGLang's quantiser."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sala_kernels.float8_rows import E4M3_MAX, Float8Rows, quantize_rows
from sala_kernels.gated_norm import gated_norm
from sala_kernels.scaled_add_norm import scaled_add_norm
from sala_kernels.sigmoid_gate import sigmoid_gate
from sala_kernels.silu_mul import silu_mul

from tests.kernels.interpreter import repair_short_floats
from tests.kernels.sparse_inputs import poisoned_memory as poisoned_memory
from tests.kernels.test_norms import EPS, SCALE, make_rows

repair_short_floats()
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
sizes = pytest.mark.parametrize(("tokens", "width"), [(0, 64), (1, 1), (5, 96), (3, 128), (2, 4096)])
real_sizes = pytest.mark.parametrize(("tokens", "width"), [(1, 4096), (8192, 4096), (512, 16384), (33, 5000)])
operators = pytest.mark.parametrize("name", ["gated_norm", "given mean square", "scaled_add_norm", "sigmoid_gate"])


def calls(name: str, tokens: int, width: int, dtype: torch.dtype, device: str) -> Callable:
    """A function of to_float8 that calls the operator in Triton."""
    x, gate, weight = make_rows(tokens, width, dtype, device)
    mean_square = 0.5 + torch.rand(tokens, device=device)

    def call(to_float8: bool) -> torch.Tensor | Float8Rows:
        chosen: dict[str, Any] = {"to_float8": to_float8, "implementation": "triton"}
        if name == "scaled_add_norm":
            return scaled_add_norm(x, gate, SCALE, weight, EPS, **chosen)[0]
        if name == "sigmoid_gate":
            return sigmoid_gate(x, gate, **chosen)
        return gated_norm(x, gate, weight, EPS, None if name == "gated_norm" else mean_square, **chosen)

    return call


def check_operator(name: str, tokens: int, width: int, dtype: torch.dtype, device: str) -> None:
    """Codes and scales are those of the output that the same kernel gives without, on a GPU or of one a step away.

    There sums may be contracted elsewhere for the other output, and an element then falls on the other side of a
    rounding border of ``dtype``, by which its code, or the scale of its row, may move.
    """
    call = calls(name, tokens, width, dtype, device)
    found, output = call(True), call(False)
    assert isinstance(found, Float8Rows) and found.codes.shape == (tokens, width) and found.scales.shape == (tokens, 1)
    expected, step = quantize_rows(output), torch.finfo(dtype).eps
    if device == "cpu":
        assert torch.equal(found.scales, expected.scales)
        assert torch.equal(found.codes.view(torch.uint8), expected.codes.view(torch.uint8))
    torch.testing.assert_close(found.scales, expected.scales, rtol=step, atol=0)
    low, high = ((output.float() * (1 + sign * 2 * step) / found.scales).nan_to_num() for sign in (-1, 1))
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    codes = found.codes.float()
    assert (codes >= low.clamp(min=-E4M3_MAX).to(torch.float8_e4m3fn).float()).all()
    assert (codes <= high.clamp(max=E4M3_MAX).to(torch.float8_e4m3fn).float()).all()
    assert (codes != expected.codes.float()).sum() <= 1 + 1e-3 * codes.numel()


@operators
@dtypes
@sizes
def test_codes_are_those_of_the_output(device, name, tokens, width, dtype):
    check_operator(name, tokens, width, dtype, device)


@operators
def test_reference_quantises_its_output(name):
    x, gate, weight = make_rows(4, 50, torch.bfloat16, "cpu")
    if name == "scaled_add_norm":
        (found, hidden), (plain, other) = (
            scaled_add_norm(x, gate, SCALE, weight, EPS, to_float8=to_float8) for to_float8 in (True, False)
        )
        assert torch.equal(hidden, other)
    elif name == "sigmoid_gate":
        found, plain = (sigmoid_gate(x, gate, to_float8=to_float8) for to_float8 in (True, False))
    else:
        given = torch.ones(4) if name == "given mean square" else None
        found, plain = (gated_norm(x, gate, weight, EPS, given, to_float8=to_float8) for to_float8 in (True, False))
    expected = quantize_rows(plain)
    assert torch.equal(found.codes.float(), expected.codes.float()) and torch.equal(found.scales, expected.scales)


def check_silu_mul(tokens: int, width: int, dtype: torch.dtype, device: str) -> None:
    """Equal but for elements that another float32 exponential pushes over a rounding border: a step of e4m3 apart."""
    gate_up = (4 * torch.randn(tokens, 2 * width + 16, device=device)).to(dtype)[:, : 2 * width]
    found, expected = (silu_mul(gate_up, implementation=name) for name in ("triton", "reference"))
    assert found.codes.shape == (tokens, width)
    torch.testing.assert_close(found.scales, expected.scales, rtol=2 * torch.finfo(dtype).eps, atol=0)
    codes, others = found.codes.float(), expected.codes.float()
    assert (codes != others).sum() <= 1 + 0.02 * codes.numel()
    torch.testing.assert_close(codes, others, rtol=2**-3, atol=2**-9)
    # Whether both are the activation: float64 of the definition, and half a step of e4m3.
    gate, up = gate_up.double().chunk(2, -1)
    exact = gate / (1 + (-gate).exp()) * up
    rounding = 2**-4 * exact.abs() + found.scales.double() * 2**-10 + 2 * torch.finfo(dtype).eps * exact.abs()
    assert ((found.codes.double() * found.scales.double() - exact).abs() <= rounding).all()


@dtypes
@sizes
def test_silu_mul(device, tokens, width, dtype):
    check_silu_mul(tokens, width, dtype, device)


def test_quantised_rows_are_rounded_to_nearest():
    x = torch.randn(7, 300, dtype=torch.bfloat16) * torch.tensor([1e-30, 1e-3, 1, 3, 100, 1e4, 1e30])[:, None]
    codes, scales = quantize_rows(x)
    assert torch.equal(scales[:, 0], x.float().abs().amax(-1) / E4M3_MAX)
    wide = x.double() / scales.double()
    steps = 2 ** (wide.abs().clamp(min=2**-6).log2().floor() - 3)
    assert ((codes.double() - wide).abs() <= steps * (0.5 + 1e-5)).all()
    assert (codes.float().abs().amax(-1) == E4M3_MAX).all()


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value) encountered")  # as they are in such rows
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_rows_without_a_scale(device, implementation):
    """Zeros stay zeros, and what is not finite stays seen."""
    x = torch.ones(4, 32, dtype=torch.bfloat16, device=device)
    x[0], x[1, 3], x[2, 3] = 0, torch.nan, torch.inf
    codes, scales = sigmoid_gate(x, torch.zeros_like(x), to_float8=True, implementation=implementation)
    assert scales[0] == 0 and (codes[0].float() == 0).all()
    assert codes[1, 3].float().isnan() and codes[2, 3].float().isnan()
    assert (codes[3].float() == E4M3_MAX).all()


def test_odd_columns_are_refused():
    with pytest.raises(ValueError, match="gate_up: expected an even number of columns, got 3"):
        silu_mul(torch.ones(1, 3))


@pytest.mark.gpu
@operators
@pytest.mark.parametrize("dtype", [torch.bfloat16])
@real_sizes
def test_codes_at_real_size(device, name, tokens, width, dtype):
    check_operator(name, tokens, width, dtype, device)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16])
@real_sizes
def test_silu_mul_at_real_size(device, tokens, width, dtype):
    check_silu_mul(tokens, width, dtype, device)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 64, 8192])
def test_as_sglang_quantises(tokens):
    """On Hopper SGLang divides with fast mathematics: scales are two units apart at most, and codes differ at ties.

    Of two numbers in bfloat16 the quotient often lies just between two codes.
    """
    kernel = pytest.importorskip("sglang.kernels.ops.quantization.per_token_quant_fp8")
    x = torch.randn(tokens, 4096, dtype=torch.bfloat16, device="cuda")
    codes, scales = torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty(tokens, 1, dtype=torch.float32)
    kernel.per_token_quant_fp8(x, codes, scales)
    found = quantize_rows(x)
    torch.testing.assert_close(found.scales, scales, rtol=2 * torch.finfo(torch.float32).eps, atol=0)
    ours, theirs = found.codes.double(), codes.double()
    torch.testing.assert_close(ours, theirs, rtol=2**-3, atol=2**-9)
    between, differ = (ours + theirs) / 2, ours != theirs
    assert ((x.double() / found.scales.double() - between)[differ].abs() <= 2**-20 * between[differ].abs()).all()
