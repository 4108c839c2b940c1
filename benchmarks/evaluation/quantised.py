"""How far quantised checkpoints are from the one before, in rounds of texts, and the bounds that follow, as CSV.

    python -m benchmarks.evaluation.quantised --first checkpoints/sala-tiny --second checkpoints/sala-tiny-fp8 \\
        --recipe fp8 --lengths 1K,2K,4K --output benchmarks/results/evaluation/quantised.csv

A round is a text of each length, of which both say what ``sala-sglang compare`` asks: the plain model in float32, or,
with ``--base-url`` twice, two running servers of these checkpoints, with the products that their GPU has. Rows are
appended: one for all positions of a round, with the share of items that were found, the growth of KL, and the least
share of a layer's selected blocks that are the same, by the plain model; and one for each bucket of its positions.
Rounds that the file has are not measured again. ``bounds`` makes of its rows what stands in
``sala_sglang/quantization/comparison/bounds.py``.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoTokenizer

from benchmarks.common import results_file
from benchmarks.common.options import add_commit
from sala_sglang import cli, hf
from sala_sglang.quantization import divergence
from sala_sglang.quantization.comparison import checks
from sala_sglang.quantization.comparison.blocks import run_both
from sala_sglang.quantization.comparison.bounds import Bounds
from sala_sglang.quantization.comparison.command import make_texts
from sala_sglang.quantization.comparison.logprobs import Compared, ask_both, compare, say
from sala_sglang.quantization.layerwise import LayerwiseModel
from sala_sglang.quantization.weights import CheckpointWeights

ROUNDS = 5
# Of Student's distribution with four degrees of freedom: what is exceeded once in a thousand.
STUDENT = 7.173
ALL = "all"
KEY = ("recipe", "lengths", "round")
MEASURED = (
    "date", *KEY, "positions", "tokens", "kl_mean", "kl_tail", "same_choice", "perplexity", "perplexity_ratio",
    "growth", "items", "found_first", "found_second", "same_blocks",
)  # fmt: skip
COLUMNS = (*MEASURED, *results_file.SURROUNDINGS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=Path, required=True, help="checkpoint before")
    parser.add_argument("--second", type=Path, required=True, help="quantised checkpoint")
    parser.add_argument("--recipe", required=True, help="name of the second in the rows")
    parser.add_argument("--base-url", nargs=2, default=(), help="servers of the two")
    parser.add_argument("--lengths", required=True, help="tokens of the texts of a round, like 1K,2K,4K")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument("--output", type=Path, required=True, help="CSV file to append to")
    add_commit(parser)
    options = parser.parse_args()
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    hf.register()
    lengths = cli.parse_lengths(options.lengths)
    tokenizer = AutoTokenizer.from_pretrained(options.first)
    known = {tuple(row[name] for name in KEY) for row in results_file.read(options.output)}
    about = results_file.surroundings(options) | {"recipe": options.recipe, "lengths": options.lengths}
    about |= {"dtype": "as served" if options.base_url else "float32", "weights": "trained weights of sala-tiny"}
    about |= {"options": "servers" if options.base_url else "the plain model"}
    before, after = (
        LayerwiseModel(CheckpointWeights(one), options.device, torch.float32) for one in (options.first, options.second)
    )
    for number in range(options.rounds):
        if (options.recipe, options.lengths, str(number)) in known:
            continue
        texts = list(make_texts(tokenizer, lengths, 1, seed=number))
        run = run_both(before, after, [text.tokens for text in texts])
        if options.base_url:
            first, second = options.base_url
            compared = [ask_both(first, second, text) for text in texts]
        else:
            by_text = zip(texts, *run.hidden, strict=True)
            compared = [compare(say(before, text, one), say(after, text, other), text) for text, one, other in by_text]
        for row in rows(compared, run.shares):
            results_file.record(options.output, about | {"round": number} | row, COLUMNS)


def rows(compared: list[Compared], blocks: dict[int, float]) -> list[dict]:
    """What was measured in a round. blocks: share of selected blocks that are the same, by layer."""
    together = divergence.joined([one.divergence for one in compared])
    found = torch.cat([one.found for one in compared])
    whole = {
        "positions": ALL,
        "growth": checks.growth(compared),
        "items": len(found),
        "found_first": found[:, 0].double().mean().item(),
        "found_second": found[:, 1].double().mean().item(),
        "same_blocks": min(blocks.values()),
    }
    of_buckets = [
        {"positions": f"{begin}-{end - 1}"} | vars(one) for begin, end, one in divergence.by_position(together)
    ]
    return [whole | vars(divergence.summary(together)), *of_buckets]


def bounds(path: Path, recipe: str, lengths: str) -> Bounds:
    """What a further round may have, from the rounds of ``recipe`` with texts of ``lengths`` in the file."""
    of_recipe = [row for row in results_file.read(path) if (row["recipe"], row["lengths"]) == (recipe, lengths)]
    whole = [row for row in of_recipe if row["positions"] == ALL]
    ratios: dict[str, list[float]] = {}
    for row in of_recipe:
        if row["positions"] != ALL:
            ratios.setdefault(row["positions"], []).append(float(row["perplexity_ratio"]))
    worst = [max(of_round) for of_round in zip(*ratios.values(), strict=True)]
    losses = [float(row["found_first"]) - float(row["found_second"]) for row in whole]

    def of(name: str) -> list[float]:
        return [float(row[name]) for row in whole]

    return Bounds(
        kl_mean=most(of("kl_mean"), 4),
        kl_tail=most(of("kl_tail"), 2),
        same_choice=least(of("same_choice"), 3),
        perplexity_ratio=most(worst, 3),
        growth=most(of("growth"), 1),
        # What is compared with it makes allowance for the spread of its own items.
        lost=_rounded(statistics.mean(losses) + _margin(losses, further=0), 3, math.ceil),
        same_blocks=least(of("same_blocks"), 2),
    )


def most(values: list[float], digits: int) -> float:
    """What a further value is above once in a thousand, rounded up."""
    return _rounded(statistics.mean(values) + _margin(values), digits, math.ceil)


def least(values: list[float], digits: int) -> float:
    """What a further value is below once in a thousand, rounded down."""
    return _rounded(statistics.mean(values) - _margin(values), digits, math.floor)


def _margin(values: list[float], further: int = 1) -> float:
    """How far a further value may be from the mean of these, or, with ``further`` 0, the mean of many.

    Raises ValueError for another number of values than STUDENT is for.
    """
    if len(values) != ROUNDS:
        raise ValueError(f"{len(values)} rounds; allowed: {ROUNDS}")
    return STUDENT * statistics.stdev(values) * math.sqrt(further + 1 / ROUNDS)


def _rounded(value: float, digits: int, direction: Callable[[float], int]) -> float:
    return direction(value * 10**digits) / 10**digits


if __name__ == "__main__":
    main()
