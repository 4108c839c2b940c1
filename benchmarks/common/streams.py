"""Requests to an engine, and when their tokens came."""

from __future__ import annotations

import random
import statistics
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported where an engine runs
    from sglang import Engine


def one_request(engine: Engine, prompt: list[int], new_tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and seconds per token after it."""
    start = time.perf_counter()
    arrivals = stream(engine, [prompt], new_tokens)
    return arrivals[0][0][0] - start, decode_seconds(arrivals)


def stream(engine: Engine, prompts: list[list[int]], new_tokens: int, **request: Any) -> list[list[tuple[float, int]]]:
    """Run the prompts at once; for each, when how many of its tokens had come: (seconds, tokens) in order.

    request: further arguments of ``engine.generate``.
    """
    arrivals: list[list[tuple[float, int]]] = [[] for _ in prompts]
    for chunk in engine.generate(input_ids=prompts, sampling_params=greedy(new_tokens), stream=True, **request):
        arrivals[chunk["index"]].append((time.perf_counter(), chunk["meta_info"]["completion_tokens"]))
    counts = [seen[-1][1] if seen else 0 for seen in arrivals]
    if set(counts) != {new_tokens}:
        raise RuntimeError(f"expected streams of {new_tokens} tokens, got {counts}")
    return arrivals


def decode_seconds(arrivals: list[list[tuple[float, int]]]) -> float:
    """Seconds per token while all requests generate, the mean over them: from the last first token to the first last.

    Tokens of one step come one request after the other, so each request is timed by its own.
    """
    start, end = max(seen[0][0] for seen in arrivals), min(seen[-1][0] for seen in arrivals)
    within = [[(when, count) for when, count in seen if start <= when <= end] for seen in arrivals]
    if min(map(len, within)) < 2:
        raise RuntimeError("a request got no token while all others generated; allowed: more new tokens")
    return statistics.mean((seen[-1][0] - seen[0][0]) / (seen[-1][1] - seen[0][1]) for seen in within)


def greedy(new_tokens: int) -> dict:
    return {"max_new_tokens": new_tokens, "ignore_eos": True, "temperature": 0}


def random_prompt(config: dict, length: int) -> list[int]:
    return random.choices(range(10, config["vocab_size"]), k=length)
