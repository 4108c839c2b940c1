"""Time per sparse layer against the context: selection and attention beside a dense layer, as CSV and as a picture.

    python -m benchmarks.operators.crossover --output benchmarks/results/operators/crossover.csv
    python -m benchmarks.operators.crossover --plot benchmarks/results/operators/crossover.csv

The first command needs a GPU: for every context from 16,384 tokens to 1,048,576 a prefill chunk at its end and a decode
step of one request, released sizes, bfloat16, random inputs, picks of neighbours independent. ``--dry-run`` takes tiny
sizes on the CPU. The second one needs matplotlib, draws a PNG beside the CSV file, and prints where the lines cross.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from sala_kernels.layout import PagedBatch
from sala_kernels.select_blocks import select_blocks
from sala_kernels.sparse_attention import sparse_attention

from benchmarks.common import results_file
from benchmarks.operators.harness.inputs import Setting, block_lists
from benchmarks.operators.harness.sizes import RELEASED, TINY, Sizes
from benchmarks.operators.harness.timing import measure
from benchmarks.operators.run import cache_bytes

SELECT, ATTEND, DENSE = "select_blocks", "sparse_attention", "dense"
COLUMNS = "date", "phase", "rows", "context", "part", "median_us", "gpu", "torch"


def contexts(sizes: Sizes) -> list[int]:
    """Doubled from where every row of a chunk has blocks to choose from up to the longest context."""
    chunk, geometry, longest = sizes.chunk_tokens, sizes.geometry, sizes.contexts[1]
    doubled = [2 * chunk]
    while 2 * doubled[-1] <= longest:
        doubled.append(2 * doubled[-1])
    return [context for context in doubled if (context - chunk) // geometry.block_size >= geometry.selected_blocks]


def layer(context: int, rows: int, setting: Setting) -> dict[str, Callable[[], torch.Tensor]]:
    """The parts of a layer for the last ``rows`` tokens of one request of ``context`` tokens."""
    sizes = setting.sizes
    batch, pages = setting.paged([context], [rows])
    queries, pools = setting.queries(rows), (setting.kv_pool(pages), setting.kv_pool(pages))
    compressed = setting.compressed_pool(pages)
    positions = torch.arange(context - rows, context, device=setting.device)
    lists = block_lists(positions, sizes.kv_heads, sizes.geometry, None)
    everything = replace(batch, sparse_from=torch.full_like(batch.sparse_from, context))

    def attend(which: PagedBatch) -> torch.Tensor:
        return sparse_attention(queries, *pools, lists, which, sizes.geometry, sizes.scale)

    select = partial(select_blocks, queries, compressed, batch, sizes.geometry, sizes.scale)
    return {SELECT: select, ATTEND: partial(attend, batch), DENSE: partial(attend, everything)}


def measured(setting: Setting) -> Iterator[dict]:
    on_gpu = setting.device.type == "cuda"
    common = {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__}
    common |= {"gpu": torch.cuda.get_device_name() if on_gpu else "none"}
    for context in contexts(setting.sizes):
        for phase, rows in (("prefill", setting.sizes.chunk_tokens), ("decode", 1)):
            for part, call in layer(context, rows, setting).items():
                timing = measure([call], captured=phase == "decode", device=setting.device)
                row = {"phase": phase, "rows": rows, "context": context, "part": part}
                yield common | row | {"median_us": round(timing.median_us, 2)}


def lines(rows: list[dict], phase: str) -> dict[str, dict[int, float]]:
    """Milliseconds by context, of each part and of a whole sparse layer."""
    found: dict[str, dict[int, float]] = {SELECT: {}, ATTEND: {}, DENSE: {}}
    for row in rows:
        if row["phase"] == phase:
            found[row["part"]][int(row["context"])] = float(row["median_us"]) / 1e3
    both = {context: found[SELECT][context] + found[ATTEND][context] for context in found[SELECT]}
    return found | {"both": both}


def crossing(found: dict[str, dict[int, float]]) -> str:
    """From where on a sparse layer is faster than a dense one."""
    faster = [context for context, both in sorted(found["both"].items()) if both < found[DENSE][context]]
    return f"selection and attention are faster from {faster[0]:,} tokens on" if faster else "dense is always faster"


def draw(path: Path, rows: list[dict]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, phase in zip(figure.subplots(1, 2), ("prefill", "decode"), strict=True):
        for name, values in lines(rows, phase).items():
            axis.plot(list(values), list(values.values()), marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens of the context", ylabel="ms per layer", title=phase)
        axis.legend()
    figure.savefig(path, dpi=150)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--output", type=Path, help="measure; CSV file, rows are appended")
    action.add_argument("--plot", type=Path, metavar="CSV", help="draw what was measured")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    options = parser.parse_args(words)
    if options.plot:
        rows = results_file.read(options.plot)
        draw(options.plot.with_suffix(".png"), rows)
        for phase in ("prefill", "decode"):
            print(f"{phase}: {crossing(lines(rows, phase))}")
        return
    sizes, device = (TINY, torch.device("cpu")) if options.dry_run else (RELEASED, torch.device("cuda"))
    for row in measured(Setting(sizes, device, cache_bytes(device))):
        results_file.record(options.output, row, COLUMNS)


if __name__ == "__main__":
    main()
