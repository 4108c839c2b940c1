"""Engines side by side without a GPU: what is asked, left out, kept and compared, and one engine on the CPU."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

from benchmarks.common import results_file
from benchmarks.serving import qwen3, side_by_side
from benchmarks.serving.side_by_side import COLUMNS, expected_seconds, lengths, measured, missing, parse_arguments
from tests.benchmarks import forked_workers

FOREVER = float("inf")
SIZES = "--device cpu --engines plugin --lengths 100,1900,3K --new-tokens 5 --repetitions 1 --commit c0ffee"


def arguments(path: Path, words: str = ""):
    given = f"--model {path} --output {path / 'x.csv'} --device cpu --commit c0ffee {words}"
    found = parse_arguments(given.split())
    found.worker = "plugin"
    return found


def row(engine: str, tokens: int, ttft: float, decode: float, outcome: str = side_by_side.MEASURED) -> dict:
    figures = {"ttft_s": ttft, "decode_ms_per_token": decode} if outcome == side_by_side.MEASURED else {}
    return {"engine": engine, "prompt_tokens": tokens, "outcome": outcome, "commit": "c0ffee", "gpu": "none"} | figures


class Engine:
    """Takes a millisecond of the clock for every token of a prompt, and one for every further token."""

    def __init__(self, monkeypatch, pool_tokens):
        self.now, self.asked, self.pool_tokens = 0.0, [], pool_tokens
        monkeypatch.setattr("time.perf_counter", lambda: self.now)
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    def get_server_info(self) -> dict:
        return {
            "max_total_num_tokens": self.pool_tokens,
            "internal_states": [{"memory_usage": {"kvcache": self.pool_tokens / 1024}}],  # a MiB for every token
        }

    def generate(self, input_ids: list, sampling_params: dict, stream: bool):
        self.asked.append(len(input_ids[0]))
        self.now += len(input_ids[0]) / 1e3
        for tokens in range(1, sampling_params["max_new_tokens"] + 1):
            yield {"index": 0, "meta_info": {"completion_tokens": tokens}}
            self.now += 1e-3


@pytest.fixture
def memory(monkeypatch):
    """Of the GPU: always 100,000 MiB at its peak."""
    monkeypatch.setattr(results_file, "peak_memory", lambda device: nullcontext({"peak_mib": 100_000}))


def test_lengths_are_in_order():
    assert lengths("2M,8192,16K") == [8192, 16 << 10, 2 << 20]


def test_what_is_no_length_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        arguments(tmp_path, "--lengths 8k")
    assert "'8k' is not possible; allowed: tokens, such as 8192, 16K or 2M" in capsys.readouterr().err


def test_each_length_is_warmed_up_and_long_ones_are_asked_once(tmp_path, monkeypatch, memory):
    engine = Engine(monkeypatch, pool_tokens=20_000)
    found = list(measured(engine, {"vocab_size": 500}, FOREVER, arguments(tmp_path, "--lengths 1000,15000,30000")))
    assert engine.asked == [20_000 - 65 - 128] * 2 + [1000] * 4 + [15_000]
    assert [(one["outcome"], one.get("repetitions"), one.get("ttft_s")) for one in found] == [
        ("measured", 3, 1.0),
        ("measured", "1, no warm-up", 15.0),
        ("does not fit: the memory holds 20000 tokens", None, None),
    ]
    assert all(one.keys() <= set(COLUMNS) for one in found)
    # Of the pool, 20,000 MiB, the request leaves 20,000 - 1,193 free.
    assert found[0]["needed_memory_mib"] == 100_000 - (20_000 - 1193)


def test_what_there_is_no_time_for_is_left_out(tmp_path, monkeypatch, memory):
    engine = Engine(monkeypatch, pool_tokens=100_000)
    given = arguments(tmp_path, "--lengths 1000,2000,9000 --repetitions 1")
    # 18 s warm-up with 9,000 tokens, 6 s for the two short lengths: 9 s more would be too late.
    found = list(measured(engine, {"vocab_size": 500}, 30.0, given))
    assert [one["prompt_tokens"] for one in found] == [1000, 2000]


@pytest.mark.parametrize(
    "seen, length, expected",
    [
        ({10: 1.0}, 40, 4.0),
        ({10: 1.0, 20: 4.0}, 40, 16.0),
        ({20: 2.0, 10: 1.0}, 40, 4.0),
        ({10: 1.0, 20: 1.5}, 40, 3.0),
        ({10: 1.0, 20: 9.0}, 40, 36.0),
    ],
)
def test_time_grows_between_linearly_and_quadratically(seen, length, expected):
    assert expected_seconds(seen, length) == pytest.approx(expected)


def test_rows_of_the_same_engine_commit_and_gpu_are_not_measured_again(tmp_path):
    given = arguments(tmp_path, "--lengths 10,20,30,40")
    others = {"engine": "plugin-fp8"}, {"commit": "decade"}, {"gpu": "NVIDIA H100"}
    for one in (row("plugin", 10, 1, 1), row("plugin", 20, 0, 0, "failed: OSError"), *others):
        results_file.append(given.output, row("plugin", 30, 1, 1) | one, COLUMNS)
    assert missing("plugin", given) == [30, 40]


def test_an_engine_that_ends_leaves_its_last_error(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'Traceback' >&2\necho 'ImportError: no flash_ops' >&2\necho bye >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    given = arguments(tmp_path, "--lengths 10,20")
    assert not side_by_side.run("qwen3-8b-fa3", given)
    (found,) = results_file.read(given.output)
    assert (found["outcome"], found["prompt_tokens"]) == ("failed: ImportError: no flash_ops", "10")
    assert '"attention_backend": "fa3"' in found["options"]


def test_ratios_take_the_fastest_attention_of_qwen3(tmp_path, capsys, monkeypatch):
    rows = [
        row("plugin", 262_144, 9.13, 6.76),
        row("plugin-fp8", 262_144, 6.36, 4.73),
        row("qwen3-8b-flashinfer", 262_144, 60.8, 25.0),
        row("qwen3-8b-triton", 262_144, 120.0, 19.3),
        row("qwen3-8b-fa3", 262_144, 0, 0, "failed: ImportError"),
        row("plugin", 8192, 0.2, 7.0),
    ]
    for one in rows:
        results_file.append(tmp_path / "x.csv", one, COLUMNS)
    monkeypatch.setattr(sys, "argv", ["", "--plot", "--output", str(tmp_path / "x.csv")])
    assert side_by_side.main() == 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert lines == [
        "plugin: 6.7 times sooner and 2.9 times faster per token than qwen3-8b at 262,144 tokens",
        "plugin-fp8: 9.6 times sooner and 4.1 times faster per token than qwen3-8b at 262,144 tokens",
    ]
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_qwen3_has_its_published_parameters(tmp_path):
    qwen3.write(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Qwen3Config.from_pretrained(tmp_path))
    assert sum(weight.numel() for weight in model.parameters()) == 8_190_735_360


def test_an_engine_is_measured_once(tiny_checkpoint, tmp_path, monkeypatch, capfd):
    """On the CPU; what the pool cannot hold says so, and a second run has nothing to do."""
    path = tmp_path / "x.csv"
    words = ["--model", str(tiny_checkpoint), *SIZES.split(), "--engine-options", '{"max_total_tokens": 2048}']
    monkeypatch.setattr(sys, "argv", ["", *words, "--output", str(path)])
    monkeypatch.setattr(side_by_side, "subprocess", forked_workers)
    for _ in range(2):
        capfd.readouterr()
        assert side_by_side.main() == 0
        outcomes = [(one["prompt_tokens"], one["outcome"]) for one in results_file.read(path)]
        assert outcomes == [
            ("100", "measured"),
            ("1900", "measured"),
            ("3072", "does not fit: the memory holds 2048 tokens"),
        ]
    assert f"plugin: every length is in {path}" in capfd.readouterr().out
    assert path.with_suffix(".png").exists()
