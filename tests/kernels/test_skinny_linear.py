"""skinny_linear: every output is the float64 product, within the rounding of its inputs' dtype and of float32 sums."""

import pytest
import torch
from sala_kernels.skinny_linear import MAX_ROWS, skinny_linear

from tests.kernels.sparse_inputs import gpu
from tests.kernels.sparse_inputs import poisoned_memory as poisoned_memory

every = pytest.mark.parametrize("implementation", ["reference", "triton"])


def product(rows, outputs, inputs, dtype, device, implementation):
    """The product of random inputs, and its largest deviation from float64 in units of what rounding allows."""
    weight = torch.randn(outputs, inputs, device=device).to(dtype)  # first: not by the kernel in front of the product
    # Rows of a wider tensor: their stride is not their length.
    x = torch.randn(rows, inputs + 16, device=device).to(dtype)[:, :inputs]
    output = skinny_linear(x, weight, implementation=implementation)
    assert output.shape == (rows, outputs) and output.dtype == dtype
    exact, size = x.double() @ weight.double().T, x.abs().double() @ weight.abs().double().T
    # The output is rounded once; sums of float32 products are off by the square root of their number, to be generous.
    allowed = torch.finfo(dtype).eps * exact.abs() + 4 * inputs**0.5 * torch.finfo(torch.float32).eps * size
    return ((output - exact).abs() / allowed).max() if rows else 0


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [1, 2, 3, 16, 17, MAX_ROWS])
def test_is_the_product(device, implementation, rows, dtype):
    for outputs, inputs in ((64, 1024), (70, 200), (3, 40)):
        assert product(rows, outputs, inputs, dtype, device, implementation) <= 1


@every
def test_no_rows(device, implementation):
    assert skinny_linear(torch.ones(0, 32), torch.ones(8, 32), implementation=implementation).shape == (0, 8)


@every
@pytest.mark.parametrize("rows", [1, 5])
def test_rows_and_outputs_do_not_meet_others(device, implementation, rows):
    """What is not finite stays in its own row and column."""
    weight, x = torch.ones(70, 64, device=device), torch.ones(rows, 64, device=device)
    weight[69, 5], x[-1, 3] = torch.inf, torch.nan
    output = skinny_linear(x, weight, implementation=implementation)
    assert output[-1].isnan().all()
    assert (output[:-1, :69] == 64).all() and output[:-1, 69].isinf().all()


@gpu
@pytest.mark.parametrize("rows", [1, 2, 32, 64])
@pytest.mark.parametrize(("outputs", "inputs"), [(16384, 4096), (8704, 4096), (4096, 16384), (73448, 4096)])
def test_real_sizes(device, outputs, inputs, rows):
    assert product(rows, outputs, inputs, torch.bfloat16, device, "triton") <= 1


def test_refuses_what_does_not_fit():
    weight = torch.ones(8, 32)
    with pytest.raises(ValueError, match=f"x: got 65 rows, allowed are at most {MAX_ROWS}"):
        skinny_linear(torch.ones(MAX_ROWS + 1, 32), weight)
    with pytest.raises(ValueError, match="weight: expected K = 31"):
        skinny_linear(torch.ones(2, 31), weight)
    with pytest.raises(ValueError, match="weight: expected contiguous rows"):
        skinny_linear(torch.ones(2, 32), torch.ones(32, 8).T)
    with pytest.raises(TypeError, match=r"weight: expected dtype torch\.float32"):
        skinny_linear(torch.ones(2, 32), weight.half())
