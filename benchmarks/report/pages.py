"""Write docs/benchmarks/results/ and the overview plot from the CSV files: python -m benchmarks.report.pages

The text stands in benchmarks/report/templates/. A line {{ NAME }} becomes the table of that name with its surroundings
below it, or the plot; inside a paragraph it becomes a figure, and a paragraph whose figure has no rows is left out.
"""

import os
import re
import textwrap
from pathlib import Path

from benchmarks.report.facts import FACTS
from benchmarks.report.overview import OVERVIEW, draw_overview
from benchmarks.report.rows import RESULTS, ROOT, read
from benchmarks.report.surroundings import sources, surroundings
from benchmarks.report.table import Table, markdown
from benchmarks.report.tables import TABLES
from benchmarks.report.tables.history import OTHERS

TEMPLATES = Path(__file__).parent / "templates"
PAGES = ROOT / "docs" / "benchmarks" / "results"
EVERYTHING_ELSE = "everything else that is superseded"
NAME = re.compile(r"\{\{ (.+?) \}\}")
MADE = "<!-- Made from the CSV files in benchmarks/results/ by python -m benchmarks.report.pages. -->\n"


def main() -> None:
    PAGES.mkdir(parents=True, exist_ok=True)
    for template in sorted(TEMPLATES.glob("*.md")):
        page = PAGES / template.name
        page.write_text(render(template.read_text(), page, RESULTS))
    draw_overview(RESULTS)


def render(template: str, page: Path, results: Path) -> str:
    """The text of ``page``. KeyError where the template names what there is not."""
    blocks = [_block(block, page, results) for block in template.strip().split("\n\n")]
    return MADE + "\n\n".join(block for block in blocks if block) + "\n"


def _block(block: str, page: Path, results: Path) -> str:
    alone = NAME.fullmatch(block)
    if alone and alone[1] in TABLES:
        return table(TABLES[alone[1]], page, results)
    if alone and alone[1] == EVERYTHING_ELSE:
        older = {name: which for name, which in OTHERS.items() if which.chosen(results)}
        return "\n\n".join(f"## {name}\n\n{table(which, page, results)}" for name, which in older.items())
    if alone and alone[1] == "overview":
        return f"![{OVERVIEW.title}]({os.path.relpath(OVERVIEW.path, page.parent)})" if OVERVIEW.rows(results) else ""
    found = {name: FACTS[name].text(results) for name in NAME.findall(block)}
    if None in found.values():
        return ""
    return NAME.sub(lambda match: found[match[1]] or "", block)


def table(which: Table, page: Path, results: Path) -> str:
    """A table and the line below it."""
    rows = which.chosen(results)
    if not rows:
        return "*None.*" if read(results, which.sources) else f"*No row yet* (`{which.command}`)."
    about = f"{surroundings(rows, which.shapes, which.baseline)}. Rows: {sources(rows, page)}, `{which.command}`."
    wrapped = textwrap.fill(about, 120, break_long_words=False, break_on_hyphens=False)
    return f"{markdown(which.cells(rows))}\n\n{wrapped}"


if __name__ == "__main__":
    main()
