"""gated_norm, scaled_add_norm and sigmoid_gate: definitions, the released model's rounding, the Triton kernels."""

import pytest
import torch
from sala_kernels.gated_norm import gated_norm, mean_square_part
from sala_kernels.scaled_add_norm import scaled_add_norm
from sala_kernels.sigmoid_gate import sigmoid_gate

from tests.kernels.interpreter import repair_short_floats
from tests.kernels.paging import relative_error

repair_short_floats()
EPS = 1e-6
SCALE = 1.4 / 32**0.5
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
sizes = pytest.mark.parametrize(("tokens", "width"), [(0, 64), (1, 1), (5, 96), (3, 128), (2, 4096)])
real_sizes = pytest.mark.parametrize(("tokens", "width"), [(1, 4096), (8192, 4096), (7, 16384), (33, 5000)])


def make_rows(tokens: int, width: int, dtype: torch.dtype, device: str):
    """Two [T, W] tensors of different size per row, slices of one projection, and a weight [W]."""
    projection = torch.randn(tokens, 3, width, device=device) * torch.rand(tokens, 1, 1, device=device) * 4
    return projection[:, 0].to(dtype), projection.to(dtype)[:, 2], torch.randn(width, device=device).to(dtype)


def assert_same_roundings(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the few elements that another order of float32 sums pushes over a rounding border.

    A rounding too many or too few would show in a tenth of the elements or more.
    """
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    if expected.dtype == torch.float32:
        assert relative_error(actual, expected) < 1e-6
    else:
        assert (actual != expected).sum() <= 1 + 0.01 * expected.numel()
        assert relative_error(actual, expected) < torch.finfo(expected.dtype).eps


def test_gated_norm_is_its_definition(device):
    x, gate, weight = make_rows(4, 50, torch.float64, device)
    expected = x / (x.square().sum(-1, keepdim=True) / 50 + EPS).sqrt() * weight / (1 + (-gate).exp())
    assert relative_error(gated_norm(x, gate, weight, EPS, implementation="reference"), expected) < 1e-14


def test_scaled_add_norm_is_its_definition(device):
    x, residual, weight = make_rows(4, 50, torch.float64, device)
    sums = residual + SCALE * x
    expected = sums / (sums.square().sum(-1, keepdim=True) / 50 + EPS).sqrt() * weight
    normed, hidden = scaled_add_norm(x, residual, SCALE, weight, EPS, implementation="reference")
    assert relative_error(normed, expected) < 1e-14
    assert relative_error(hidden, sums) < 1e-15


def test_sigmoid_gate_is_its_definition(device):
    x, gate, _ = make_rows(4, 50, torch.float64, device)
    assert relative_error(sigmoid_gate(x, gate, implementation="reference"), x / (1 + (-gate).exp())) < 1e-14


def test_roundings_of_the_released_model(device):
    # 1 + 2⁻⁷ is the bfloat16 after 1; a product or sum rounded once too few or too often shows in the last bit.
    x = torch.tensor([[3.0, 1.0078125, -0.3984375, 2.984375]], dtype=torch.bfloat16, device=device)
    other = torch.tensor([[1.0078125, -0.7578125, 5.09375, 0.33203125]], dtype=torch.bfloat16, device=device)
    weight = torch.tensor([1.0078125, 0.59765625, -1.9921875, 3.015625], dtype=torch.bfloat16, device=device)

    def rounded(value: torch.Tensor) -> torch.Tensor:
        return value.bfloat16().float()

    def normed(value: torch.Tensor) -> torch.Tensor:
        return rounded(rounded(value * (value.square().mean() + EPS).rsqrt()) * weight.float())

    hidden = rounded(other.float() + rounded(x.float() * SCALE))
    gated = rounded(normed(x.float()) * rounded(other.float().sigmoid()))
    open_gate = rounded(x.float() * rounded(other.float().sigmoid()))
    for implementation in ("reference", "triton"):
        out, sums = scaled_add_norm(x, other, SCALE, weight, EPS, implementation=implementation)
        assert torch.equal(sums.float(), hidden) and torch.equal(out.float(), normed(hidden))
        assert torch.equal(gated_norm(x, other, weight, EPS, implementation=implementation).float(), gated)
        assert torch.equal(sigmoid_gate(x, other, implementation=implementation).float(), open_gate)


@dtypes
@sizes
def test_triton_gated_norm(device, tokens, width, dtype):
    check_gated_norm(tokens, width, dtype, device)


@dtypes
@sizes
def test_triton_scaled_add_norm(device, tokens, width, dtype):
    check_scaled_add_norm(tokens, width, dtype, device)


@dtypes
@sizes
def test_triton_sigmoid_gate(device, tokens, width, dtype):
    check_sigmoid_gate(tokens, width, dtype, device)


def check_gated_norm(tokens, width, dtype, device):
    x, gate, weight = make_rows(tokens, width, dtype, device)
    mean_square = 0.5 + torch.rand(tokens, device=device)
    for given in (None, mean_square):
        expected = gated_norm(x, gate, weight, EPS, given, implementation="reference")
        assert_same_roundings(gated_norm(x, gate, weight, EPS, given, implementation="triton"), expected)


def check_scaled_add_norm(tokens, width, dtype, device):
    x, residual, weight = make_rows(tokens, width, dtype, device)
    inputs = x.clone(), residual.clone()
    expected = scaled_add_norm(x, residual, SCALE, weight, EPS, implementation="reference")
    actual = scaled_add_norm(x, residual, SCALE, weight, EPS, implementation="triton")
    for result, right in zip(actual, expected, strict=True):
        assert_same_roundings(result, right)
    assert torch.equal(x, inputs[0]) and torch.equal(residual, inputs[1])


def check_sigmoid_gate(tokens, width, dtype, device):
    x, gate, _ = make_rows(tokens, width, dtype, device)
    for columns in (slice(None), slice(None, None, 2)):
        pair = x[:, columns], gate[:, columns]
        actual = sigmoid_gate(*pair, implementation="triton")
        assert actual.is_contiguous()
        assert_same_roundings(actual, sigmoid_gate(*pair, implementation="reference"))


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_parts_of_a_row_join_by_the_sum_of_their_mean_squares(device, implementation):
    x, gate, weight = make_rows(3, 64, torch.float32, device)
    whole = gated_norm(x, gate, weight, EPS, implementation=implementation)
    parts = [slice(0, 16), slice(16, 64)]
    means = [mean_square_part(x[:, part], 64, 4, implementation=implementation) for part in parts]
    mean_square = sum(means)[:3]
    shards = [
        gated_norm(x[:, part], gate[:, part], weight[part], EPS, mean_square, implementation=implementation)
        for part in parts
    ]
    assert relative_error(torch.cat(shards, -1), whole) < 1e-6


@dtypes
@sizes
def test_triton_mean_square_part(device, tokens, width, dtype):
    check_mean_square_part(tokens, width, dtype, device)


def check_mean_square_part(tokens, width, dtype, device):
    x, _, _ = make_rows(tokens, width, dtype, device)
    for rows in (tokens, tokens + 3):
        part = mean_square_part(x, 2 * width, rows, implementation="triton")
        assert part.dtype == torch.float32 and part.shape == (rows,)
        assert relative_error(part[:tokens], x.double().square().mean(-1) / 2) < 1e-6
        assert not part[tokens:].any()
        expected = mean_square_part(x, 2 * width, rows, implementation="reference")
        assert relative_error(part, expected) < 1e-6


@pytest.mark.parametrize(("full_width", "rows", "name"), [(63, 3, "full_width"), (64, 2, "rows")])
def test_mean_square_part_of_less_than_the_rows_given(full_width, rows, name):
    with pytest.raises(ValueError, match=f"{name}: expected at least"):
        mean_square_part(torch.ones(3, 64), full_width, rows)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # as it is in the sigmoid
@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_extreme_gates(device, implementation):
    x, weight = torch.ones(1, 2, device=device), torch.ones(2, device=device)
    gate = torch.tensor([[-1000.0, 1000.0]], device=device)
    output = gated_norm(x, gate, weight, EPS, implementation=implementation)
    torch.testing.assert_close(output, torch.tensor([[0.0, 1.0]], device=device))
    assert sigmoid_gate(x, gate, implementation=implementation).tolist() == [[0.0, 1.0]]


@pytest.mark.gpu
@dtypes
@real_sizes
def test_gated_norm_at_real_size(device, tokens, width, dtype):
    check_gated_norm(tokens, width, dtype, device)


@pytest.mark.gpu
@dtypes
@real_sizes
def test_mean_square_part_at_real_size(device, tokens, width, dtype):
    check_mean_square_part(tokens, width, dtype, device)


@pytest.mark.gpu
@dtypes
@real_sizes
def test_scaled_add_norm_at_real_size(device, tokens, width, dtype):
    check_scaled_add_norm(tokens, width, dtype, device)


@pytest.mark.gpu
@dtypes
@real_sizes
def test_sigmoid_gate_at_real_size(device, tokens, width, dtype):
    check_sigmoid_gate(tokens, width, dtype, device)
