"""Rows of result files, completed, and which of them newer ones supersede."""

import json
from pathlib import Path

from benchmarks.common import results_file
from benchmarks.report.unrecorded import RENAMED, UNRECORDED
from benchmarks.report.where import Row, matches

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
OPTION = "option "  # begins the columns that server options are read into
# What weights that are random anyway are like, by SGLang's option load_format.
RANDOM = {"auto": "random weights, of usual size", "dummy": "random weights, within ±0.001"}


def read(results: Path, sources: tuple[str, ...]) -> list[Row]:
    """Rows of these files below ``results``, one file after the other; of a file that is not there, none.

    Every row has its file in the column ``source``, its server options in columns of their own, and what its file was
    made too early to say.
    """
    return [complete(source, row) for source in sources for row in results_file.read(results / source)]


def complete(source: str, row: Row) -> Row:
    options = row.get("options", "")
    named = json.loads(options) if options.startswith("{") else {}
    row |= {"source": source} | {OPTION + name: str(value) for name, value in named.items()}
    if row.get("weights") == "random":
        row["weights"] = RANDOM.get(row.get(OPTION + "load_format", ""), "random weights")
    if row.get("operator") in RENAMED:
        row["operator"] = RENAMED[row["operator"]]
    fitting = (values for file, where, values in UNRECORDED if file == source and matches(row, where))
    return dict(next(fitting, {})) | {name: value for name, value in row.items() if value}


def by_age(rows: list[Row], key: tuple[str, ...]) -> tuple[list[Row], list[Row]]:
    """Rows that are the newest of what they measure, and those that a newer one supersedes.

    ``key`` has the columns that say what is measured; different GPUs never supersede each other. Of rows of one day the
    one that was written last is the newest.
    """
    in_order = sorted(rows, key=lambda row: row.get("date", ""))
    newest = {tuple(row.get(column, "") for column in ("gpu", *key)): id(row) for row in in_order}
    kept = set(newest.values())
    return [row for row in rows if id(row) in kept], [row for row in rows if id(row) not in kept]
