"""Answered conversations as tokens, one file for all stages: written by ``answers``, read by ``train``."""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch


@dataclass(frozen=True)
class Conversation:
    """ids: [T] int32. answers: ranges of ``ids`` that the model has written, the end of its turn included."""

    ids: torch.Tensor
    answers: list[tuple[int, int]]

    def bases(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where drafting can begin: positions [N] int64, and how many tokens of the same answer can be drafted there.

        At base i the server knows token i + 1, the last one that the model has chosen, and the model's hidden states
        up to position i; the first draft is for token i + 2. So the first base of an answer is the last token before
        it, and answers of one token have none.
        """
        ranges = [
            (torch.arange(begin - 1, end - 2), torch.arange(end - begin - 1, 0, -1)) for begin, end in self.answers
        ]
        positions, left = zip(*ranges, strict=True)
        return torch.cat(positions), torch.cat(left)


def read_conversations(path: Path, max_tokens: int) -> list[Conversation]:
    """All conversations of up to ``max_tokens`` tokens in which something can be drafted. Raises ValueError if none."""
    found = []
    with path.open() as file:
        for line in file:
            for sequence in json.loads(line)["sequences"]:
                answers = [(begin, end) for begin, end in sequence["answers"] if end - begin > 1]
                if answers and len(sequence["ids"]) <= max_tokens:
                    found.append(Conversation(torch.tensor(sequence["ids"], dtype=torch.int32), answers))
    if not found:
        raise ValueError(f"{path} has no conversation of up to {max_tokens} tokens with an answer of two or more")
    return found


def batch_numbers(count: int, batch: int, seed: int, step: int) -> list[int]:
    """Which of ``count`` conversations an update takes: all once per epoch, in an order of seed and epoch alone."""
    per_epoch = -(-count // batch)
    order = list(range(count))
    Random(f"{seed} {step // per_epoch}").shuffle(order)
    begin = step % per_epoch * batch
    return order[begin : begin + batch]
