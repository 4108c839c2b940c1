"""Where rows were measured, in one line below their table or plot."""

import os
from pathlib import Path

from benchmarks.report.rows import OPTION, RESULTS
from benchmarks.report.where import Row
from sala_sglang.config import SALAConfig

# Column of the rows: how its values are named. Of those in REQUIRED the line says so where no row has one.
FIELDS = {
    "gpu": "{}",
    "driver": "driver {}",
    "torch": "torch {}",
    "sglang": "SGLang {}",
    "triton": "Triton {}",
    "python": "Python {}",
    "dtype": "{}",
    "weights": "{}",
}
REQUIRED = {"gpu": "GPU", "weights": "weights", "commit": "commit"}
# Server option and its value: what is said of it.
OPTIONS = {
    ("disable_radix_cache", "True"): "prefix cache off",
    ("cuda_graph_backend_prefill", "disabled"): "prefill graphs off",
}


def values(rows: list[Row], column: str) -> list[str]:
    """The different values of a column, in order of their first appearance."""
    return list(dict.fromkeys(row[column] for row in rows if row.get(column)))


def surroundings(rows: list[Row], shapes: str, baseline: str) -> str:
    """GPU, versions, shapes, baseline, weights, options, commits and dates of these rows."""
    parts = [text.format(" and ".join(named)) for column, text in FIELDS.items() if (named := plain(rows, column))]
    parts += [shapes, f"baseline: {baseline}" if baseline else "no baseline", *options(rows), *commits(rows)]
    parts += [f"{name} not recorded" for column, name in REQUIRED.items() if not values(rows, column)]
    return "; ".join(part for part in parts if part)


def plain(rows: list[Row], column: str) -> list[str]:
    """Values as they are said: torch without its build, a machine without GPU as CPU, weights with their engines."""
    if column == "weights":
        return weights(rows)
    found = [value.split("+cu")[0] for value in values(rows, column)]
    if column == "gpu":
        found = ["CPU" if value == "none" else value for value in found]
    return list(dict.fromkeys(value for value in found if value != "none"))


def weights(rows: list[Row]) -> list[str]:
    """What weights there are, with the engines that have them where these differ."""
    found = {
        name: values([row for row in rows if row.get("weights") == name], "engine") for name in values(rows, "weights")
    }
    engines_differ = len({tuple(sorted(engines)) for engines in found.values()}) > 1
    named = {f"weights of {name}" if "/" in name else name: engines for name, engines in found.items()}
    return [f"{name} ({', '.join(engines)})" if engines_differ else name for name, engines in named.items()]


def options(rows: list[Row]) -> list[str]:
    said = [text for (name, value), text in OPTIONS.items() if values(rows, OPTION + name) == [value]]
    if chunks := values(rows, OPTION + "chunked_prefill_size"):
        said.append(f"chunks of {' and '.join(f'{int(chunk):,}' for chunk in chunks)} tokens")
    words = [value for value in values(rows, "options") if not value.startswith("{")]
    return said + [f"`{value}`" for value in words]


def commits(rows: list[Row]) -> list[str]:
    """Commits with their dates; dates alone where rows have no commit."""
    found: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row.get("date", "")):
        dates = found.setdefault(f"commit {row['commit']}" if row.get("commit") else "measured", [])
        if row.get("date") and row["date"] not in dates:
            dates.append(row["date"])
    found = {name: dates for name, dates in found.items() if dates or name != "measured"}
    return [", ".join(f"{name} ({', '.join(dates)})" if dates else name for name, dates in found.items())]


def sources(rows: list[Row], page: Path) -> str:
    """Links from ``page`` to the CSV files of these rows."""
    found = values(rows, "source")
    return ", ".join(f"[{source}]({os.path.relpath(RESULTS / source, page.parent)})" for source in found)


def full_size() -> str:
    """Shapes of the released model."""
    config = SALAConfig()
    return (
        f"{config.num_hidden_layers} layers, hidden {config.hidden_size}, {config.num_attention_heads} query heads, "
        f"{config.num_key_value_heads} KV heads of {config.head_dim}"
    )
