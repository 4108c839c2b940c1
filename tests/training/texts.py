"""Conversations in sala-tiny's language with the answers of its training data."""

from itertools import groupby
from pathlib import Path
from random import Random

import torch

from training.conversations import ANSWER_WEIGHT
from training.data import Encoder
from training.drafts.conversations import Conversation


def conversations(checkpoint: Path, tokens: int, count: int, seed: str) -> list[Conversation]:
    encoder = Encoder(checkpoint)
    rows = [encoder.about_a_text(Random(f"{seed} {number}"), tokens) for number in range(count)]
    return [Conversation(torch.tensor(ids, dtype=torch.int32), answers(weights)) for ids, weights, _ in rows]


def answers(weights: list[float]) -> list[tuple[int, int]]:
    """The ranges of full weight."""
    runs = groupby(range(len(weights)), key=lambda position: weights[position] == ANSWER_WEIGHT)
    ranges = [(answer, list(run)) for answer, run in runs]
    return [(run[0], run[-1] + 1) for answer, run in ranges if answer]
