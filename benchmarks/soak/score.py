"""Whether answers under load are what the server says at rest: their log-probabilities, scored with an empty cache.

An answer under load was decoded token by token, after a prompt that may have come from the cache. Scored, prompt and
answer are one prompt. In bfloat16 the two differ by rounding alone; how much is measured with the same prompts at rest.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from benchmarks.soak.load import Answered, Job, answered, ask
from testing.server import Server

Item = TypeVar("Item")
Found = TypeVar("Found")

AT_ONCE = 8
FIRST_TOKEN = 10  # below are special ones
NOISE_FACTOR = 2  # as for graphs against eager runs in tests/serving/test_gpu.py


@dataclass(frozen=True)
class Differences:
    """Of log-probabilities, over the tokens of some answers; ``largest`` per answer."""

    largest: list[float]
    mean: float

    @property
    def max(self) -> float:
        return max(self.largest)


def choose(sample: list[Answered], budget: int, dense_len: int) -> list[Answered]:
    """Answers to score, of ``budget`` tokens together; those of the longest prompts stay only if they fit.

    A prompt below ``dense_len`` that is sparse together with its answer is left out: it would be scored as another
    kind of prompt.
    """
    chosen = []
    for one in sample:
        tokens = len(one.prompt) + len(one.tokens)
        if tokens <= budget and (len(one.prompt) < dense_len) == (tokens < dense_len):
            chosen.append(one)
            budget -= tokens
    return chosen


def score(server: Server, given: Answered) -> list[float]:
    """Log-probabilities of the answer's tokens, read as a prompt. Raises ValueError where any came from the cache."""
    body = {
        "input_ids": given.prompt + given.tokens,
        "sampling_params": {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True},
        "return_logprob": True,
        "logprob_start_len": len(given.prompt) - 1,
    }
    meta = server.post("/generate", body)["meta_info"]
    if meta["cached_tokens"]:
        raise ValueError(f"scored with {meta['cached_tokens']} tokens from the cache")
    _, *scored = meta["input_token_logprobs"]  # the prompt's last token has no log-probability
    told = [entry[1] or token for entry, token in zip(scored, given.tokens, strict=True)]
    if told != given.tokens:  # SGLang tells the last token of the vocabulary as 0
        raise ValueError(f"scored {told} in place of {given.tokens}")
    return [entry[0] for entry in scored]


def cold(server: Server, ask_one: Callable[[Server, Item], Found], each: list[Item]) -> list[Found]:
    """``ask_one(server, item)`` one after the other, each with an empty cache."""
    found: list[Found] = []
    for item in each:
        server.flush_cache()
        found.append(ask_one(server, item))
    return found


def batched(server: Server, ask_one: Callable[[Server, Item], Found], each: list[Item]) -> list[Found]:
    """The same, AT_ONCE at the same time."""
    found: list[Found] = []
    for place in range(0, len(each), AT_ONCE):
        server.flush_cache()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found += pool.map(lambda item: ask_one(server, item), each[place : place + AT_ONCE])
    return found


def ask_again(server: Server, given: Answered) -> Answered:
    """The same prompt, asked alone for as many tokens."""
    job = Job(given.prompt, len(given.tokens), given.kind)
    return answered(job, *ask(server, job))


def apart(chosen: list[Answered]) -> list[Answered]:
    """The same prompts with other first tokens, so that they share no prefix."""
    return [replace(one, prompt=[FIRST_TOKEN + index, *one.prompt[1:]]) for index, one in enumerate(chosen)]


def differences(first: list[list[float]], second: list[list[float]]) -> Differences:
    per_answer = [
        [abs(one - other) for one, other in zip(left, right, strict=True)]
        for left, right in zip(first, second, strict=True)
    ]
    flat = [value for values in per_answer for value in values]
    return Differences([max(values) for values in per_answer], sum(flat) / len(flat))


def judge(server: Server, chosen: list[Answered]) -> dict[str, Differences]:
    """Differences of the load's answers from their scores, and of two kinds of noise at rest.

    For the noise the same prompts, but for their first tokens, are asked again one after the other, with an empty
    cache. ``decode``: these answers against their scores. ``batch``: their scores against those of AT_ONCE at once.
    """
    scores = cold(server, score, chosen)
    at_rest = cold(server, ask_again, apart(chosen))
    scores_at_rest = cold(server, score, at_rest)
    return {
        "load": differences([one.logprobs for one in chosen], scores),
        "decode": differences([one.logprobs for one in at_rest], scores_at_rest),
        "batch": differences(batched(server, score, at_rest), scores_at_rest),
    }


def within_noise(found: dict[str, Differences]) -> bool:
    return found["load"].max <= NOISE_FACTOR * max(found["decode"].max, found["batch"].max)
