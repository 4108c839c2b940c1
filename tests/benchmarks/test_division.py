"""What is computed for several GPUs: the committed rows and the page say what the script computes."""

import csv

import pytest

from benchmarks.report.rows import RESULTS, ROOT
from benchmarks.serving import division

PAGE = ROOT / "docs" / "explanation" / "context_parallelism.md"


def test_rows_are_what_the_script_computes():
    with open(RESULTS / "serving" / "division.csv") as file:
        assert list(csv.DictReader(file)) == division.rows()


def test_the_page_has_the_rows():
    cells = [[cell.strip() for cell in line.split("|")] for line in PAGE.read_text().splitlines()]
    for row in division.rows():
        where = 3 + division.PROMPTS.index(int(row["prompt_tokens"]))
        found = [line[where] for line in cells if line[1:3] == [row["form"], row["gpus"]]]
        assert found == [row["ttft_s"]], row


@pytest.mark.parametrize("prompt", division.PROMPTS)
def test_one_gpu_is_as_measured(prompt):
    measured = {8192: 0.2413, 131_072: 4.3789, 1_040_000: 44.4389}  # speed.csv, 2026-11-26, random weights, H100
    assert division.one(prompt, 1) / 1e3 == pytest.approx(measured[prompt], rel=0.03)


def test_the_slowest_stage_is_as_fast_as_whole_layers_allow():
    assert division.split([1, 1, 1, 6, 1, 1, 1, 1], 3) == [3, 1, 4]
