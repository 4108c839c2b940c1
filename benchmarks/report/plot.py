"""A plot: which rows of a table, which columns as x, y and lines, and what kind of plot."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.surroundings import values
from benchmarks.report.table import Column, Table, is_number
from benchmarks.report.where import Row

Series = dict[str, dict[str, float]]  # label of a line: y by x


@dataclass(frozen=True)
class Plot:
    """``y`` over ``x`` of the rows of ``table``, a line, bar or layer for every value of ``series``.

    kind: "lines", "bars" beside each other, "stacked" or "ranked" (lying) bars, or "heat", where ``series``
    are the lines of the map.
    log: axes with a logarithmic scale, "", "x", "y" or "xy". label: what a value of ``series`` is called.
    """

    title: str
    table: Table
    x: Column
    y: Column
    series: Column | None = None
    kind: str = "lines"
    log: str = ""
    label: Callable[[str], str] = str

    def rows(self, results: Path) -> list[Row]:
        """Rows that have a point in the plot."""
        rows = self.table.prepared(self.table.chosen(results))
        return [row for row in rows if is_number(row.get(self.y.name, "")) and row.get(self.x.name)]

    def points(self, rows: list[Row]) -> Series:
        """y by x for every line; several rows at one point count as the table reduces them."""
        found: dict[str, dict[str, list[float]]] = {}
        several_gpus = len(values(rows, "gpu")) > 1
        for row in rows:
            name = self.label(row[self.series.name]) if self.series else self.y.heading
            name = f"{name}, {row['gpu']}" if several_gpus else name
            found.setdefault(name, {}).setdefault(row[self.x.name], []).append(float(row[self.y.name]) * self.y.scale)
        return {name: {x: self._one(y) for x, y in points.items()} for name, points in found.items()}

    def _one(self, found: list[float]) -> float:
        if len(found) > 1 and not self.table.reduce:
            raise ValueError(f"{self.title}: {len(found)} rows for one point; allowed: one, or a way to reduce them")
        return self.table.reduce(found) if self.table.reduce else found[0]


def engine(name: str) -> str:
    """What an engine of the result files is called in plots; others are called as the files call them."""
    known = {"plugin": "sala-sglang, bf16", "stock-dense": "stock SGLang, full attention", "qwen3-8b": "Qwen3-8B"}
    return known.get(name) or (f"sala-sglang, {name[7:].upper()}" if name.startswith("plugin-") else name)
