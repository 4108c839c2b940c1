"""sala-tiny's greedy answers without a server: ``python -m training.drafts.known_answers --model DIR --out FILE``.

Its training data come with answers. Where each token of them is the likeliest one after those before, they are what the
model says greedily: one forward pass shows it for a whole conversation. What differs is left out, with all behind it.
"""

import argparse
import json
from itertools import groupby
from pathlib import Path
from random import Random

import torch

from training.conversations import ANSWER_WEIGHT
from training.data import Encoder
from training.drafts.target import Target

SMALL_TALK_SHARE, SMALL_TALK_TOKENS = 0.2, 128


def draw(encoder: Encoder, rng: Random, tokens: int) -> tuple[list[int], list[float]]:
    """Ids and weights of a conversation of about ``tokens`` tokens on a text, or of small talk."""
    talks = rng.random() < SMALL_TALK_SHARE
    return (encoder.talk(rng, SMALL_TALK_TOKENS) if talks else encoder.about_a_text(rng, tokens))[:2]


def answer_ranges(weights: list[float]) -> list[tuple[int, int]]:
    """The ranges of full weight."""
    runs = groupby(range(len(weights)), key=lambda position: weights[position] == ANSWER_WEIGHT)
    ranges = [list(run) for is_answer, run in runs if is_answer]
    return [(run[0], run[-1] + 1) for run in ranges]


def own_answers(target: Target, ids: list[int], answers: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those of ``answers`` that the model gives, up to the first that it does not."""
    given = torch.tensor(ids, device=target.model.device)
    _, last = target.states(given)
    own = []
    for begin, end in answers:
        if not torch.equal(target.logits(last[begin - 1 : end - 1]).argmax(-1), given[begin:end]):
            break
        own.append((begin, end))
    return own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="sala-tiny")
    parser.add_argument("--conversations", type=int, default=64, help="per length")
    parser.add_argument("--lengths", default="256,512", help="tokens, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSONL file of tokens, as training.drafts.answers")
    options = parser.parse_args()
    encoder = Encoder(options.model)
    target = Target(options.model, "cuda" if torch.cuda.is_available() else "cpu", torch.float32)
    known = kept = 0
    with options.out.open("w") as file:
        for number in range(options.conversations):
            for tokens in map(int, options.lengths.split(",")):
                ids, weights = draw(encoder, Random(f"drafts {options.seed} {tokens} {number}"), tokens)
                answers = answer_ranges(weights)
                own = own_answers(target, ids, answers)
                known, kept = known + len(answers), kept + len(own)
                if own:
                    file.write(json.dumps({"sequences": [{"ids": ids[: own[-1][1]], "answers": own}]}) + "\n")
    print(f"{kept} of {known} answers kept")


if __name__ == "__main__":
    main()
