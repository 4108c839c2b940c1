"""The picture of an evaluation: a panel per task, depth over length."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from sala_sglang.evaluation.run import Cell, short


def draw(path: Path, model: str, cells: list[Cell]) -> None:
    """Write a PNG: green where everything was found, red where nothing was, grey where the server refused."""
    tasks = list(dict.fromkeys(one.task for one in cells))
    lengths = sorted({one.length for one in cells})
    depths = sorted({one.depth for one in cells})
    size = 2 + 0.75 * len(lengths), 1.2 + len(tasks) * (0.8 + 0.35 * len(depths))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(tasks), 1, squeeze=False)
    colours = matplotlib.colormaps["RdYlGn"].with_extremes(bad="lightgrey")
    for axis, task in zip(axes[:, 0], tasks, strict=True):
        found = {(one.depth, one.length): one.score for one in cells if one.task == task}
        rows = [[found[depth, length] for length in lengths] for depth in depths]
        values = [[float("nan") if score is None else 100 * score for score in row] for row in rows]
        image = axis.imshow(values, cmap=colours, vmin=0, vmax=100, aspect="auto")
        axis.set_title(task, fontsize=9)
        axis.set_xticks(range(len(lengths)), [short(length) for length in lengths], fontsize=8)
        axis.set_yticks(range(len(depths)), [percent(depth) for depth in depths], fontsize=8)
        axis.set_ylabel("depth", fontsize=8)
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                text = "not served" if value != value else f"{value:.0f}"
                axis.text(x, y, text, ha="center", va="center", fontsize=5 if value != value else 7)
    axes[-1, 0].set_xlabel("tokens of prompt and answer", fontsize=8)
    figure.suptitle(f"{model}: numbers found, %", fontsize=10)
    figure.colorbar(image, ax=axes)
    figure.savefig(path, dpi=150)


def percent(depth: float) -> str:
    """0.5 -> 50 %, 0.125 -> 12.5 %."""
    return f"{100 * depth:g} %"
