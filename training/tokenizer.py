"""The tokenizer of sala-tiny, trained on the texts that the model is trained on."""

import random
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sala_sglang.checkpoint.tokenizer import CORPUS, make_tokenizer
from sala_sglang.evaluation import language
from training.architecture import TURN_END_ID, TURN_START_ID
from training.conversations import SMALL_TALK, tasks

CORPUS_TASKS = 3000


def load_or_make_tokenizer(out: Path) -> PreTrainedTokenizerFast:
    """The tokenizer under ``out``, which is trained first if there is none."""
    if not (out / "tokenizer.json").exists():
        make_tokenizer(out, min(TURN_END_ID, TURN_START_ID), TURN_END_ID, TURN_START_ID, corpus())
    return AutoTokenizer.from_pretrained(out)


def corpus() -> list[str]:
    """Filler, tasks and small talk; the general text counts less, and fills what is left of the vocabulary."""
    rng = random.Random(0)
    texts = [CORPUS, *(" ".join(pair) for pair in SMALL_TALK)]
    for task in tasks(rng, CORPUS_TASKS):
        sentences = [language.filler(rng), language.filler(rng), *task.facts]
        texts += [language.user_message(sentences, task.question), task.answer]
    return texts
