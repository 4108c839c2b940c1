"""Chat prompts of a given number of tokens, with what is asked for hidden at a given depth."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from transformers import PreTrainedTokenizerBase

from sala_sglang.evaluation import language
from sala_sglang.evaluation.language import Task

FILLER_SENTENCES = 2000
DISTRACTOR_SHARE = 0.1  # of a prompt's tokens go to facts that are not asked for, up to MAX_DISTRACTORS
MAX_DISTRACTORS = 200
FACT_TOKENS = 20  # roughly; decides how many distractors there are and nothing else


@dataclass(frozen=True)
class Sample:
    """A user's message of ``tokens`` tokens with its chat template, and the numbers that the answer must name."""

    message: str
    tokens: int
    values: tuple[str, ...]


def _passkey(rng: Random) -> Task:
    return language.passkey(language.value(rng))


def _key_value(rng: Random) -> Task:
    [key] = language.keys(rng, 1)
    return language.code(key, language.value(rng))


def _multi_query(rng: Random) -> Task:
    first, second = language.keys(rng, 2)
    return language.codes(first, language.value(rng), second, language.value(rng))


def _multi_value(rng: Random) -> Task:
    [key] = language.keys(rng, 1)
    return language.numbers(key, tuple(language.value(rng) for _ in language.ORDINALS))


def _variables(rng: Random) -> Task:
    return language.box(language.keys(rng, 2), language.value(rng))


TASKS: dict[str, Callable[[Random], Task]] = {
    "passkey": _passkey,
    "key-value": _key_value,
    "multi-query": _multi_query,
    "multi-value": _multi_value,
    "variables": _variables,
}


class SampleMaker:
    """Makes samples for the tokenizer and chat template of a served model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        rng = Random(0)
        self.filler = [language.filler(rng) for _ in range(FILLER_SENTENCES)]
        # Behind another sentence, since many tokenizers put a token in front of the first word of a text.
        before = self.filler[0]
        alone, together, *behind = self._lengths(
            [before, " ".join([before, *self.filler]), *(f"{before} {sentence}" for sentence in self.filler)]
        )
        self.filler_tokens = [tokens - alone for tokens in behind]
        # Nearly every tokenizer begins a token at a space. Then sentences add up, and a long prompt need not be encoded
        # to know how many tokens it has.
        self.adds_up = together == alone + sum(self.filler_tokens)

    def sample(self, rng: Random, task: str, tokens: int, depth: float) -> Sample:
        """A sample of ``task`` with at most ``tokens`` tokens, and within one sentence of that.

        depth: 0 (start) to 1 (end), of the fact that is asked for; of several facts one is there, the others
        anywhere. Raises ValueError if the facts alone are longer than ``tokens``.
        """
        asked = TASKS[task](rng)
        facts = _places(rng, asked, int(DISTRACTOR_SHARE * tokens / FACT_TOKENS), depth)
        filler = self._fill(rng, tokens - self.count(self._message(_runs([], facts), facts, asked)))
        while True:
            count = self._count(filler, facts, asked)
            if count <= tokens:
                return Sample(self._message(_runs(filler, facts), facts, asked), count, asked.values)
            if not filler:
                raise ValueError(f"tokens: {tokens} are too few for the task {task!r}; it takes {count}")
            filler = self._drop(filler, count - tokens)

    def count(self, message: str) -> int:
        """Tokens of a chat that begins with ``message``, up to where the answer begins."""
        chat = [{"role": "user", "content": message}]
        text = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return self._lengths([text])[0]

    def _lengths(self, texts: list[str]) -> list[int]:
        return [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def _count(self, filler: list[int], facts: list[tuple[float, str]], asked: Task) -> int:
        """Tokens of the chat with this filler. Of a run of it only the ends are encoded, the rest is added up."""
        runs, inner = _runs(filler, facts), 0
        if self.adds_up:
            inner = sum(self.filler_tokens[number] for run in runs for number in run[1:-1])
            runs = [run[:1] + run[1:][-1:] for run in runs]
        return inner + self.count(self._message(runs, facts, asked))

    def _message(self, runs: list[list[int]], facts: list[tuple[float, str]], asked: Task) -> str:
        """The user's message: a run of filler, then each fact with the run behind it."""
        sentences = [self.filler[number] for number in runs[0]]
        for (_, fact), run in zip(facts, runs[1:], strict=True):
            sentences += [fact, *(self.filler[number] for number in run)]
        return language.user_message(sentences, asked.question)

    def _fill(self, rng: Random, tokens: int) -> list[int]:
        """Numbers of filler sentences that have, one by one, about ``tokens`` tokens."""
        chosen = []
        while tokens > 0:
            chosen.append(rng.randrange(len(self.filler)))
            tokens -= self.filler_tokens[chosen[-1]]
        return chosen

    def _drop(self, filler: list[int], tokens: int) -> list[int]:
        """Without the last sentences, at least ``tokens`` tokens of them."""
        while tokens > 0 and filler:
            filler, tokens = filler[:-1], tokens - self.filler_tokens[filler[-1]]
        return filler


def _places(rng: Random, asked: Task, distractors: int, depth: float) -> list[tuple[float, str]]:
    """Facts with their depths, in order: those asked for, and up to ``distractors`` codes of other keys."""
    depths = sorted([depth, *(rng.random() for _ in asked.facts[1:])])
    facts = list(zip(depths, asked.facts, strict=True))
    for key in language.keys(rng, min(distractors, MAX_DISTRACTORS)):
        if all(" ".join(key) not in fact for fact in asked.facts):
            facts += [(rng.random(), fact) for fact in language.code(key, language.value(rng)).facts]
    return sorted(facts)


def _runs(filler: list[int], facts: list[tuple[float, str]]) -> list[list[int]]:
    """The filler before every fact, so that each lies at its depth, and that behind the last."""
    places = [0, *(round(depth * len(filler)) for depth, _ in facts), len(filler)]
    return [filler[start:end] for start, end in pairwise(places)]
