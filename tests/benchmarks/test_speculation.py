"""The benchmark of speculation without a GPU, on a model with two layers and on sala-tiny."""

import sys

import pytest

from benchmarks.common import results_file
from benchmarks.serving import speculation
from testing.draft_models import make_head
from tests.benchmarks import forked_workers

SIZES = "--rows 2 --lengths 70 --batch 2 --batch-length 20 --new-tokens 12 --repetitions 1"


@pytest.fixture
def run(tiny_checkpoint, tmp_path, monkeypatch):
    """A function from further arguments to the rows of a run that succeeds."""

    def run_with(*words: str) -> list[dict]:
        rows = tmp_path / "speculation.csv"
        shared = ["--model", str(tiny_checkpoint), "--device", "cpu", "--output", str(rows), *SIZES.split()]
        monkeypatch.setattr(sys, "argv", ["", *shared, *words])
        monkeypatch.setattr(speculation, "subprocess", forked_workers)
        assert speculation.main() == 0
        return results_file.read(rows)

    return run_with


def test_drafts_of_a_head(run, tiny_checkpoint, tmp_path):
    head = make_head(tiny_checkpoint, tmp_path / "head", [0, 2, 4])
    found = run("--engines", "2", "text", "--head", str(head))
    assert {row["drafts"] for row in found} == {"EAGLE3 head"}
    assert [row["accept_length"] for row in found[:2]] == ["2", "2"]
    assert all(1 <= float(row["accept_length"]) <= 2 for row in found[2:])


def test_steps_by_accept_length_and_what_text_accepts(run):
    found = run("--engines", "plain", "2", "text")
    kinds = [(row["engine"], row["rows_per_step"], row["accept_length"], row["requests"]) for row in found[:4]]
    assert kinds == [(*engine, n) for engine in (("plain", "1", "1"), ("verifies", "2", "2")) for n in ("1", "2")]
    assert all(float(row["decode_ms_per_token"]) > 0 and float(row["times_plain"]) > 0 for row in found[:4])
    repeating, question = found[4:]
    assert float(repeating["accept_length"]) > 1 and float(question["accept_length"]) >= 1
