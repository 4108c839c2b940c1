"""Rounding of a linear layer's weights by what its inputs are, after GPTQ (arXiv 2210.17323)."""

import torch

from sala_sglang.quantization.formats import PackedIntegers
from sala_sglang.quantization.writer.encode import round_to_codes

DAMPINGS = (0.01, 0.1, 1.0)  # of the mean of the diagonal; the next one where the matrix is not positive definite
COLUMNS = 128  # whose errors go to the columns behind them at once


class InputMoments:
    """The second moments of a layer's inputs: ``mean`` [K, K] float32 of x·xᵀ over all rows that were added."""

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None
        self._rows = 0

    def add(self, inputs: torch.Tensor) -> None:
        """inputs: [..., K]."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        product = rows.T @ rows
        self._sum = product if self._sum is None else self._sum + product
        self._rows += len(rows)

    @property
    def mean(self) -> torch.Tensor:
        if self._sum is None:
            raise RuntimeError("no inputs were added")
        return self._sum / self._rows


def round_by_inputs(
    weight: torch.Tensor, scales: torch.Tensor, scheme: PackedIntegers, moments: torch.Tensor
) -> torch.Tensor:
    """A weight [N, K] rounded to multiples of its scales [N, K / group], float32.

    Columns are rounded one after the other, those with the largest inputs first, and the error of each is made up for
    by the columns that are left, as far as their inputs go together: ``moments`` [K, K] of InputMoments. Raises
    torch.linalg.LinAlgError where these are not finite.
    """
    order = moments.diagonal().argsort(descending=True)
    columns = weight.float()[:, order].clone()
    steps = scales.float().repeat_interleave(scheme.group, dim=1)[:, order]
    spread = _inverse_factor(moments[order][:, order])
    rounded = torch.empty_like(columns)
    for begin in range(0, len(order), COLUMNS):
        end = min(begin + COLUMNS, len(order))
        errors = torch.empty_like(columns[:, begin:end])
        for column in range(begin, end):
            rounded[:, column] = round_to_codes(columns[:, column], steps[:, column], scheme)
            error = (columns[:, column] - rounded[:, column]) / spread[column, column]
            columns[:, column:end] -= error[:, None] * spread[column, column:end]
            errors[:, column - begin] = error
        columns[:, end:] -= errors @ spread[begin:end, end:]
    return rounded[:, order.argsort()]


def _inverse_factor(moments: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the inverse, with the least damping that allows it."""
    diagonal = moments.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    for damping in DAMPINGS:
        damped = moments + damping * diagonal * torch.eye(len(moments), device=moments.device)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            continue
        inverse, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
        if not failed:
            return inverse
    raise torch.linalg.LinAlgError("the moments of the inputs are not those of finite inputs")


def output_error(weight: torch.Tensor, served: torch.Tensor, moments: torch.Tensor) -> float:
    """Relative root mean square error of the layer's outputs over the inputs of ``moments``."""
    weight = weight.float()
    difference = served.float() - weight
    ratio = ((difference @ moments) * difference).sum() / ((weight @ moments) * weight).sum()
    return ratio.clamp(min=0).sqrt().item()
