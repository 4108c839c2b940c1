"""The mixed load of ``benchmarks.serving.race``: its requests, and how one is sent to a server with the OpenAI API."""

import http.client
import json
import os
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from random import Random

# Shares in percent, and the lengths in tokens that are drawn evenly within each.
PROMPT_TOKENS = (25, 64, 4096), (10, 4096, 16384), (15, 16384, 32768), (35, 32768, 131072), (15, 131072, 163840)
ANSWER_TOKENS = (35, 16, 512), (25, 512, 2048), (10, 2048, 4096), (15, 4096, 16384), (15, 16384, 32768)
ANSWER_DIVISOR, LEAST_ANSWER = 8, 8  # of the race's answers, an eighth, and at least 8 tokens
FIRST_ID = 10  # below are special tokens
# Each is one token for nearly every tokenizer, with the space before it.
WORDS = ("the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not", "he")
WARM_UP = 9000, 8  # tokens: more than a chunk of prefill
TIMEOUT_SECONDS = 3600


@dataclass(frozen=True)
class Request:
    prompt_tokens: int
    new_tokens: int
    seed: str


@dataclass(frozen=True)
class Answered:
    """prompt_tokens, new_tokens: as the server counted."""

    prompt_tokens: int
    new_tokens: int
    ttft_s: float


def requests(count: int, seed: int, longest: int) -> list[Request]:
    """The first ``count`` requests of the mix."""
    rng = Random(seed)
    found = []
    for number in range(count):
        prompt, answer = drawn(rng, PROMPT_TOKENS), drawn(rng, ANSWER_TOKENS) // ANSWER_DIVISOR
        found.append(Request(*scaled((prompt, answer), longest), f"{seed} {number}"))
    return found


def drawn(rng: Random, shares: tuple[tuple[int, int, int], ...]) -> int:
    ((_, low, high),) = rng.choices(shares, [share for share, _, _ in shares])
    return rng.randint(low, high)


def scaled(tokens: tuple[int, int], longest: int) -> tuple[int, int]:
    """Tokens of prompt and answer, where the longest prompt of the mix has ``longest``."""
    prompt, answer = (number * longest // PROMPT_TOKENS[-1][-1] for number in tokens)
    return max(1, prompt), max(LEAST_ANSWER, answer)


def body(request: Request, model: str, vocabulary: int | None) -> bytes:
    """Of the HTTP request for a completion: token ids below ``vocabulary``, or words where that is None."""
    choice: range | tuple[str, ...] = WORDS if vocabulary is None else range(FIRST_ID, vocabulary)
    prompt = Random(request.seed).choices(choice, k=request.prompt_tokens)
    content = {
        "model": model,
        "prompt": " ".join(map(str, prompt)) if vocabulary is None else prompt,
        "max_tokens": request.new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(content).encode()


def send(base_url: str, content: bytes) -> Answered:
    """Ask for a completion and wait for its end. Raises RuntimeError with the server's answer where it refuses."""
    url = urllib.parse.urlsplit(base_url)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.netloc, timeout=TIMEOUT_SECONDS)
    start, first, last = time.perf_counter(), 0.0, b""
    try:
        connection.request("POST", f"{url.path}/v1/completions", content, headers())
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"the server answers {answer.status}: {answer.read().decode(errors='replace')[:500]}")
        for line in answer:
            if line.startswith(b"data:") and b"[DONE]" not in line[:20]:
                # Only the last one is parsed: parsing thousands a second would slow down the other streams.
                first, last = first or time.perf_counter() - start, line
    finally:
        connection.close()
    usage = json.loads(last.removeprefix(b"data:") or b"{}").get("usage")
    if not usage:
        raise RuntimeError(f"the stream ends without its usage: {last.decode(errors='replace')[:500]!r}")
    return Answered(usage["prompt_tokens"], usage["completion_tokens"], first)


def get(base_url: str, path: str) -> dict:
    """JSON answer to GET ``path``. Raises urllib.error.URLError where there is none."""
    request = urllib.request.Request(base_url + path, headers=headers())
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        return json.load(answer)


def headers() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY")
    return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
