"""The serving benchmarks without a GPU: what they compute and print, and their arguments."""

import pytest

from benchmarks.serving import decode_seconds
from benchmarks.tensor_parallel import COLUMNS, compare, compared_answers, parse_arguments, table

RESULTS = {
    tp: {
        "common": {"tp": tp, "gpu": "none"},
        "answers": [{"prompt_tokens": 9, "tokens": [1, 2, 3], "logprobs": [-1.0, -1.5, -0.5 - tp]}],
        "timings": [
            {"measured": "one request", "prompt_tokens": 64, "ttft_s": 4.0 / tp, "decode_ms_per_token": 8.0 / tp},
            {"measured": "batch", "requests": 32, "prompt_tokens": 8, "decode_ms_per_token": 16.0 / tp},
        ],
    }
    for tp in (1, 2)
}


def test_decode_time_counts_only_while_all_requests_generate():
    """The second request starts at 3 s, the first one ends at 6 s; both generate a token per second then."""
    first = [(0.0, 1), (1.0, 2), (2.0, 3), (4.0, 4), (5.0, 5), (6.0, 6)]
    second = [(3.0, 1), (4.0, 2), (5.0, 3), (6.0, 4), (7.0, 5), (8.0, 6)]
    assert decode_seconds([first, second]) == 1.0
    assert decode_seconds([first]) == 6 / 5


def test_decode_time_of_requests_one_after_the_other_does_not_exist():
    with pytest.raises(RuntimeError, match="more new tokens"):
        decode_seconds([[(0.0, 1), (1.0, 2)], [(1.0, 1), (2.0, 2)]])


def test_answers_are_compared_up_to_the_token_that_differs():
    one = {"prompt_tokens": 9, "tokens": [5, 6, 7, 8], "logprobs": [-1.0, -2.0, -0.5, -0.1]}
    other = {"prompt_tokens": 9, "tokens": [5, 6, 9, 8], "logprobs": [-1.0, -2.25, -1.0, -9.0]}
    assert compare(one, other) == {"prompt_tokens": 9, "equal_tokens": 2, "max_logprob_difference": 0.5}
    assert compare(one, one) == {"prompt_tokens": 9, "equal_tokens": 4, "max_logprob_difference": 0.0}


def test_every_further_size_is_compared_with_the_first():
    (row,) = compared_answers(RESULTS)
    assert (row["tp"], row["equal_tokens"], row["max_logprob_difference"]) == (2, 3, 1.0)
    assert row.keys() <= set(COLUMNS)


def test_table_has_a_row_per_size():
    title, _, one, two = table(RESULTS).splitlines()
    assert title == "| tp | TTFT at 64 s | decode at 64 ms/token | decode of 32 ms/token |"
    assert one == "| 1 | 4.0 | 8.0 | 16.0 |"
    assert two == "| 2 | 2.0 | 4.0 | 8.0 |"


def test_defaults_are_the_released_model_on_one_and_two_gpus(tiny_checkpoint):
    arguments = parse_arguments(["--model", str(tiny_checkpoint), "--output", "x.csv"])
    assert (arguments.tp, arguments.lengths, arguments.batches) == ([1, 2], [32768, 131072], [1, 32])


@pytest.mark.parametrize(
    "words, error",
    [
        ("--tp 2 2", "--tp is [2, 2]; allowed: different positive integers"),
        ("--tp 0 2", "--tp is [0, 2]; allowed: different positive integers"),
        ("--new-tokens 1", "--new-tokens is 1; allowed: 2 or more"),
        ("--batches 0", "'0' is not possible; allowed: positive integers"),
        ("--model tests", "--model is tests; allowed: a directory with config.json and *.safetensors"),
    ],
)
def test_impossible_arguments(tiny_checkpoint, capsys, words, error):
    with pytest.raises(SystemExit):
        parse_arguments(["--model", str(tiny_checkpoint), "--output", "x.csv", *words.split()])
    assert error in capsys.readouterr().err
