"""The plot of the README: time to first token and per further token over context, all engines on one GPU."""

from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from benchmarks.report import prepare
from benchmarks.report.draw import DARK, LIGHT, svg
from benchmarks.report.plot import Plot, engine
from benchmarks.report.rows import ROOT
from benchmarks.report.surroundings import surroundings
from benchmarks.report.table import Column
from benchmarks.report.tables.serving import SIDE_BY_SIDE
from benchmarks.report.where import Row

BACKGROUND = "#ffffff", "#0d1117"  # light, dark
ROWS = replace(SIDE_BY_SIDE, prepare=prepare.strongest("qwen3-8b"))
PROMPT = Column("prompt_tokens", "tokens of the prompt")
ENGINE = Column("engine", "")
FIRST = Plot(
    "Time to first token", ROWS, PROMPT, Column("ttft_s", "seconds"), ENGINE, log="xy", label=engine
)  # fmt: skip
FURTHER = Plot(
    "Time per further token", ROWS, PROMPT, Column("decode_ms_per_token", "ms"), ENGINE, log="x", label=engine
)


@dataclass(frozen=True)
class Overview:
    """The plots, their title, and the file that has them."""

    title: str
    path: Path
    plots: tuple[Plot, ...]

    def rows(self, results: Path) -> list[Row]:
        return self.plots[0].rows(results)

    def description(self, results: Path) -> str:
        """Every point in words: what the picture says to who cannot see it, and which rows it was drawn from."""
        said = []
        for plot in self.plots:
            for name, points in plot.points(plot.rows(results)).items():
                found = sorted((int(tokens), y) for tokens, y in points.items())
                listed = ", ".join(f"{y:g} at {tokens:,}" for tokens, y in found)
                said.append(f"{plot.title}, {plot.y.heading}, {name}: {listed}.")
        return " ".join([*said, surroundings(self.rows(results), ROWS.shapes, ROWS.baseline) + "."])


OVERVIEW = Overview(
    "Time to first token and per further token over context",
    ROOT / "docs" / "benchmarks" / "overview.svg",
    (FIRST, FURTHER),
)


def draw_overview(results: Path) -> None:
    """Write the picture, light or dark as the reader's system is; nothing where nothing was measured."""
    if OVERVIEW.rows(results):
        OVERVIEW.path.write_text(overview(results))


def overview(results: Path) -> str:
    """The picture as the text of a file."""
    text = svg(OVERVIEW.plots, [plot.rows(results) for plot in OVERVIEW.plots], 9.5)
    head = (
        f"<title>{OVERVIEW.title}</title><desc>{escape(OVERVIEW.description(results))}</desc>"
        f"<style>svg{{{LIGHT}--paper:{BACKGROUND[0]}}}"
        f"@media (prefers-color-scheme:dark){{svg{{{DARK}--paper:{BACKGROUND[1]}}}}}</style>"
        f'<rect width="100%" height="100%" rx="8" fill="var(--paper, {BACKGROUND[0]})"/>'
    )
    start = text.index(">", text.index("<svg ")) + 1
    return text[:start] + head + text[start:]
