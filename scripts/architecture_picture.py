"""Draw docs/explanation/architecture.svg, the path of a request: python scripts/architecture_picture.py

SVG in place of a diagram language: it shows on GitHub, in the site and in an editor, and loads nothing.
"""

from html import escape
from pathlib import Path
from typing import NamedTuple

PICTURE = Path(__file__).parents[1] / "docs" / "explanation" / "architecture.svg"
WIDTH, HEIGHT = 760, 724  # pixels
LINE_HEIGHT, BASELINE = 18, 5
FILLS = {"ours": "#e3f1e6", "sglang": "#e8e8ee", "memory": "#fdf0d5", "operator": "#dfeaf8"}
LEGEND = "ours: this package", "sglang: SGLang", "memory: what is kept", "operator: sala_kernels"
CENTER, BOLD = 'text-anchor="middle"', ' font-weight="bold"'


class Box(NamedTuple):
    """A rectangle with lines of text, the first of them bold; sizes in pixels."""

    kind: str
    x: int
    y: int
    width: int
    height: int
    lines: tuple[str, ...]


class Arrow(NamedTuple):
    """A line through points in pixels, with a head at its end and text beside its start."""

    points: tuple[tuple[int, int], ...]
    text: str = ""
    dashed: bool = False


BOXES = (
    Box("sglang", 300, 16, 160, 34, ("OpenAI client",)),
    Box("ours", 240, 88, 280, 54, ("plugin/http_requests", "refuses bodies that cannot be served")),
    Box("sglang", 240, 180, 280, 54, ("SGLang", "scheduler, pools, sampler")),
    Box("ours", 16, 180, 188, 54, ("plugin/prefix_cache", "keys, chunks, snapshots")),
    Box("ours", 556, 180, 188, 54, ("plugin/scheduler_requests", "no token left to sample")),
    Box("ours", 240, 272, 280, 54, ("models/minicpm_sala", "32 layers")),
    Box("ours", 130, 372, 200, 34, ("attention/sparse_backend",)),
    Box("ours", 430, 372, 200, 34, ("attention/lightning_backend",)),
    Box("memory", 16, 444, 188, 72, ("attention/kv_pool", "pages of 64 tokens:", "K, V, compressed keys")),
    Box("memory", 556, 444, 188, 72, ("SGLang's pool of states", "one per request,", "and snapshots of them")),
    Box("operator", 32, 576, 116, 54, ("compress_keys", "keys → means")),
    Box("operator", 172, 576, 116, 54, ("select_blocks", "scores, top-k")),
    Box("operator", 312, 576, 124, 54, ("sparse_attention", "chosen blocks")),
    Box("operator", 464, 576, 132, 54, ("lightning_chunk", "qk_norm_rope")),
    Box("operator", 616, 576, 112, 54, ("lightning_step", "all in one")),
)
ARROWS = (
    Arrow(((380, 50), (380, 88)), "HTTP"),
    Arrow(((380, 142), (380, 180))),
    Arrow(((204, 207), (240, 207)), dashed=True),
    Arrow(((556, 207), (520, 207)), dashed=True),
    Arrow(((380, 234), (380, 272)), "batch"),
    Arrow(((290, 326), (230, 372)), "8 sparse layers"),
    Arrow(((470, 326), (530, 372)), "24 lightning layers"),
    Arrow(((150, 406), (110, 444))),
    Arrow(((610, 406), (650, 444))),
    Arrow(((230, 406), (230, 540), (90, 540), (90, 576))),
    Arrow(((148, 603), (172, 603))),
    Arrow(((288, 603), (312, 603))),
    Arrow(((530, 406), (530, 576))),
    Arrow(((530, 540), (672, 540), (672, 576))),
)
NOTES = (  # x, y, text
    (222, 200, "hooks"),
    (538, 200, "hooks"),
    (300, 570, "block ids"),
    (504, 500, "prefill"),
    (620, 534, "decode"),
    (380, 658, "kernels/sala_kernels: contract, reference, Triton, CUDA C++"),
)


def picture() -> str:
    """The drawing as SVG."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="13" '
            'font-family="Helvetica, Arial, sans-serif" fill="#222">',
            "<title>From a request to the operators of sala_kernels</title>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
            'orient="auto"><path d="M0 0 8 4 0 8z" fill="#555"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
            '<rect x="16" y="556" width="728" height="112" rx="8" fill="none" stroke="#88a"/>',
            *map(_arrow, ARROWS),
            *map(_box, BOXES),
            *(f'<text x="{x}" y="{y}" {CENTER} font-size="12">{escape(text)}</text>' for x, y, text in NOTES),
            *map(_legend, range(len(LEGEND)), LEGEND),
            "</svg>\n",
        ]
    )


def _box(box: Box) -> str:
    middle = box.x + box.width // 2
    first = box.y + box.height // 2 + BASELINE - LINE_HEIGHT * (len(box.lines) - 1) // 2
    texts = [
        f'<text x="{middle}" y="{first + LINE_HEIGHT * i}" {CENTER}{"" if i else BOLD}>{escape(line)}</text>'
        for i, line in enumerate(box.lines)
    ]
    return "\n".join([_rectangle(box), *texts])


def _rectangle(box: Box) -> str:
    size = f'width="{box.width}" height="{box.height}"'
    return f'<rect x="{box.x}" y="{box.y}" {size} rx="6" fill="{FILLS[box.kind]}" stroke="#778"/>'


def _arrow(arrow: Arrow) -> str:
    path = " ".join(f"{x},{y}" for x, y in arrow.points)
    dash = ' stroke-dasharray="4 3"' if arrow.dashed else ""
    line = f'<polyline points="{path}" fill="none" stroke="#555"{dash} marker-end="url(#head)"/>'
    (x, y), (next_x, next_y) = arrow.points[:2]
    x, y = (x + next_x) // 2, (y + next_y) // 2
    side = 'text-anchor="end"' if next_x < arrow.points[0][0] else 'text-anchor="start"'
    beside = -10 if next_x < arrow.points[0][0] else 10
    return line + (
        f'<text x="{x + beside}" y="{y + BASELINE}" {side}>{escape(arrow.text)}</text>' if arrow.text else ""
    )


def _legend(place: int, entry: str) -> str:
    kind, text = entry.split(": ")
    x, y = 32 + 184 * place, 688
    return f'<rect x="{x}" y="{y}" width="14" height="14" fill="{FILLS[kind]}" stroke="#778"/>' + (
        f'<text x="{x + 22}" y="{y + 12}">{escape(text)}</text>'
    )


if __name__ == "__main__":
    PICTURE.write_text(picture())
