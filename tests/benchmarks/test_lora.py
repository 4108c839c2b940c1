"""The benchmark of adapters without a GPU, on a model with two layers."""

import sys

from benchmarks.common import results_file
from benchmarks.serving import lora
from tests.benchmarks import forked_workers

SIZES = "--answer-lengths 20 --requests 2 --batch-length 20 --new-tokens 5 --repetitions 1 --profile-steps 8"


def test_answers_and_timings_and_a_profile(tiny_checkpoint, tmp_path, monkeypatch):
    """Of the model with adapters and with merged weights; in bfloat16, so their answers differ by its rounding."""
    rows, profile = tmp_path / "lora.csv", tmp_path / "profile.csv"
    words = ["--model", str(tiny_checkpoint), "--device", "cpu", "--engines", "adapters", "merged", "--rank", "4"]
    words += ["--work", str(tmp_path), "--output", str(rows), "--profile", str(profile), *SIZES.split()]
    monkeypatch.setattr(sys, "argv", ["", *words])
    monkeypatch.setattr(lora, "subprocess", forked_workers)
    assert lora.main() == 0

    *batches, answer = results_file.read(rows)
    assert [(row["engine"], row["adapters"]) for row in batches] == [
        ("adapters", "0"),
        ("adapters", "1"),
        ("adapters", "8"),
        ("merged", "0"),
    ]
    assert all(float(row["decode_ms_per_token"]) > 0 for row in batches)
    assert answer["measured"] == "answer" and float(answer["max_logprob_difference"]) < 0.2
    profiled = {row["engine"] for row in results_file.read(profile)}
    assert profiled == {"adapters, rank 4, 0 used", "adapters, rank 4, 1 used", "adapters, rank 4, 8 used"} | {
        "merged, rank 4, 0 used"
    }
