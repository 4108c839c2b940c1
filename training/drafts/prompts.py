"""Prompts in the language of sala-tiny: ``python -m training.drafts.prompts --model DIR --out FILE``."""

import argparse
import json
import re
from pathlib import Path
from random import Random

from training.data import Encoder
from training.drafts.known_answers import draw

TURN = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)


def user_turns(encoder: Encoder, rng: Random, tokens: int) -> list[str]:
    """What a user says in a conversation of about ``tokens`` tokens: a text and questions about it, or small talk."""
    ids, _ = draw(encoder, rng, tokens)
    return TURN.findall(encoder.tokenizer.decode(ids, skip_special_tokens=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the checkpoint, for its tokenizer")
    parser.add_argument("--conversations", type=int, default=64, help="per length")
    parser.add_argument("--lengths", default="256,512", help="tokens, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSONL file of messages")
    options = parser.parse_args()
    encoder = Encoder(options.model)
    with options.out.open("w") as file:
        for number in range(options.conversations):
            for tokens in map(int, options.lengths.split(",")):
                turns = user_turns(encoder, Random(f"drafts {options.seed} {tokens} {number}"), tokens)
                messages = [{"role": "user", "content": turn} for turn in turns]
                file.write(json.dumps({"messages": messages}) + "\n")


if __name__ == "__main__":
    main()
