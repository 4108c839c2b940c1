"""A table of a page: which rows of which files, in which columns."""

import math
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.report.rows import by_age, read
from benchmarks.report.surroundings import values
from benchmarks.report.where import Row, Where, matches

NUMBER = re.compile(r"-?[\d,]*\.?\d*")


@dataclass(frozen=True)
class Column:
    """A column of the rows under a heading.

    Numbers are shown times ``scale`` with so many significant ``digits`` (None: all); ``verbatim``: as they are.
    """

    name: str
    heading: str
    digits: int | None = None
    scale: float = 1.0
    verbatim: bool = False

    def text(self, value: str) -> str:
        if self.verbatim or not is_number(value):
            return value
        return shown(float(value) * self.scale, self.digits, decimals(value) if self.scale == 1 else None)


@dataclass(frozen=True)
class Table:
    """Rows of ``sources`` where ``where`` holds: a line for values of ``down``, side by side by those of ``across``.

    key: columns that say what a row measures; then only the newest row of each counts, or, with ``superseded``, all
    others. Without a key all rows count. show: which of these are shown. prepare: makes the rows of the table of them.
    reduce: one number of several rows that fall into one cell; without it they are an error.
    shapes and baseline: what the line below the table says of them. command: what measures the rows.
    """

    sources: tuple[str, ...]
    down: tuple[Column, ...]
    values: tuple[Column, ...]
    shapes: str
    baseline: str
    command: str
    across: tuple[Column, ...] = ()
    where: Where = field(default_factory=dict)
    show: Where = field(default_factory=dict)
    key: tuple[str, ...] = ()
    superseded: bool = False
    prepare: Callable[[list[Row]], list[Row]] | None = None
    reduce: Callable[[list[float]], float] | None = None

    def chosen(self, results: Path) -> list[Row]:
        """The rows that the table is made of."""
        rows = [row for row in read(results, self.sources) if matches(row, self.where)]
        rows = by_age(rows, self.key)[self.superseded] if self.key else rows
        return [row for row in rows if matches(row, self.show)]

    def prepared(self, rows: list[Row]) -> list[Row]:
        return self.prepare(rows) if self.prepare else rows

    def cells(self, chosen: list[Row]) -> list[list[str]]:
        """Headings, then the lines. ValueError where two rows fall into one cell."""
        rows = self.prepared(chosen)
        down = self.down
        if len(values(rows, "gpu")) > 1:
            down = (Column("gpu", "GPU"), *down)
        groups = _distinct(rows, self.across)
        spread = [(group, value) for group in groups for value in self.values]
        spread = [(group, value) for group, value in spread if _any(_in(rows, self.across, group), value)]
        lines = [[column.heading for column in down]]
        lines[0] += [self._heading(group, value) for group, value in spread]
        for place in _distinct(rows, down):
            here = _in(rows, down, place)
            cells = [self._cell(_in(here, self.across, group), value) for group, value in spread]
            if any(cells):
                lines.append([column.text(value) for column, value in zip(down, place, strict=True)] + cells)
        return lines

    def _heading(self, group: tuple[str, ...], value: Column) -> str:
        columns = zip(self.across, group, strict=True)
        names = [f"{column.heading} {column.text(name)}".strip() for column, name in columns]
        one = len(self.values) == 1 and names
        return " ".join(names) if one else ", ".join([*([" ".join(names)] if names else []), value.heading])

    def _cell(self, rows: list[Row], column: Column) -> str:
        found = [row[column.name] for row in rows if row.get(column.name)]
        if len(found) < 2:
            return column.text(found[0]) if found else ""
        if not self.reduce:
            raise ValueError(f"{column.name} has {', '.join(found)} in one cell; allowed: one value, or reduce")
        return column.text(str(self.reduce([float(value) for value in found])))


def _distinct(rows: list[Row], columns: tuple[Column, ...]) -> list[tuple[str, ...]]:
    """Values of these columns: numbers in order, others by their first appearance."""
    found = list(dict.fromkeys(tuple(row.get(column.name, "") for column in columns) for row in rows))
    ranks = []
    for place in range(len(columns)):
        seen = list(dict.fromkeys(one[place] for one in found))
        seen = sorted(seen, key=float) if all(map(is_number, seen)) else seen
        ranks.append({value: rank for rank, value in enumerate(seen)})
    return sorted(found, key=lambda one: [ranks[place][value] for place, value in enumerate(one)])


def _in(rows: list[Row], columns: tuple[Column, ...], place: tuple[str, ...]) -> list[Row]:
    return [row for row in rows if tuple(row.get(column.name, "") for column in columns) == place]


def _any(rows: list[Row], column: Column) -> bool:
    return any(row.get(column.name) for row in rows)


def is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def decimals(value: str) -> int | None:
    """Digits after the point; None for 1e-05 and the like."""
    return None if "e" in value else len(value.partition(".")[2])


def shown(value: float, digits: int | None = None, most: int | None = None) -> str:
    """A number with thousands separators and so many significant digits, at most ``most`` of them after the point.

    Digits before the point are never rounded away.
    """
    if digits is None:
        return f"{value:,.10g}" if value % 1 else f"{value:,.0f}"
    size = math.floor(math.log10(abs(value))) + 1 if value else 1
    places = max(0, digits - size)
    return f"{value:,.{places if most is None else min(places, most)}f}"


def markdown(lines: list[list[str]]) -> str:
    """A table of these lines, the first of which has the headings; numbers stand on the right."""
    columns = list(zip(*lines[1:], strict=True))
    numeric = [all(NUMBER.fullmatch(cell) for cell in column) for column in columns]
    rule = ["---:" if right else "---" for right in numeric]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


median = statistics.median
mean = statistics.fmean
