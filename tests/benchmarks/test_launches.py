"""The host time of launches: every operator of prefill is there, and time is measured before the device has ended."""

import csv

from benchmarks.operators.harness.sizes import RELEASED
from benchmarks.operators.launches import COLUMNS, ROWS, main, prefill_cases

OPERATORS = {"select_blocks", "sparse_attention", "compress_keys", "lightning_chunk", "qk_norm_rope", "gated_norm"}
OPERATORS |= {"scaled_add_norm", "sigmoid_gate"}


def test_every_operator_of_prefill_has_a_case_for_every_number_of_rows():
    for rows in ROWS:
        cases = prefill_cases(RELEASED, rows)
        assert {case.operator for case in cases} == OPERATORS
        assert all(str(rows) in case.name for case in cases)


def test_dry_run(tmp_path):
    output = tmp_path / "launches.csv"
    main(["--output", str(output), "--dry-run", "--commit", "abc"])
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["operator"] for row in rows} == OPERATORS
    assert all(tuple(row) == COLUMNS and float(row["host_us"]) > 0 and row["commit"] == "abc" for row in rows)
