"""How far a quantised sala-tiny may be from the model before, by what known-good ones are.

They are measured, for each recipe and round of texts, by ``python -m benchmarks.evaluation.quantised`` into
``benchmarks/results/evaluation/quantised.csv``. A bound is the mean over the rounds and, to the bad side, as many
standard deviations as a further round of an equally good checkpoint exceeds once in a thousand (lost items: as the mean
of many rounds does, because a comparison makes allowance for the spread of its own items). Another model has other
bounds, which the same script measures.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """kl_mean, kl_tail: most nats, mean and 99.9th percentile. same_choice: least share of tokens with the same first
    choice. perplexity_ratio: most in any bucket of positions. growth: most times that the KL of a later bucket is that
    of the first. lost: most of the items that the first model finds, less those that the second finds, as a share of
    all. same_blocks: least share of selected blocks.
    """

    kl_mean: float
    kl_tail: float
    same_choice: float
    perplexity_ratio: float
    growth: float
    lost: float
    same_blocks: float


BOUNDS = {
    "fp8": Bounds(0.0042, 0.41, 0.964, 1.005, 57.7, 0.026, 0.94),
    "w4a16": Bounds(0.0111, 2.38, 0.958, 1.016, 75.9, 0.026, 0.84),
}
