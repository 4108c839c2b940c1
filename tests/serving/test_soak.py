"""Many requests with shared prefixes, aborts and too little memory: every answer is right, and nothing is left over."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random

import psutil
import pytest

from sala_sglang.checkpoint.make import TINY_CONFIG
from testing.server import ANSWER_SECONDS
from tests.serving.client import generate, random_prompt
from tests.serving.oracle import Answer, Oracle

pytestmark = pytest.mark.soak

TOLERANCE = 1e-4  # as in test_equality
ATTEMPTS = 4
REQUESTS, AT_ONCE = 240, 6
POOL_TOKENS = 1600
MAX_PROMPT, MAX_NEW = 760, 90
DENSE_LEN = TINY_CONFIG["sparse_config"]["dense_len"]
NEAR_BORDER = 0.4


@pytest.fixture(scope="module")
def server(start_server):
    # Room for two of the longest requests, and states for them and little more: pages and snapshots are evicted,
    # and requests retracted.
    arguments = (
        f"--dtype float32 --chunked-prefill-size 192 --max-running-requests {AT_ONCE} --max-mamba-cache-size 30 "
        f"--max-total-tokens {POOL_TOKENS} --enable-mixed-chunk"
    )
    admit_too_many = {"SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "8"}
    many_snapshots = {"SALA_SNAPSHOT_SPACING": "128"}  # the prompts are short
    with start_server(*arguments.split(), environment=admit_too_many | many_snapshots) as running:
        yield running


@dataclass(frozen=True)
class Job:
    """leave: the client goes after the first token."""

    prompt: list[int]
    tokens: int
    leave: bool


def make_jobs(rng: Random) -> list[Job]:
    """Prompts that begin as one of a few texts do, for a random part of it, and go on as no other.

    Many of them are just shorter or longer than ``dense_len`` and begin alike further than dense and sparse prompts may
    share pages.
    """
    texts = [random_prompt(MAX_PROMPT, 500, seed) for seed in range(5)]
    jobs = []
    for seed in range(REQUESTS):
        if rng.random() < NEAR_BORDER:
            text, length = texts[0], rng.randrange(DENSE_LEN - 100, DENSE_LEN + 100)
            common = rng.randrange(length - 60, length)
            own, answers = length - common, [4, MAX_NEW, MAX_NEW]
        else:
            text = rng.choice(texts)
            common = rng.choice((0, rng.randrange(MAX_PROMPT), rng.randrange(64, MAX_PROMPT, 64)))
            own, answers = rng.choice((1, rng.randrange(1, 64), rng.randrange(1, 200))), [1, 4, 20, MAX_NEW]
        prompt = (text[:common] + random_prompt(own, 500, 1000 + seed))[:MAX_PROMPT]
        jobs.append(Job(prompt, rng.choice(answers), rng.random() < 0.15))
    return jobs


def test_every_answer_is_right(server, tiny_checkpoint):
    oracle = Oracle(tiny_checkpoint)

    def run(job: Job) -> tuple[Answer, dict] | None:
        if job.leave:
            leave(server, job)
            return None
        return generate(server, job.prompt, job.tokens)

    jobs = make_jobs(Random(20))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(run, jobs))
    cached = 0
    for job, answer in zip(jobs, answers, strict=True):
        if answer is None:
            continue
        text, meta = answer
        cached += meta["cached_tokens"]
        assert len(text.tokens) == job.tokens
        oracle.check(job.prompt, text, TOLERANCE)
    assert cached > 10_000, cached


def test_pools_were_too_small(server):
    """How the load above met in the pools is a matter of time, so more follows until something was retracted."""
    for seed in range(ATTEMPTS):
        if server.gauges().get("num_retracted_requests_total"):  # SGLang names it from the first one on
            break
        jobs = [job for job in make_jobs(Random(21 + seed)) if not job.leave]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda job: generate(server, job.prompt, job.tokens), jobs))
    gauges = server.gauges()
    assert gauges["num_retracted_requests_total"] > 0
    assert gauges["evicted_tokens_total"] > 0


def test_nothing_is_left_over(server):
    assert server.is_running()
    server.flush_cache()
    counters = server.idle_counters()
    assert not any(counters.values()), counters
    (load,) = server.get_server_info()["internal_states"]
    assert load["memory_usage"]  # the scheduler answers, and has checked its pools at rest


def test_a_killed_worker_ends_the_server(server):
    children = psutil.Process(server.process.pid).children(recursive=True)
    (scheduler,) = (child for child in children if "scheduler" in " ".join(child.cmdline()))
    scheduler.kill()
    server.process.wait(timeout=ANSWER_SECONDS)
    assert server.process.returncode != 0
    assert "scheduler" in server.log[-5000:].lower()
    # What the server has told to end may live a moment longer than it.
    _, alive = psutil.wait_procs(children, timeout=ANSWER_SECONDS)
    assert not alive


def leave(server, job: Job) -> None:
    events = server.client.completions.create(model="default", prompt=job.prompt, max_tokens=MAX_NEW, stream=True)
    next(iter(events))
    events.close()
