"""Texts as token ids: generated ones, and those of a user's file."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random

from transformers import PreTrainedTokenizerBase

from sala_sglang.config import SALAConfig
from sala_sglang.evaluation import language
from sala_sglang.evaluation.language import Task
from sala_sglang.evaluation.samples import SampleMaker

TOKENS_PER_QUESTION = 160  # of a generated text: it ends with a question, and its answer, for every so many
QUESTION_TOKENS = 60  # of a question, its answer and the marks of its turns, generously
LEAST_TOKENS = 256  # of a text from which anything is to be learned
MOST_TOKENS = 1 << 19  # of a user's texts that are used


def default_lengths(config: SALAConfig) -> list[int]:
    """Tokens of the texts that a calibration generates: most of them in those that are long enough for selection."""
    dense = max(config.sparse_geometry.dense_len, 1024)
    return [dense // 2] * 16 + [2 * dense] * 8 + [4 * dense] * 4


@dataclass(frozen=True)
class Text:
    """tokens: token ids. items: for every number that the answers at its end name, the indices of its tokens."""

    tokens: list[int]
    items: list[range]


class TextMaker:
    """Generates conversations about a long text, in the language of ``sala-sglang eval``.

    Raises ValueError where the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if not tokenizer.chat_template:
            raise ValueError("the tokenizer has no chat template; allowed: one with it, or texts of your own")
        self.tokenizer = tokenizer
        self.samples = SampleMaker(tokenizer)

    def text(self, tokens: int, rng: Random) -> Text:
        """A text of up to ``tokens`` token ids with facts in it, then questions about some of them, and the answers."""
        questions = max(tokens // TOKENS_PER_QUESTION, 1)
        room, maker = tokens - questions * QUESTION_TOKENS, self.samples
        sentences: list[str] = []
        while room > 0:
            number = rng.randrange(len(maker.filler))
            sentences.append(maker.filler[number])
            room -= maker.filler_tokens[number]
        asked = [_task(rng) for _ in range(questions)]
        for task in asked:
            places = sorted(rng.randrange(len(sentences) + 1) for _ in task.facts)
            for place, fact in reversed(list(zip(places, task.facts, strict=True))):
                sentences.insert(place, fact)
        return self._encode(sentences, asked, tokens)

    def _encode(self, sentences: list[str], asked: list[Task], tokens: int) -> Text:
        text = self.tokenizer.apply_chat_template(_turns(sentences, asked), tokenize=False)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        starts = [begin for begin, _ in encoded["offset_mapping"]]
        items, begin = [], 0
        for task in asked:
            begin = text.index(task.question, begin) + len(task.question)
            begin = text.index(task.answer, begin)
            for value in task.values:
                place = text.index(value, begin)
                # A token that holds the space in front of a number begins before it.
                first = bisect_right(starts, place) - 1
                items.append(range(first, bisect_left(starts, place + len(value))))
        return Text(encoded["input_ids"][:tokens], [item for item in items if item.stop <= tokens])


def _task(rng: Random) -> Task:
    first, second = language.keys(rng, 2)
    kinds = (
        lambda: language.code(first, language.value(rng)),
        lambda: language.codes(first, language.value(rng), second, language.value(rng)),
        lambda: language.numbers(first, tuple(language.value(rng) for _ in language.ORDINALS)),
        lambda: language.box([first, second], language.value(rng)),
    )
    return rng.choice(kinds)()


def _turns(sentences: list[str], asked: list[Task]) -> list[dict[str, str]]:
    questions = [language.user_message(sentences, asked[0].question), *(task.question for task in asked[1:])]
    turns = []
    for question, task in zip(questions, asked, strict=True):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": task.answer}]
    return turns


def generate(tokenizer: PreTrainedTokenizerBase, lengths: list[int], seed: int) -> list[Text]:
    """A text of each of ``lengths``, which depends on the seed, its length and its number alone."""
    maker = TextMaker(tokenizer)
    return [maker.text(length, Random(f"{seed} {length} {number}")) for number, length in enumerate(lengths)]


def read(path: Path, tokenizer: PreTrainedTokenizerBase, lengths: list[int]) -> list[list[int]]:
    """The texts of a user's file, up to MOST_TOKENS tokens of them.

    A ``.jsonl`` file has an object in a line, with ``text`` or with the ``messages`` of a chat; a longer text than the
    longest of ``lengths`` is cut off there. Any other file is one text, cut into pieces of ``lengths``, again and
    again. What is shorter than LEAST_TOKENS is left out. Raises ValueError naming the line that cannot be read, and
    where nothing is left.
    """
    if path.suffix == ".jsonl":
        found = [_of_line(line, number, tokenizer)[: max(lengths)] for number, line in _lines(path)]
    else:
        found = _pieces(tokenizer(path.read_text())["input_ids"], lengths)
    texts, tokens = [], 0
    for text in found:
        if len(text) >= LEAST_TOKENS and tokens < MOST_TOKENS:
            texts.append(text[: MOST_TOKENS - tokens])
            tokens += len(text)
    if not texts:
        raise ValueError(f"{str(path)!r} has no text of {LEAST_TOKENS} tokens; allowed: a text file, or .jsonl")
    return texts


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open() as file:
        yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())


def _of_line(line: str, number: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    try:
        given = json.loads(line)
        if isinstance(given, dict) and isinstance(given.get("text"), str):
            return tokenizer(given["text"])["input_ids"]
        text = tokenizer.apply_chat_template(given["messages"], tokenize=False)
    except Exception as error:  # templates raise what they like
        raise ValueError(f"line {number} is {line[:60]!r}; allowed: an object with text or messages") from error
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _pieces(tokens: list[int], lengths: list[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for length in cycle(sorted(lengths, reverse=True)):
        if not tokens:
            return found
        found.append(tokens[:length])
        tokens = tokens[length:]
    return found
