"""Random requests to a server for some minutes: shared prefixes, samples, structured output, and clients that leave."""

import json
import math
import re
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.error import HTTPError

from testing.server import Server

TEXTS = 4  # that prompts share parts of
NUMBER = "[1-9][0-9]{3}"
SAMPLES = 3
LEAVE_SECONDS = 600  # until the first token
LONG_ANSWER = 1000  # tokens, of clients that leave and of the long prompt, which fills the pool meanwhile
LONG_AFTER = 0.25  # of the time
NEAR_BORDER = 0.2  # of the prompts
GREEDY, SAMPLED, LEAVING, STRUCTURED = "greedy", "sampled", "leaving", "structured"
WEIGHTS = {GREEDY: 65, SAMPLED: 10, LEAVING: 15, STRUCTURED: 10}


@dataclass(frozen=True)
class Job:
    prompt: list[int]
    new_tokens: int
    kind: str
    samples: int = 1


@dataclass(frozen=True)
class Answered:
    """A prompt, the tokens that the server generated, and the log-probability it gave for each."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    kind: str


@dataclass
class Tally:
    """What the load was, over all clients. ``sample``: answers drawn evenly from those of which the cache had a part of
    the prompt; ``failures``: what went wrong."""

    size: int
    rng: Random
    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    aborts: int = 0
    answers: int = 0
    sample: list[Answered] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, job: Job, answers: list[dict]) -> None:
        """Count a request, and give each of its answers that can be scored the same chance to stay in the sample."""
        with self.lock:
            self.requests += 1
            self.prompt_tokens += len(job.prompt)
            self.aborts += job.kind == LEAVING
            for answer in answers:
                self.output_tokens += len(answer["output_ids"])
                self.cached_tokens += answer["meta_info"]["cached_tokens"]
                # Those of structured answers are among what the grammar allows. Answers to prompts of which the cache
                # had a part are the ones that can go wrong.
                if job.kind != STRUCTURED and answer["meta_info"]["cached_tokens"]:
                    self._draw(answered(job, answer))

    def _draw(self, answered: Answered) -> None:
        self.answers += 1
        if len(self.sample) < self.size:
            self.sample.append(answered)
        elif (place := self.rng.randrange(self.answers)) < self.size:
            self.sample[place] = answered

    def fail(self, job: Job, error: Exception) -> None:
        with self.lock:
            self.failures.append(f"{job.kind} request of {len(job.prompt)} tokens: {describe(error)}")


@dataclass
class Load:
    """vocabulary: token ids below it are asked. longest: tokens of a prompt; long: tokens of one more, 0 for none.
    dense_len: a prompt in five is about that long, where dense and sparse prompts share a prefix."""

    server: Server
    vocabulary: int
    seconds: float
    clients: int
    longest: int
    long: int
    new_tokens: int
    structured: bool
    dense_len: int
    seed: int

    def run(self, sample: int) -> Tally:
        """Keep the server busy until the time is over and every request has ended."""
        rng = Random(self.seed)
        self.texts = [self.random_tokens(rng, max(self.longest, self.long)) for _ in range(TEXTS)]
        tally = Tally(sample, Random(self.seed))
        self.begin = time.monotonic()
        with ThreadPoolExecutor(self.clients + 1) as pool:
            rngs = [Random(self.seed * 1000 + client) for client in range(self.clients)]
            ends = [pool.submit(self._client, own, tally) for own in rngs]
            if self.long:
                ends.append(pool.submit(self._long_prompt, tally))
            for end in ends:
                end.result()
        return tally

    def _client(self, rng: Random, tally: Tally) -> None:
        while time.monotonic() < self.begin + self.seconds and not tally.failures:
            self._do(self.make_job(rng), tally)

    def _long_prompt(self, tally: Tally) -> None:
        time.sleep(self.seconds * LONG_AFTER)
        self._do(Job(self.texts[0][: self.long], LONG_ANSWER, GREEDY), tally)

    def make_job(self, rng: Random) -> Job:
        """Lengths evenly spread over orders of magnitude; most prompts begin as one of the texts does."""
        length = round(math.exp(rng.uniform(0, math.log(self.longest))))
        if rng.random() < NEAR_BORDER:
            length = min(rng.randrange(self.dense_len * 3 // 4, self.dense_len * 5 // 4), self.longest)
        common = rng.choice((0, rng.randrange(length), length // 64 * 64, length - 1))
        prompt = rng.choice(self.texts)[:common] + self.random_tokens(rng, length - common)
        weights = WEIGHTS if self.structured else WEIGHTS | {STRUCTURED: 0}
        (kind,) = rng.choices(list(weights), list(weights.values()))
        return Job(prompt, rng.choice((1, 4, 20, self.new_tokens)), kind, SAMPLES if kind == SAMPLED else 1)

    def random_tokens(self, rng: Random, count: int) -> list[int]:
        return rng.choices(range(10, self.vocabulary), k=count)

    def _do(self, job: Job, tally: Tally) -> None:
        try:
            tally.add(job, leave(self.server, job) if job.kind == LEAVING else ask(self.server, job))
        except Exception as error:  # whatever it is, the run has failed and says so at its end
            tally.fail(job, error)


def describe(error: Exception) -> str:
    """What it is, and what the server said if it is an HTTP error."""
    said = error.read().decode(errors="replace")[:500] if isinstance(error, HTTPError) else ""
    return f"{type(error).__name__}: {error} {said}"


def request_body(job: Job) -> dict:
    sampling: dict[str, Any] = {"max_new_tokens": job.new_tokens, "temperature": 0, "ignore_eos": True}
    if job.kind == SAMPLED:
        sampling |= {"temperature": 1, "n": job.samples}
    if job.kind == STRUCTURED:
        sampling |= {"regex": NUMBER, "max_new_tokens": 16, "ignore_eos": False}
    return {"input_ids": job.prompt, "sampling_params": sampling, "return_logprob": True}


def ask(server: Server, job: Job) -> list[dict]:
    """The answers. Raises ValueError where one has not as many tokens as asked, or not the structure."""
    found = server.post("/generate", request_body(job))
    answers = found if isinstance(found, list) else [found]
    if len(answers) != job.samples:
        raise ValueError(f"{len(answers)} answers; asked for {job.samples}")
    for answer in answers:
        if job.kind == STRUCTURED:
            if not re.fullmatch(NUMBER, answer["text"].strip()):
                raise ValueError(f"{answer['text']!r} does not match {NUMBER}")
        elif len(answer["output_ids"]) != job.new_tokens:
            reason = answer["meta_info"]["finish_reason"]
            raise ValueError(f"{len(answer['output_ids'])} of {job.new_tokens} tokens: {reason}")
    return answers


def answered(job: Job, answer: dict) -> Answered:
    logprobs = [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
    return Answered(job.prompt, answer["output_ids"], logprobs, job.kind)


def leave(server: Server, job: Job) -> list[dict]:
    """Read one event of the stream, and close it."""
    body = request_body(job) | {"stream": True, "return_logprob": False}
    body["sampling_params"]["max_new_tokens"] = LONG_ANSWER
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.base_url}/generate", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=LEAVE_SECONDS) as events:
        line = events.readline()
    if not line.startswith(b"data: {"):
        raise ValueError(f"the stream begins with {line[:200]!r}")
    return []
