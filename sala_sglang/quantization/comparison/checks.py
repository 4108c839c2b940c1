"""What was found of two models, and whether it is within bounds."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import torch

from sala_sglang.quantization import divergence
from sala_sglang.quantization.comparison.bounds import Bounds
from sala_sglang.quantization.comparison.logprobs import Compared
from sala_sglang.quantization.divergence import Divergence

# Nats that KL is counted from in growth: below it are differences of rounding, which may grow.
NO_DIFFERENCE = 1e-4
# A loss of items counts where it is larger than the bound by so many of its standard errors.
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class Check:
    """One measure. positions: of the tokens, or ``all``. bound: None where it is for information."""

    measure: str
    positions: str
    value: float
    bound: float | None
    within: bool


def growth(compared: list[Compared]) -> float:
    """The most that the KL of a later bucket of positions is in terms of that of the first; 1 where there is one.

    In the longest texts alone: shorter ones, of which only the first bucket is made, may be computed in another way.
    """
    parts = [one.divergence for one in compared]
    longest = max(len(part.kl) for part in parts)
    together = divergence.joined([part for part in parts if 2 * len(part.kl) > longest])
    first, *later = (one.kl_mean + NO_DIFFERENCE for _, _, one in divergence.by_position(together))
    return max((one / first for one in later), default=1.0)


def lost(found: torch.Tensor) -> tuple[float, float]:
    """Of items [n, 2] that two models find or not: the share that the second loses, and its standard error.

    Items that it finds and the first does not count against it.
    """
    difference = found[:, 0].double() - found[:, 1].double()
    return difference.mean().item(), difference.std(correction=0).item() / sqrt(len(found))


def check(compared: list[Compared], blocks: dict[int, float], bounds: Bounds) -> Iterator[Check]:
    """Every measure with its bound. blocks: share of selected blocks by layer, empty where it was not measured."""
    yield from _of_predictions(divergence.joined([one.divergence for one in compared]), bounds)
    yield _most("growth of KL", "all", growth(compared), bounds.growth)
    found = torch.cat([one.found for one in compared])
    for name, side in (("found by the first", 0), ("found by the second", 1)):
        yield Check(name, "all", found[:, side].double().mean().item(), None, True)
    share, error = lost(found)
    yield Check("lost items", "all", share, bounds.lost, share - STANDARD_ERRORS * error <= bounds.lost)
    for layer, alike in blocks.items():
        yield Check(f"same blocks in layer {layer}", "all", alike, bounds.same_blocks, alike >= bounds.same_blocks)


def _of_predictions(found: Divergence, bounds: Bounds) -> Iterator[Check]:
    whole = divergence.summary(found)
    yield _most("KL mean", "all", whole.kl_mean, bounds.kl_mean)
    yield _most("KL 99.9 %", "all", whole.kl_tail, bounds.kl_tail)
    same = whole.same_choice
    yield Check("same first choice", "all", same, bounds.same_choice, same >= bounds.same_choice)
    for begin, end, one in divergence.by_position(found):
        where = f"{begin}-{end - 1}"
        yield Check("KL mean", where, one.kl_mean, None, True)
        yield Check("same first choice", where, one.same_choice, None, True)
        yield _most("perplexity ratio", where, one.perplexity_ratio, bounds.perplexity_ratio)


def _most(measure: str, positions: str, value: float, bound: float) -> Check:
    return Check(measure, positions, value, bound, value <= bound)
