"""qk_norm_rope: complex rotation, relative positions, far positions, and the Triton kernel."""

import pytest
import torch
from sala_kernels.qk_norm_rope import qk_norm_rope

from tests.kernels.interpreter import repair_short_floats
from tests.kernels.paging import relative_error

repair_short_floats()
EPS = 1e-6
both = pytest.mark.parametrize("implementation", ["reference", "triton"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


def frequencies(dim: int, device: str) -> torch.Tensor:
    return 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)


def make_inputs(tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: str):
    """q and k as slices of one projection with rows of different size, and their weights."""
    projection = torch.randn(tokens, heads + kv_heads + 1, dim, device=device)
    projection = (projection * (0.1 + 4 * torch.rand(tokens, 1, 1, device=device))).to(dtype)
    weights = (torch.randn(dim, device=device).to(dtype) for _ in range(2))
    return projection[:, :heads], projection[:, heads : heads + kv_heads], *weights


def rotated(x: torch.Tensor, weight: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    """The definition in float64: pairs (j, j + D/2) are complex numbers, turned by the float32 angle."""
    x = x.double()
    x = x / (x.square().sum(-1, keepdim=True) / x.shape[-1] + EPS).sqrt() * weight.double()
    angle = (positions.float()[:, None] * inv_freq).double()[:, None]
    turned = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=-1)


def check_triton(tokens, heads, kv_heads, dim, dtype, device, last_position):
    q, k, q_weight, k_weight = make_inputs(tokens, heads, kv_heads, dim, dtype, device)
    positions = torch.randint(0, last_position, (tokens,), device=device)
    positions[-1:] = last_position
    inv_freq = frequencies(dim, device)
    expected = qk_norm_rope(q, k, q_weight, k_weight, positions, inv_freq, EPS, implementation="reference")
    actual = qk_norm_rope(q, k, q_weight, k_weight, positions, inv_freq, EPS, implementation="triton")
    for x, weight, result, right in zip((q, k), (q_weight, k_weight), actual, expected, strict=True):
        exact = rotated(x, weight, positions, inv_freq)
        assert result.is_contiguous() and result.dtype == dtype
        assert relative_error(result, exact) <= 1.5 * relative_error(right, exact) + 1e-7
        if dtype != torch.float32:
            # The same roundings in the same places; one too few would change a tenth of the elements.
            assert (result != right).sum() <= 1 + 0.01 * right.numel()


@both
@pytest.mark.parametrize("dim", [2, 16, 48, 128])
@pytest.mark.parametrize("last_position", [100, 1_000_000])
def test_definition(device, implementation, dim, last_position):
    q, k, q_weight, k_weight = make_inputs(6, 3, 2, dim, torch.float32, device)
    positions = torch.randint(0, last_position, (6,), device=device)
    positions[-1] = last_position
    inv_freq = frequencies(dim, device)
    results = qk_norm_rope(q, k, q_weight, k_weight, positions, inv_freq, EPS, implementation=implementation)
    for x, weight, result in zip((q, k), (q_weight, k_weight), results, strict=True):
        assert relative_error(result, rotated(x, weight, positions, inv_freq)) < 1e-6


@both
def test_products_depend_on_the_distance_alone(device, implementation):
    q, k, *weights = make_inputs(1, 2, 2, 32, torch.float32, device)
    products = []
    for shift in (0, 1, 500):
        positions = torch.tensor([7, 3], device=device) + shift
        pair = qk_norm_rope(
            q.expand(2, -1, -1),
            k.expand(2, -1, -1),
            *weights,
            positions,
            frequencies(32, device),
            EPS,
            implementation=implementation,
        )
        products.append((pair[0][0] * pair[1][1]).sum(-1))
    for product in products[1:]:
        torch.testing.assert_close(product, products[0], atol=2e-3, rtol=1e-4)


@both
def test_position_zero_only_normalises(device, implementation):
    q, k, q_weight, k_weight = make_inputs(2, 2, 1, 16, torch.bfloat16, device)
    positions = torch.zeros(2, dtype=torch.int64, device=device)
    results = qk_norm_rope(
        q, k, q_weight, k_weight, positions, frequencies(16, device), EPS, implementation=implementation
    )
    for x, weight, result in zip((q, k), (q_weight, k_weight), results, strict=True):
        wide = x.float()
        normed = (wide * (wide.square().mean(-1, keepdim=True) + EPS).rsqrt()).bfloat16()
        # One element may lie so close to a rounding border that the order of the float32 sum decides.
        assert (result != (normed.float() * weight.float()).bfloat16()).sum() <= 1


@dtypes
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "dim"),
    [(0, 2, 2, 16), (1, 1, 1, 16), (3, 17, 5, 32), (4, 32, 32, 64), (2, 3, 2, 128)],
)
def test_triton(device, tokens, heads, kv_heads, dim, dtype):
    check_triton(tokens, heads, kv_heads, dim, dtype, device, 1_000_000)


def test_positions_may_be_int32_and_heads_strided(device):
    q, k, *weights = make_inputs(4, 6, 6, 16, torch.float32, device)
    positions = torch.arange(4, device=device)
    expected = qk_norm_rope(
        q[:, ::2], k[:, 1::3], *weights, positions, frequencies(16, device), EPS, implementation="reference"
    )
    actual = qk_norm_rope(
        q[:, ::2], k[:, 1::3], *weights, positions.int(), frequencies(16, device), EPS, implementation="triton"
    )
    for result, right in zip(actual, expected, strict=True):
        assert relative_error(result, right) < 1e-6


@pytest.mark.gpu
@dtypes
@pytest.mark.parametrize("tokens", [1, 128, 8192])
@pytest.mark.parametrize("last_position", [8191, 1_000_000])
def test_at_real_size(device, tokens, dtype, last_position):
    check_triton(tokens, 32, 32, 128, dtype, device, last_position)
