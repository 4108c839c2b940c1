"""The benchmark of the prefix cache without an engine: what it asks, and what it computes."""

import pytest

from benchmarks.common import results_file
from benchmarks.serving import prefix_cache
from benchmarks.serving.prefix_cache import COLUMNS, comparisons, measure_questions, measure_throughput

CONFIG = {"vocab_size": 500}
ABOUT = dict.fromkeys(results_file.SURROUNDINGS, "x") | {
    "date": "today",
    "requests": 1,
    "prompt_tokens": 9,
    "new_tokens": 1,
}


def arguments(words: str = ""):
    return prefix_cache.parse_arguments(["--model", "x", "--output", "x.csv", "--device", "cpu", *words.split()])


class CachingEngine:
    """Finds the part of a prompt that the one before began with."""

    def __init__(self):
        self.prompts = []

    def generate(self, input_ids: list, sampling_params: dict) -> dict:
        before = self.prompts[-1] if self.prompts else []
        pairs = zip(before, input_ids, strict=False)
        cached = next((place for place, (one, other) in enumerate(pairs) if one != other), 0)
        self.prompts.append(input_ids)
        return {"meta_info": {"cached_tokens": cached}}


def test_two_questions_about_each_document():
    engine = CachingEngine()
    found = measure_questions(engine, CONFIG, arguments("--document 100 --documents 2 --question 40"))
    assert [(row["measured"], row["cached_tokens"] >= 100) for row in found] == [
        ("first question", False),
        ("second question", True),
    ]
    assert len(engine.prompts) == 6  # with the warm-up
    assert all(len(prompt) == 140 for prompt in engine.prompts)
    assert engine.prompts[2][:100] == engine.prompts[3][:100] != engine.prompts[4][:100]
    assert engine.prompts[2] != engine.prompts[3]
    assert all(row.keys() <= set(COLUMNS) for row in found)


def test_throughput_counts_the_tokens_of_all_requests_and_no_warm_up():
    engine = CachingEngine()
    row = measure_throughput(engine, CONFIG, arguments("--requests 5 --length 20 --new-tokens 7 --repetitions 3"))
    assert [len(batch) for batch in engine.prompts] == [5] * 4
    assert len(row["all_values"].split()) == 3
    assert row.keys() <= set(COLUMNS)


def test_comparisons_are_in_percent():
    found = [
        ABOUT | {"cache": "off", "measured": "nothing shared", "output_tokens_per_s": "200.0"},
        ABOUT | {"cache": "on", "measured": "nothing shared", "output_tokens_per_s": "199.0"},
        ABOUT | {"cache": "on", "measured": "first question", "ttft_s": "5.0"},
        ABOUT | {"cache": "on", "measured": "second question", "ttft_s": "0.05"},
    ]
    found = [dict(row, repetitions=3) for row in found]
    throughput, questions = comparisons(found)
    assert (throughput["measured"], throughput["compared_percent"]) == ("nothing shared, against off", 99.5)
    assert (questions["measured"], questions["compared_percent"]) == ("second question, against the first", 1.0)
    assert throughput.keys() <= set(COLUMNS)


def test_impossible_arguments(capsys):
    with pytest.raises(SystemExit):
        arguments("--documents 0")
    assert "--documents is 0; allowed: 1 or more" in capsys.readouterr().err
