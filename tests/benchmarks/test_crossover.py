"""The comparison of a sparse with a dense layer: a run at tiny sizes, its picture, and where the lines cross."""

import csv

from benchmarks.operators.crossover import ATTEND, DENSE, SELECT, contexts, crossing, lines, main
from benchmarks.operators.harness.sizes import RELEASED, TINY


def row(context: int, part: str, microseconds: float) -> dict:
    return {"phase": "prefill", "context": str(context), "part": part, "median_us": str(microseconds)}


def test_contexts_double_to_the_longest():
    assert contexts(RELEASED) == [2**power for power in range(14, 21)]


def test_lines_cross_where_both_parts_are_faster():
    rows = [row(100, SELECT, 2e3), row(100, ATTEND, 3e3), row(100, DENSE, 4e3)]
    rows += [row(200, SELECT, 3e3), row(200, ATTEND, 3e3), row(200, DENSE, 8e3)]
    found = lines(rows, "prefill")
    assert found["both"] == {100: 5.0, 200: 6.0}
    assert crossing(found) == "selection and attention are faster from 200 tokens on"
    assert crossing(lines(rows[:3], "prefill")) == "dense is always faster"


def test_run_and_picture(tmp_path, capsys):
    path = tmp_path / "crossover.csv"
    main(["--dry-run", "--output", str(path)])
    measured = list(csv.DictReader(path.open()))
    assert len(measured) == 6 * len(contexts(TINY))
    assert all(float(one["median_us"]) > 0 for one in measured)
    main(["--plot", str(path)])
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert "prefill: " in capsys.readouterr().out
