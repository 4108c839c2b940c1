"""What serves the plain model on a GPU, against the same computation in float32 on it."""

import pytest
import torch
from sala_kernels.layout import SparseGeometry

from sala_sglang.hf import flex, lightning, sparse

GEOMETRY = SparseGeometry(local_blocks=2, selected_blocks=6, dense_len=0)
RAGGED = ((128, 128), (700, 700), (300, 1111), (1024, 2048))
ROUNDING = 2.0**-8  # of bfloat16


def random_heads(rows: int, tokens: int, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(rows + tokens)
    shapes = (rows, 8, 64), (tokens, 2, 64), (tokens, 2, 64)
    return [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes]


def with_gradients(function, inputs: list[torch.Tensor], weight: torch.Tensor) -> list[torch.Tensor]:
    output = function(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, weight.to(output.dtype))]


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative, in the mean of squares."""
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()


@pytest.mark.parametrize(("rows", "tokens"), [*RAGGED[:3], (1, 900)])
def test_flex_attention_takes_the_chosen_blocks(monkeypatch, rows, tokens):
    """Not compiled, so that it runs without a GPU."""
    q, k, v = (x.detach() for x in random_heads(rows, tokens, "cpu", torch.float32))
    expected = sparse.sparse_attention(q, k, v, GEOMETRY)
    monkeypatch.setattr(flex, "serves", lambda queries: True)
    torch.testing.assert_close(sparse.sparse_attention(q, k, v, GEOMETRY), expected)


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "tokens"), RAGGED)
def test_sparse_attention_and_its_gradients(monkeypatch, rows, tokens):
    """Blocks are chosen once, so that near-ties cannot part the two; then only roundings differ."""
    q, k, v = random_heads(rows, tokens, "cuda", torch.bfloat16)
    fine, coarse = (sparse.compress(k.detach(), 32 * factor, 16 * factor) for factor in (1, 4))
    chosen = torch.cat([part for *_, part in sparse._selected(q, fine, coarse, tokens, GEOMETRY)])
    weight = torch.randn_like(q)
    found = with_gradients(lambda *heads: flex.attend(*heads, chosen, GEOMETRY.block_size), [q, k, v], weight)

    parts = [(tokens - rows, tokens, chosen)]
    monkeypatch.setattr(sparse, "_selected", lambda *_: parts)
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
    exact = with_gradients(lambda *heads: sparse.sparse_attention(*heads, GEOMETRY), wide, weight)
    assert all(error(one, other) < 4 * ROUNDING for one, other in zip(found, exact, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [64, 200, 1025])
def test_lightning_attention_and_its_gradients(tokens):
    pytest.importorskip("fla")
    torch.manual_seed(tokens)
    heads = [torch.randn(2, tokens, 4, 64, device="cuda").bfloat16().requires_grad_() for _ in range(3)]
    state = torch.randn(2, 4, 64, 64, device="cuda")
    log_decay = -torch.tensor([0.5, 0.1, 0.01, 0.001], device="cuda")
    weight = torch.randn_like(heads[0])

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return lightning.lightning_attention(q, k, v, state, log_decay, 0.125)

    wide = [x.detach().float().requires_grad_() for x in heads]
    found, exact = (with_gradients(lambda *given: attend(*given)[0], given, weight) for given in (heads, wide))
    assert all(error(one, other) < 4 * ROUNDING for one, other in zip(found, exact, strict=True))
    assert error(attend(*heads)[1], attend(*wide)[1]) < ROUNDING
