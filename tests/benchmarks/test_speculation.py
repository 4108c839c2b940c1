"""The benchmark of speculation without a GPU, on a model with two layers and on sala-tiny."""

import sys

from benchmarks.common import results_file
from benchmarks.serving import speculation
from tests.benchmarks import forked_workers

SIZES = "--engines plain 2 text --rows 2 --lengths 70 --batch 2 --batch-length 20 --new-tokens 12 --repetitions 1"


def test_steps_by_accept_length_and_what_text_accepts(tiny_checkpoint, tmp_path, monkeypatch):
    rows = tmp_path / "speculation.csv"
    words = ["--model", str(tiny_checkpoint), "--device", "cpu", "--output", str(rows), *SIZES.split()]
    monkeypatch.setattr(sys, "argv", ["", *words])
    monkeypatch.setattr(speculation, "subprocess", forked_workers)
    assert speculation.main() == 0

    found = results_file.read(rows)
    kinds = [(row["engine"], row["rows_per_step"], row["accept_length"], row["requests"]) for row in found[:4]]
    assert kinds == [(*engine, n) for engine in (("plain", "1", "1"), ("verifies", "2", "2")) for n in ("1", "2")]
    assert all(float(row["decode_ms_per_token"]) > 0 and float(row["times_plain"]) > 0 for row in found[:4])
    repeating, question = found[4:]
    assert float(repeating["accept_length"]) > 1 and float(question["accept_length"]) >= 1
