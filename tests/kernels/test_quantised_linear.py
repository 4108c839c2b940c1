"""skinny_linear with quantised weights: products of the dequantised weight, within rounding; Marlin's layout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sala_kernels.quantised_weights import SCALE_BLOCK, Float8Weight, Int4Weight, int4_weight
from sala_kernels.skinny_linear import MAX_INT4_ROWS, MAX_ROWS, skinny_linear

from testing.server import START_SECONDS
from tests.kernels.interpreter import repair_short_floats
from tests.kernels.quick_interpreter import patch_once_per_launch
from tests.kernels.sparse_inputs import gpu
from tests.kernels.sparse_inputs import poisoned_memory as poisoned_memory

ROOT = Path(__file__).parents[2]

repair_short_floats()
patch_once_per_launch()

every = pytest.mark.parametrize("implementation", ["reference", "triton"])
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
kinds = pytest.mark.parametrize("kind", ["tensor", "channel", "block"])
zeros = pytest.mark.parametrize("with_zeros", [False, True])


def make_rows(rows: int, inputs: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Rows of a wider tensor: their stride is not their length."""
    return torch.randn(rows, inputs + 16, device=device).to(dtype)[:, :inputs]


def make_float8(outputs: int, inputs: int, kind: str, device: str) -> Float8Weight:
    """Random codes, all values of e4m3 but NaN among them, with scales that differ by up to a thousand."""
    codes, signs = (torch.randint(0, end, (outputs, inputs), device=device) for end in (127, 2))
    blocks = -(-outputs // SCALE_BLOCK), -(-inputs // SCALE_BLOCK)
    sizes = {"tensor": (1,), "channel": (outputs,), "block": blocks}[kind]
    scales = 10 ** (-3 * torch.rand(sizes, device=device))
    scales = scales.expand(outputs) if kind == "tensor" else scales
    return Float8Weight((codes + 128 * signs).to(torch.uint8).view(torch.float8_e4m3fn), scales)


def make_int4(
    outputs: int, inputs: int, group: int, with_zeros: bool, dtype: torch.dtype, device: str
) -> tuple[Int4Weight, torch.Tensor, torch.Tensor]:
    """A random weight, its values [N, K] float64, and the size of what they are computed from."""
    groups = inputs // group
    codes = torch.randint(0, 16, (outputs, inputs), device=device)
    found = torch.randint(0, 16, (outputs, groups), device=device)
    scales = (10 ** (-3 * torch.rand(outputs, groups, device=device))).to(dtype)
    every_zero, every_scale = (
        each.repeat_interleave(group, dim=1).double() for each in (found if with_zeros else 8 + 0 * found, scales)
    )
    values = (codes - every_zero) * every_scale
    size = ((codes - 8).abs() + (every_zero - 8).abs()) * every_scale
    return int4_weight(codes, scales, found if with_zeros else None), values, size


def deviation(output: torch.Tensor, x: torch.Tensor, values: torch.Tensor, size: torch.Tensor) -> float:
    """Largest deviation from the float64 product, in units of what rounding allows.

    The output is rounded once, and sums of float32 products are off by the square root of their number, to be generous;
    those of tensor cores may lose three more bits, as they are added without rounding.
    """
    exact, size = x.double() @ values.double().T, x.abs().double() @ size.double().T
    float32 = torch.finfo(torch.float32).eps * (8 if output.is_cuda else 1)
    own = torch.finfo(output.dtype)
    allowed = own.eps * (exact.abs() + own.smallest_normal) + 4 * x.shape[1] ** 0.5 * float32 * size
    return float(((output.double() - exact).abs() / allowed).max())


def float8_deviation(rows, outputs, inputs, kind, dtype, device, implementation) -> float:
    weight, x = make_float8(outputs, inputs, kind, device), make_rows(rows, inputs, dtype, device)
    values = weight.dequantize()
    return deviation(skinny_linear(x, weight, implementation=implementation), x, values, values.abs())


def int4_deviation(rows, outputs, inputs, group, with_zeros, dtype, device, implementation) -> float:
    weight, values, size = make_int4(outputs, inputs, group, with_zeros, dtype, device)
    x = make_rows(rows, inputs, dtype, device)
    return deviation(skinny_linear(x, weight, implementation=implementation), x, values, size)


@every
@kinds
@dtypes
@pytest.mark.parametrize("rows", [1, 3, 8, 9])
def test_float8_is_the_product(device, implementation, rows, dtype, kind):
    # Whole steps of inputs and cut ones, outputs of one program and more, a block that is cut, a single element.
    for outputs, inputs in ((40, 4096), (20, 4300), (144, 200), (3, 1)):
        assert float8_deviation(rows, outputs, inputs, kind, dtype, device, implementation) <= 1


@every
@zeros
@dtypes
@pytest.mark.parametrize("rows", [1, 3, MAX_INT4_ROWS])
def test_int4_is_the_product(device, implementation, rows, dtype, with_zeros):
    for outputs, inputs, group in ((64, 64, 64), (128, 1280, 128), (64, 1024, 1024)):
        assert int4_deviation(rows, outputs, inputs, group, with_zeros, dtype, device, implementation) <= 1


@pytest.mark.parametrize("with_zeros", [False, True])
def test_wide_tiles_of_int4(device, monkeypatch, with_zeros):
    monkeypatch.setattr("sala_kernels.skinny_linear.int4.WIDE_OUTPUTS", 64)
    assert int4_deviation(2, 128, 320, 64, with_zeros, torch.bfloat16, device, "triton") <= 1


@pytest.mark.parametrize("rows", [2, 8])
@dtypes
def test_few_rows_of_16_bits(device, rows, dtype):
    """Fewer outputs than tiles of 128 are for; several steps of inputs, whole and cut, and part of one."""
    for outputs, inputs in ((40, 2048), (20, 2200), (70, 200)):
        x, weight = make_rows(rows, inputs, dtype, device), torch.randn(outputs, inputs, device=device).to(dtype)
        output = skinny_linear(x, weight, implementation="triton")
        assert deviation(output, x, weight, weight.abs()) <= 1


@every
def test_no_rows(device, implementation):
    x = torch.ones(0, 64, dtype=torch.bfloat16, device=device)
    for weight in (make_float8(8, 64, "channel", device), make_int4(64, 64, 64, False, x.dtype, device)[0]):
        assert skinny_linear(x, weight, implementation=implementation).shape == (0, weight.outputs)


@every
def test_rows_do_not_meet_others(device, implementation):
    """What is not finite stays in its row: those beside it in a tile are other requests' or padding."""
    x = torch.ones(3, 64, dtype=torch.bfloat16, device=device)
    x[1, 5] = torch.nan
    for weight in (make_float8(20, 64, "channel", device), make_int4(64, 64, 64, True, x.dtype, device)[0]):
        output = skinny_linear(x, weight, implementation=implementation)
        assert output[1].isnan().all() and output[[0, 2]].isfinite().all()


@zeros
def test_layout_is_dequantised_to_what_was_packed(with_zeros):
    weight, values, _ = make_int4(192, 160, 32, with_zeros, torch.float64, "cpu")
    assert torch.equal(weight.dequantize(), values)


def test_compiles_for_hopper_without_spills():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.compiled_linear"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=START_SECONDS)
    assert done.returncode == 0, done.stderr
    for form, found in json.loads(done.stdout).items():
        assert found["spills"] == 0 and found["programs"] >= 1, form
        # A step's weights and rows of several stages, all by 16 bytes.
        assert found["wide_loads"] >= 16, form


def test_refuses_what_does_not_fit():
    x, weight = torch.ones(2, 64, dtype=torch.bfloat16), make_float8(8, 64, "channel", "cpu")
    int4 = make_int4(64, 64, 64, True, torch.bfloat16, "cpu")[0]
    with pytest.raises(ValueError, match=f"allowed are at most {MAX_ROWS}"):
        skinny_linear(x[:1].expand(MAX_ROWS + 1, 64), weight)
    with pytest.raises(ValueError, match=f"allowed are at most {MAX_INT4_ROWS}"):
        skinny_linear(x[:1].expand(MAX_INT4_ROWS + 1, 64), int4)
    with pytest.raises(ValueError, match="codes: expected K = 63"):
        skinny_linear(x[:, :63], weight)
    with pytest.raises(ValueError, match="scales: expected N = 8"):
        skinny_linear(x, weight._replace(scales=torch.ones(7)))
    with pytest.raises(ValueError, match=r"scales: expected K/128 = 1"):
        skinny_linear(x, weight._replace(scales=torch.ones(1, 2)))
    with pytest.raises(TypeError, match=r"codes: expected dtype torch\.float8_e4m3fn"):
        skinny_linear(x, weight._replace(codes=weight.codes.half()))
    with pytest.raises(TypeError, match=r"scales: expected dtype torch\.bfloat16"):
        skinny_linear(x, int4._replace(scales=int4.scales.half()))
    with pytest.raises(ValueError, match=r"words: expected 2N = 128"):
        skinny_linear(x, int4._replace(words=int4.words[:, :64]))
    with pytest.raises(ValueError, match="groups of a multiple of 64 inputs"):
        skinny_linear(x, make_int4(64, 64, 32, False, torch.bfloat16, "cpu")[0])
    with pytest.raises(
        TypeError, match=r"x: expected a dtype of 16 bits beside a quantised weight, got torch\.float32"
    ):
        skinny_linear(x.float(), weight, implementation="triton")


@gpu
@kinds
@pytest.mark.parametrize("rows", [1, 8, 9, 64])
@pytest.mark.parametrize(("outputs", "inputs"), [(16384, 4096), (8704, 4096), (4096, 16384), (73448, 4096)])
def test_float8_at_real_sizes(device, outputs, inputs, rows, kind):
    assert float8_deviation(rows, outputs, inputs, kind, torch.bfloat16, device, "triton") <= 1


@gpu
@zeros
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize(("outputs", "inputs"), [(16384, 4096), (8704, 4096), (4096, 16384), (32768, 4096)])
def test_int4_at_real_sizes(device, outputs, inputs, rows, with_zeros):
    assert int4_deviation(rows, outputs, inputs, 128, with_zeros, torch.bfloat16, device, "triton") <= 1


@gpu
@pytest.mark.parametrize("kind", ["float8", "int4"])
def test_graph_is_the_eager_call(device, kind):
    weight = make_float8(4096, 4096, "channel", device)
    if kind == "int4":
        weight, _, _ = make_int4(4096, 4096, 128, True, torch.bfloat16, device)
    x = make_rows(4, 4096, torch.bfloat16, device)
    eager = skinny_linear(x, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = skinny_linear(x, weight)
    captured.zero_()
    graph.replay()
    assert torch.equal(captured, eager)
