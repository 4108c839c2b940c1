"""Conversations in sala-tiny's language with the answers of its training data."""

from pathlib import Path
from random import Random

import torch

from training.data import Encoder
from training.drafts.conversations import Conversation
from training.drafts.known_answers import answer_ranges


def conversations(checkpoint: Path, tokens: int, count: int, seed: str) -> list[Conversation]:
    encoder = Encoder(checkpoint)
    rows = [encoder.about_a_text(Random(f"{seed} {number}"), tokens) for number in range(count)]
    return [Conversation(torch.tensor(ids, dtype=torch.int32), answer_ranges(weights)) for ids, weights, _ in rows]
