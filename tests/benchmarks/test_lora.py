"""The benchmark of adapters without a GPU, on a model with two layers."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.common import results_file
from testing.server import START_SECONDS

ROOT = Path(__file__).parents[2]
SIZES = "--answer-lengths 20 --requests 2 --batch-length 20 --new-tokens 5 --repetitions 1"


def test_answers_and_timings_and_a_profile(tiny_checkpoint, tmp_path):
    """Of the model with adapters and with merged weights; in bfloat16, so their answers differ by its rounding."""
    rows, profile = tmp_path / "lora.csv", tmp_path / "profile.csv"
    command = [sys.executable, "-m", "benchmarks.serving.lora", "--model", str(tiny_checkpoint), "--device", "cpu"]
    command += ["--engines", "adapters", "merged", "--rank", "4", "--work", str(tmp_path), "--output", str(rows)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command += ["--profile", str(profile), *SIZES.split()]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=2 * START_SECONDS)
    assert not done.returncode, done.stderr

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
