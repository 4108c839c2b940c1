"""The serving benchmarks without a GPU: what they compute and print, and their arguments."""

import argparse
import itertools
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from benchmarks.common import device_memory, results_file, streams
from benchmarks.common.streams import decode_seconds
from benchmarks.serving import speed, step_profile
from benchmarks.serving.tensor_parallel import COLUMNS, compare, compared_answers, parse_arguments, table
from testing.server import ANSWER_SECONDS

RESULTS = {
    str(tp): {
        "common": {"tp": tp, "pp": 1, "gpu": "none"},
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


def test_decode_time_does_not_depend_on_who_comes_first_in_a_step():
    streams = [[(step + request / 64, step) for step in range(1, 9)] for request in range(32)]
    assert decode_seconds(streams) == 1.0


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
    assert title == "| size | TTFT at 64 s | decode at 64 ms/token | decode of 32 ms/token |"
    assert one == "| 1 | 4.0 | 8.0 | 16.0 |"
    assert two == "| 2 | 2.0 | 4.0 | 8.0 |"


def test_defaults_are_the_released_model_on_one_and_two_gpus(tiny_checkpoint):
    arguments = parse_arguments(["--model", str(tiny_checkpoint), "--output", "x.csv"])
    assert (arguments.sizes, arguments.lengths, arguments.batches) == (["1", "2"], [32768, 131072], [1, 32])


@pytest.mark.parametrize(
    "words, error",
    [
        ("--sizes 2 2", "--sizes is ['2', '2']; allowed: different numbers of GPUs"),
        ("--sizes 0 2", "--sizes is ['0', '2']; allowed: different numbers of GPUs"),
        ("--sizes 1 2x", "--sizes is ['1', '2x']; allowed: different numbers of GPUs"),
        ("--new-tokens 1", "--new-tokens is 1; allowed: 2 or more"),
        ("--batches 0", "'0' is not possible; allowed: positive integers"),
        ("--model tests", "--model is tests; allowed: a directory with config.json and *.safetensors"),
    ],
)
def test_impossible_arguments(tiny_checkpoint, capsys, words, error):
    with pytest.raises(SystemExit):
        parse_arguments(["--model", str(tiny_checkpoint), "--output", "x.csv", *words.split()])
    assert error in capsys.readouterr().err


def serving_arguments(words: str = "") -> argparse.Namespace:
    return speed.parse_arguments(["--model", "x", "--lengths", "100,1024", "--output", "x.csv", *words.split()])


def test_batches_are_sizes_or_none():
    assert serving_arguments().batch == [32]
    assert serving_arguments("--batch 1,32").batch == [1, 32]
    assert serving_arguments("--batch 0").batch == []


def test_few_steps_to_profile_are_refused(capsys):
    with pytest.raises(SystemExit):
        serving_arguments("--profile-steps 4")
    assert "--profile-steps is 4; allowed: 8 or more" in capsys.readouterr().err


class CountingEngine:
    """Answers every token at once, and keeps the prompts' lengths."""

    def __init__(self):
        self.lengths = []

    def generate(self, input_ids: list[list[int]], sampling_params: dict, stream: bool):
        self.lengths += [len(prompt) for prompt in input_ids]
        for tokens in range(1, sampling_params["max_new_tokens"] + 1):
            for index in range(len(input_ids)):
                yield {"index": index, "meta_info": {"completion_tokens": tokens}}


def test_very_long_prompts_are_asked_once(monkeypatch):
    monkeypatch.setattr(streams.time, "perf_counter", map(float, itertools.count()).__next__)
    engine, arguments = CountingEngine(), serving_arguments("--device cpu --batch 2 --batch-length 7 --new-tokens 3")
    arguments.lengths = [10, speed.ONCE_FROM]
    timed = list(speed.timed(engine, {"vocab_size": 100}, arguments))
    assert engine.lengths == [10] * 4 + [speed.ONCE_FROM] + [7] * 8
    assert [row["repetitions"] for row in timed] == [3, "1, no warm-up", 3]
    # The clock goes on by a second whenever it is read, which is once for every token of every request.
    assert [row["decode_ms_per_token"] for row in timed] == [1000, 1000, 2000]
    assert all(row.keys() <= set(speed.COLUMNS) for row in timed)


def test_profiled_prompts_are_whole_chunks_up_to_a_limit():
    arguments = serving_arguments("--batch-length 5000")
    assert step_profile.prefill_tokens(arguments, chunk=300) == 1200
    arguments.lengths = [1_040_000]
    assert step_profile.prefill_tokens(arguments, chunk=8192) == 131_072
    assert step_profile.longest(arguments, chunk=8192) == 131_073
    arguments.lengths = [100]
    assert step_profile.longest(arguments, chunk=64) == 5000 + 2 * 32 + 64


def test_peak_memory_is_the_highest_sample(monkeypatch):
    left = [2 << 20, 7 << 20, 3 << 20]
    taken = threading.Event()

    def used(gpu) -> SimpleNamespace:
        memory = left.pop(0)
        if not left:
            taken.set()
            left.append(memory)
        return SimpleNamespace(used=memory)

    nvml = SimpleNamespace(nvmlDeviceGetMemoryInfo=used)
    monkeypatch.setattr(results_file, "first_gpu", lambda: nullcontext((nvml, None)))
    with results_file.peak_memory("cuda") as memory:
        assert taken.wait(ANSWER_SECONDS)
    assert memory["peak_mib"] == 7
    with results_file.peak_memory("cpu") as memory:
        pass
    assert memory["peak_mib"] == ""


class MemoryEngine:
    def get_server_info(self) -> dict:
        told = {"weight": 17.5, "kvcache": 8.0, "graph": {"prefill": 0.0, "decode": 0.25}}
        return {"internal_states": [{"memory_usage": told}]}


def test_memory_is_what_sglang_tells_and_the_rest(monkeypatch):
    monkeypatch.setattr(device_memory, "used_mib", lambda device: 64_000)
    found = {row["what"]: row["mib"] for row in device_memory.after_start(MemoryEngine(), 500, "cuda")}
    assert (found["weights"], found["keys, values and compressed keys"], found["decode graphs"]) == (17_920, 8192, 256)
    assert found["sum after the start"] == 63_500 == sum(found.values()) - 63_500
    assert "prefill graphs" not in found


def test_rows_are_appended_and_shown_as_a_table(tmp_path, capsys):
    columns = ("date", "engine", "ttft_s", *results_file.SURROUNDINGS)
    path = tmp_path / "new" / "x.csv"
    assert results_file.read(path) == []
    for engine in ("one", "two"):
        results_file.record(path, {"date": "today", "engine": engine, "gpu": "none"}, columns)
    assert results_file.table(results_file.read(path)[1:], ("engine", "ttft_s")).splitlines()[2:] == ["| two |  |"]
    assert capsys.readouterr().out == "engine=one\nengine=two\n"
