"""The benchmark of speculation without a GPU, on a model with two layers and on sala-tiny."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.common import results_file
from testing.server import START_SECONDS

ROOT = Path(__file__).parents[2]
SIZES = "--engines plain 2 text --rows 2 --lengths 70 --batch 2 --batch-length 20 --new-tokens 12 --repetitions 1"


def test_steps_by_accept_length_and_what_text_accepts(tiny_checkpoint, tmp_path):
    rows = tmp_path / "speculation.csv"
    command = [sys.executable, "-m", "benchmarks.serving.speculation", "--model", str(tiny_checkpoint)]
    command += ["--device", "cpu", "--output", str(rows), *SIZES.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=2 * START_SECONDS)
    assert not done.returncode, done.stderr

    found = results_file.read(rows)
    kinds = [(row["engine"], row["rows_per_step"], row["accept_length"], row["requests"]) for row in found[:4]]
    assert kinds == [(*engine, n) for engine in (("plain", "1", "1"), ("verifies", "2", "2")) for n in ("1", "2")]
    assert all(float(row["decode_ms_per_token"]) > 0 and float(row["times_plain"]) > 0 for row in found[:4])
    repeating, question = found[4:]
    assert float(repeating["accept_length"]) > 1 and float(question["accept_length"]) >= 1
