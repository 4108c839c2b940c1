"""One HTML page with all plots: python -m benchmarks.report.html --results benchmarks/results --out report.html

The page needs no network and no script, fits wide and narrow windows, and is light or dark as the reader's system is.
Result files that are not there are named at its end.
"""

import argparse
from html import escape
from pathlib import Path

from benchmarks.report.catalogue import SECTIONS
from benchmarks.report.draw import DARK, LIGHT, svg
from benchmarks.report.plot import Plot
from benchmarks.report.surroundings import surroundings, values
from benchmarks.report.table import shown
from benchmarks.report.where import Row

STYLE = Path(__file__).with_name("style.css")
WIDTH = 4.8  # inches of a plot


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", required=True, type=Path, help="folder with the CSV files")
    parser.add_argument("--out", required=True, type=Path, help="HTML file to write")
    options = parser.parse_args(words)
    if not options.results.is_dir():
        parser.error(f"--results {options.results} is no folder; allowed: a folder laid out as benchmarks/results")
    text = page(options.results)
    options.out.write_text(text)
    print(f"{options.out}: {text.count('<figure')} plots")
    return 0


def page(results: Path) -> str:
    """The whole page."""
    sections, missing = [], []
    for title, plots in SECTIONS.items():
        drawn = [(plot, plot.rows(results)) for plot in plots]
        missing += [plot for plot, rows in drawn if not rows]
        figures = [figure(plot, rows, results) for plot, rows in drawn if rows]
        if figures:
            sections.append((title, "\n".join(figures)))
    links = "".join(f'<a href="#{anchor(title)}">{escape(title)}</a>' for title, _ in sections)
    body = "\n".join(
        f'<section id="{anchor(title)}"><h2>{escape(title)}</h2><div class="plots">{figures}</div></section>'
        for title, figures in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>sala-sglang: results</title><style>:root{{{LIGHT}}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{DARK}}}}}\n{STYLE.read_text()}</style></head>\n"
        "<body><header><h1>sala-sglang: results</h1><p>Every plot is drawn from the CSV files named below it. "
        f"</p><nav>{links}</nav></header>\n<main>{body}{not_there(missing)}</main></body></html>\n"
    )


def figure(plot: Plot, rows: list[Row], results: Path) -> str:
    """A plot with where its rows come from, and its figures as a table."""
    files = ", ".join(f"<code>{escape(source)}</code>" for source in values(plot.table.chosen(results), "source"))
    about = surroundings(plot.table.chosen(results), plot.table.shapes, plot.table.baseline).replace("`", "")
    return (
        f'<figure id="{anchor(plot.title)}"><h3>{escape(plot.title)}</h3>'
        f'<div role="img" aria-label="{escape(plot.title)}">{svg([plot], [rows], WIDTH)}</div>'
        f"<figcaption>{files}: {escape(about)}</figcaption>"
        f"<details><summary>Figures</summary>{figures(plot, rows)}</details></figure>"
    )


def figures(plot: Plot, rows: list[Row]) -> str:
    """Every point of a plot, lines beside each other."""
    points = plot.points(rows)
    places = list(dict.fromkeys(x for line in points.values() for x in line))
    head = "".join(f"<th>{escape(name)}</th>" for name in (plot.x.heading, *points))
    lines = ["".join(f"<td>{shown(line[x], 4) if x in line else ''}</td>" for line in points.values()) for x in places]
    body = "".join(f"<tr><th>{escape(plot.x.text(x))}</th>{line}</tr>" for x, line in zip(places, lines, strict=True))
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def not_there(missing: list[Plot]) -> str:
    """Plots without rows, and what would measure them."""
    lines = "".join(f"<li>{escape(plot.title)}: <code>{escape(plot.table.command)}</code></li>" for plot in missing)
    return f"<section><h2>No rows yet</h2><ul>{lines}</ul></section>" if missing else ""


def anchor(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


if __name__ == "__main__":
    raise SystemExit(main())
