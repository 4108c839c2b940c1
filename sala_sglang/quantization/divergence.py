"""How far the predictions of one model are from those of another, by the position in a text."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

FIRST_BUCKET = 1024  # positions; every further bucket has twice as many as the one before


@dataclass(frozen=True)
class Divergence:
    """An entry for each of n predicted tokens.

    positions: [n] int64 of the token in its text. kl: [n] float64, of the second model's distribution from the first's,
    in nats. same_choice: [n] bool, whether both find the same token the likeliest. losses: [n, 2] float64, the negative
    log-probability of the text's own token.
    """

    positions: torch.Tensor
    kl: torch.Tensor
    same_choice: torch.Tensor
    losses: torch.Tensor


@dataclass(frozen=True)
class Summary:
    """tokens: how many. kl_mean, kl_tail: mean and 99.9th percentile in nats. perplexity_ratio: second by first."""

    tokens: int
    kl_mean: float
    kl_tail: float
    same_choice: float
    perplexity: float
    perplexity_ratio: float


def joined(parts: list[Divergence]) -> Divergence:
    """All tokens of several texts."""
    names = ("positions", "kl", "same_choice", "losses")
    return Divergence(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def of_distributions(
    first: torch.Tensor, second: torch.Tensor, tokens: torch.Tensor, positions: torch.Tensor
) -> Divergence:
    """From log-probabilities [n, vocabulary] of whole vocabularies. tokens, positions: [n] int64 that they predict."""
    first, second = first.double(), second.double()
    kl = (first.exp() * (first - second)).sum(-1)
    losses = -torch.stack([one.gather(1, tokens[:, None])[:, 0] for one in (first, second)], dim=1)
    return Divergence(positions, kl, first.argmax(-1) == second.argmax(-1), losses)


def summary(found: Divergence) -> Summary:
    """Of at least one token."""
    first, second = found.losses.mean(0).tolist()
    return Summary(
        tokens=len(found.kl),
        kl_mean=found.kl.mean().item(),
        kl_tail=_tail(found.kl),
        same_choice=found.same_choice.double().mean().item(),
        perplexity=torch.tensor(first).double().exp().item(),
        perplexity_ratio=torch.tensor(second - first).double().exp().item(),
    )


def _tail(values: torch.Tensor) -> float:
    """The 99.9th percentile; torch.quantile takes no more than 16 million values."""
    return values.kthvalue(-(-len(values) * 999 // 1000)).values.item()


def by_position(found: Divergence) -> Iterator[tuple[int, int, Summary]]:
    """Buckets of positions: begin, end and what was found from begin to before end."""
    begin, end = 0, FIRST_BUCKET
    while (inside := found.positions >= begin).any():
        inside &= found.positions < end
        if inside.any():
            parts = (found.positions, found.kl, found.same_choice, found.losses)
            yield begin, end, summary(Divergence(*(part[inside] for part in parts)))
        begin, end = end, 2 * end
