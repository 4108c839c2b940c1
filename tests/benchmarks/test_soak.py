"""The soak benchmark without a server: its requests, its sample of answers, and its verdict."""

import re
from random import Random

import pytest

from benchmarks.soak import load, run
from benchmarks.soak.load import GREEDY, LEAVING, NUMBER, SAMPLED, STRUCTURED, TEXTS, Answered, Job, Load, Tally
from benchmarks.soak.score import Differences, apart, choose, differences, score, within_noise


def make_load(**changes) -> Load:
    common = {"server": None, "vocabulary": 500, "seconds": 0, "clients": 2, "longest": 700, "long": 0}
    load = Load(**common | {"new_tokens": 90, "structured": True, "dense_len": 512, "seed": 3} | changes)
    load.texts = [load.random_tokens(Random(text), 700) for text in range(TEXTS)]
    return load


def answered(prompt_tokens: int, tokens: int = 3) -> Answered:
    return Answered([11] * prompt_tokens, [12] * tokens, [-1.0] * tokens, GREEDY)


def test_prompts_are_of_all_lengths_and_share_prefixes():
    load, rng = make_load(), Random(0)
    jobs = [load.make_job(rng) for _ in range(500)]
    lengths = [len(job.prompt) for job in jobs]
    assert min(lengths) == 1 and 500 < max(lengths) <= 700
    assert {job.kind for job in jobs} == {GREEDY, SAMPLED, LEAVING, STRUCTURED}
    assert sum(384 <= length < 640 for length in lengths) > 100
    begins = [tuple(job.prompt[:64]) for job in jobs if len(job.prompt) >= 64]
    assert len(begins) > 2 * len(set(begins))
    assert STRUCTURED not in {make_load(structured=False).make_job(rng).kind for _ in range(500)}


class Server:
    """Answers every request with the token 12; tells token 499 as 0, and beyond it another one."""

    def __init__(self, cached: int = 0, text: str = "1234"):
        self.cached, self.text = cached, text
        self.bodies: list[dict] = []

    def post(self, path: str, body: dict):
        self.bodies.append(body)
        sampling, prompt = body["sampling_params"], body["input_ids"]
        tokens = [12] * sampling["max_new_tokens"]
        start = body.get("logprob_start_len", len(prompt))
        meta = {
            "cached_tokens": self.cached,
            "output_token_logprobs": [[-1.0, token, None] for token in tokens],
            "input_token_logprobs": [[-2.0, token % 499, None] for token in prompt[start:]],
        }
        answer = {"output_ids": tokens, "text": self.text, "meta_info": meta}
        return [answer] * sampling["n"] if "n" in sampling else answer


def test_answers_are_counted_and_sampled():
    server, tally = Server(cached=4), Tally(2, Random(0))
    for job in (Job([11] * 5, 6, GREEDY), Job([11] * 7, 6, SAMPLED, 3), Job([11], 4, STRUCTURED)):
        tally.add(job, load.ask(server, job))
    tally.add(Job([11], 4, LEAVING), [])
    assert (tally.requests, tally.prompt_tokens, tally.aborts) == (4, 14, 1)
    assert (tally.output_tokens, tally.cached_tokens) == (4 * 6 + 16, 20)
    assert (tally.answers, len(tally.sample)) == (4, 2)
    tally.add(Job([11] * 5, 6, GREEDY), load.ask(Server(), Job([11] * 5, 6, GREEDY)))
    assert tally.answers == 4  # nothing of it came from the cache
    assert tally.sample[0].logprobs == [-1.0] * 6


@pytest.mark.parametrize(
    "job, error",
    [
        (Job([11], 4, SAMPLED, 3), None),
        (Job([11], 4, STRUCTURED), "'0123' does not match"),
    ],
)
def test_wrong_answers_are_failures(job, error):
    server, tally = Server(text="0123"), Tally(2, Random(0))
    make_load(server=server)._do(job, tally)
    assert bool(tally.failures) == bool(error)
    assert not error or error in tally.failures[0]


def test_clients_stop_where_one_has_failed():
    load = make_load(server=None, seconds=60)
    tally = load.run(sample=1)
    assert 1 <= len(tally.failures) <= load.clients


def test_answers_of_another_kind_or_beyond_the_budget_are_not_scored():
    sample = [answered(510), answered(508), answered(512), answered(900), answered(100)]
    assert choose(sample, budget=1200, dense_len=512) == [sample[1], sample[2], sample[4]]


def test_a_score_is_the_log_probabilities_of_the_answer():
    server = Server()
    assert score(server, answered(5)) == [-2.0] * 3
    assert server.bodies[0]["input_ids"] == [11] * 5 + [12] * 3
    assert score(server, answered(1)) == [-2.0] * 3
    last = Answered([11] * 5, [12, 499], [-1.0] * 2, GREEDY)
    assert score(server, last) == [-2.0] * 2
    with pytest.raises(ValueError, match=r"scored \[1\] in place of \[500\]"):
        score(server, Answered([11], [500], [-1.0], GREEDY))
    with pytest.raises(ValueError, match="with 64 tokens from the cache"):
        score(Server(cached=64), answered(5))


def test_prompts_at_rest_share_nothing():
    first, second = apart([answered(5), answered(1)])
    assert (first.prompt, second.prompt) == ([10, 11, 11, 11, 11], [11])


def test_load_may_differ_by_twice_the_noise():
    assert differences([[-1.0, -2.0], [-3.0]], [[-1.5, -2.0], [-3.25]]) == Differences([0.5, 0.25], 0.25)
    noise = {"decode": Differences([0.1, 0.3], 0.1), "batch": Differences([0.2], 0.1)}
    assert within_noise(noise | {"load": Differences([0.6], 0.2)})
    assert not within_noise(noise | {"load": Differences([0.1, 0.61], 0.01)})


def test_defaults_fit_each_other(tiny_checkpoint):
    words = ["--model", str(tiny_checkpoint), "--output", "x.csv"]
    arguments = run.parse_arguments([*words, "--", "--dtype", "float32"])
    assert arguments.pool == 157_286
    options = " ".join(run.server_options(arguments))
    assert options.endswith("--max-running-requests 32 --max-mamba-cache-size 192 --dtype float32")
    load = run.make_load(None, {"vocab_size": 500, "sparse_config": {"dense_len": 8192}}, arguments)
    assert (load.long, load.structured) == (131_072 - 1016, True)
    assert re.fullmatch(NUMBER, "1234")


@pytest.mark.parametrize(
    "words, error",
    [
        ("--context 100000", "--context is 100000; allowed: 101016 or more for prompts of --longest"),
        ("--pool 1000", "--pool is 1000; allowed: 131072, the context, or more"),
        ("--clients 0", "--clients is 0; allowed: 1 or more"),
        ("--model tests", "--model is tests; allowed: a directory with config.json and *.safetensors"),
    ],
)
def test_impossible_arguments(tiny_checkpoint, capsys, words, error):
    with pytest.raises(SystemExit):
        run.parse_arguments(["--model", str(tiny_checkpoint), "--output", "x.csv", *words.split()])
    assert error in capsys.readouterr().err
