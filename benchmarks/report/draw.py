"""Plots as SVG whose colours are CSS variables, so that one picture fits light and dark pages."""

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.report.plot import Plot, Series
from benchmarks.report.table import is_number
from benchmarks.report.where import Row

# What matplotlib draws in these colours takes them from the page: colour, CSS variable, light, dark.
INK, GRID = "#010203", "#040506"
PALETTE = (
    ("#0a0b01", "#0969da", "#58a6ff"),
    ("#0a0b02", "#1a7f37", "#3fb950"),
    ("#0a0b03", "#bc4c00", "#f0883e"),
    ("#0a0b04", "#8250df", "#bc8cff"),
    ("#0a0b05", "#bf3989", "#ff7bc0"),
    ("#0a0b06", "#7d6a00", "#d8b619"),
    ("#0a0b07", "#0a7a85", "#39c5cf"),
    ("#0a0b08", "#57606a", "#a8b1bb"),
    ("#0a0b09", "#0a3069", "#a5d6ff"),
    ("#0a0b0a", "#82071e", "#ffaba8"),
    ("#0a0b0b", "#4ac26b", "#aff5b4"),
    ("#0a0b0c", "#953800", "#ffdfb6"),
)
COLOURS = (
    (INK, "ink", "#1f2328", "#e6edf3"),
    (GRID, "grid", "#d0d7de", "#3d444d"),
    *((drawn, f"series-{number}", light, dark) for number, (drawn, light, dark) in enumerate(PALETTE)),
)
LIGHT = "".join(f"--{name}:{light};" for _, name, light, _ in COLOURS)
DARK = "".join(f"--{name}:{dark};" for _, name, _, dark in COLOURS)
MARKERS = "osD^vP*X<>ph"
NEARLY = 1.02  # 1,040,000 tokens are as good as 1M
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.prop_cycle": cycler(color=[drawn for drawn, *_ in PALETTE]),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def svg(plots: Sequence[Plot], rows: Sequence[list[Row]], width: float) -> str:
    """These plots beside each other, ``width`` inches in all, as an SVG element; a legend below serves all of them."""
    name = "-".join(plot.title for plot in plots)
    series = [plot.points(its_rows) for plot, its_rows in zip(plots, rows, strict=True)]
    columns, lines_of_legend = _legend(list(series[0]), width)
    bars_above = max(len(_places(points)) for points in series) if plots[0].kind == "ranked" else 0
    height = max(0.4 * bars_above + 0.7, 3.3) + 0.2 * lines_of_legend
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        for axis, plot, points in zip(figure.subplots(1, len(plots), squeeze=False)[0], plots, series, strict=True):
            KINDS[plot.kind](axis, plot, points)
            if len(plots) > 1:
                axis.set_title(plot.title)
        if lines_of_legend:
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_pages(file.getvalue(), re.sub(r"\W+", "-", name))


def _legend(labels: list[str], width: float) -> tuple[int, int]:
    """Columns and lines of a legend; no lines where there is nothing to tell apart."""
    room = width * 12  # letters
    if sum(len(label) + 6 for label in labels) <= room:
        return len(labels), min(1, len(labels) - 1)
    columns = max(1, int(room // (max(map(len, labels)) + 6)))
    return columns, math.ceil(len(labels) / columns)


def _for_pages(text: str, name: str) -> str:
    """The svg element alone, with CSS variables, and names of its parts that no other plot on the page has."""
    text = text[text.index("<svg ") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)
    text = re.sub(r'(id="|#)((?:m|p|C)[\da-f]{8,})', rf"\g<1>{name}-\2", text)
    for drawn, variable, light, _ in COLOURS:
        text = text.replace(drawn, f"var(--{variable}, {light})")
    return text


def lines(axis: Axes, plot: Plot, series: Series) -> None:
    for number, (name, points) in enumerate(series.items()):
        found = sorted((float(x) * plot.x.scale, y) for x, y in points.items())
        marker = MARKERS[number % len(MARKERS)] if len(found) < 30 else None
        axis.plot([x for x, _ in found], [y for _, y in found], marker=marker, markersize=4.5, label=name)
    _scales(axis, plot, [float(x) * plot.x.scale for points in series.values() for x in points])


def _scales(axis: Axes, plot: Plot, xs: list[float]) -> None:
    axis.set(xlabel=plot.x.heading, ylabel=plot.y.heading)
    if "y" in plot.log:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    else:
        axis.set_ylim(bottom=0)
    if "x" in plot.log:
        axis.set_xscale("log", base=2)
        powers = [2.0**power for power in range(math.floor(math.log2(min(xs))), math.ceil(math.log2(max(xs))) + 1)]
        inside = [power for power in powers if min(xs) <= power <= max(xs) * NEARLY]
        axis.xaxis.set_major_locator(FixedLocator(inside[:: math.ceil(len(inside) / 6)]))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tokens(value)))


def tokens(value: float) -> str:
    """8192 -> 8K, 1048576 -> 1M."""
    for unit, size in (("M", 2**20), ("K", 2**10)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def bars(axis: Axes, plot: Plot, series: Series) -> None:
    """Bars beside each other at every x."""
    places = _places(series)
    width = 0.8 / len(series)
    for number, (name, points) in enumerate(series.items()):
        at = [places.index(x) - 0.4 + width * (number + 0.5) for x in points]
        drawn = axis.bar(at, list(points.values()), width * 0.92, label=name)
        axis.bar_label(drawn, [f"{y:,.3g}" for y in points.values()], padding=2, fontsize=8)
    _categories(axis, plot, places)


def stacked(axis: Axes, plot: Plot, series: Series) -> None:
    """One bar at every x, with a layer per line."""
    places = _places(series)
    height = [0.0] * len(places)
    for name, points in series.items():
        here = [points.get(place, 0.0) for place in places]
        axis.bar(range(len(places)), here, 0.7, bottom=height, label=name)
        height = [below + y for below, y in zip(height, here, strict=True)]
    _categories(axis, plot, places)


def heat(axis: Axes, plot: Plot, series: Series) -> None:
    """A map of cells, the higher the better, with their values; the lines of the plot are its lines."""
    places = _places(series)
    cells = [[points.get(place, math.nan) for place in places] for points in series.values()]
    axis.pcolormesh(cells, cmap="RdYlGn", vmin=0, vmax=100, edgecolors="none")
    for row, line in enumerate(cells):
        for column, value in enumerate(line):
            text = "" if math.isnan(value) else f"{value:.0f}"
            dark = value < 15 or value > 85
            at = column + 0.5, row + 0.5
            axis.text(*at, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    axis.set_xticks([at + 0.5 for at in range(len(places))], [_place(place) for place in places])
    axis.set_yticks([at + 0.5 for at in range(len(series))], [f"{float(name):.0%}" for name in series])
    axis.invert_yaxis()
    axis.grid(False)
    axis.set(xlabel=plot.x.heading, ylabel=plot.series.heading if plot.series else "")


def _places(series: Series) -> list[str]:
    found = list(dict.fromkeys(x for points in series.values() for x in points))
    return sorted(found, key=float) if all(map(is_number, found)) else found


def _place(name: str) -> str:
    return tokens(float(name)) if is_number(name) else name


def _categories(axis: Axes, plot: Plot, places: list[str]) -> None:
    axis.set_xticks(range(len(places)), [_place(place) for place in places])
    axis.set(xlabel=plot.x.heading, ylabel=plot.y.heading)
    axis.grid(False, axis="x")
    if "y" in plot.log:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def ranked(axis: Axes, plot: Plot, series: Series) -> None:
    """Bars that lie, with their names above them."""
    places = _places(series)
    height = 0.55 / len(series)
    for number, (name, points) in enumerate(series.items()):
        at = [places.index(x) + height * (number + 0.5) for x in points]
        drawn = axis.barh(at, list(points.values()), height * 0.9, label=name)
        axis.bar_label(drawn, [f"{y:,.3g}" for y in points.values()], padding=2, fontsize=8.5)
    for number, place in enumerate(places):
        axis.text(0, number - 0.06, place, va="bottom", fontsize=9.5)
    axis.set(xlabel=plot.y.heading, ylim=(len(places) - 0.3, -0.5), yticks=[])
    axis.spines.left.set_visible(False)
    axis.grid(False, axis="y")
    axis.margins(x=0.12)


KINDS = {"lines": lines, "bars": bars, "stacked": stacked, "heat": heat, "ranked": ranked}
