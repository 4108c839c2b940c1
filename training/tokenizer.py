"""The tokenizer of sala-tiny, trained on the texts that the model is trained on."""

import json
import random
from pathlib import Path

from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sala_sglang.checkpoint.tokenizer import CORPUS, make_tokenizer
from sala_sglang.evaluation import language
from training.architecture import TURN_END_ID, TURN_START_ID
from training.conversations import SMALL_TALK, tasks

CORPUS_TASKS = 3000
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
# Each one token, as in the family's tokenizer; not special ones, which SGLang would leave out of answers.
MARKS = (
    *("<think>", "</think>", "<tools>", "</tools>", "<tool_response>", "</tool_response>"),
    *("<function", "</function>", "<param", "</param>", "<![CDATA[", "]]>"),
)


def load_or_make_tokenizer(out: Path) -> PreTrainedTokenizerFast:
    """The tokenizer under ``out``, which is trained first if there is none, with MARKS and the chat template."""
    if not (out / "tokenizer.json").exists():
        make_tokenizer(out, min(TURN_END_ID, TURN_START_ID), TURN_END_ID, TURN_START_ID, corpus())
    put_into_vocabulary(out / "tokenizer.json", MARKS)
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in MARKS])
    tokenizer.chat_template = CHAT_TEMPLATE.read_text()
    tokenizer.save_pretrained(out)
    return tokenizer


def put_into_vocabulary(path: Path, tokens: tuple[str, ...]) -> None:
    """Give ``tokens`` the ids that are free above the others and below the chat's own, where they have none."""
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first = 1 + max(number for number in vocabulary.values() if number < min(TURN_END_ID, TURN_START_ID))
    new = [token for token in tokens if token not in vocabulary]
    vocabulary |= {token: first + number for number, token in enumerate(new)}
    path.write_text(json.dumps(content, ensure_ascii=False))


def corpus() -> list[str]:
    """Filler, tasks and small talk; the general text counts less, and fills what is left of the vocabulary."""
    rng = random.Random(0)
    texts = [CORPUS, *(" ".join(pair) for pair in SMALL_TALK)]
    for task in tasks(rng, CORPUS_TASKS):
        sentences = [language.filler(rng), language.filler(rng), *task.facts]
        texts += [language.user_message(sentences, task.question), task.answer]
    return texts
