"""Time of every operator on a GPU beside the libraries that could serve in its place, as CSV rows.

    python benchmarks/kernels.py --output benchmarks/results/kernels.csv

Released sizes, bfloat16, random inputs; medians over calls that rotate through inputs larger than the L2 cache. A peer
that is not installed is left out. The bytes and operations behind a row are those that the operator cannot avoid.
"""

import argparse
import csv
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from sala_kernels.compress_keys import compress_keys
from sala_kernels.gated_norm import gated_norm
from sala_kernels.layout import PagedBatch, SparseGeometry
from sala_kernels.lightning import lightning_chunk, lightning_recurrent
from sala_kernels.qk_norm_rope import qk_norm_rope
from sala_kernels.scaled_add_norm import scaled_add_norm
from sala_kernels.select_blocks import select_blocks
from sala_kernels.sparse_attention import sparse_attention

GEOMETRY = SparseGeometry()
HQ, HKV, D, WIDTH = 32, 2, 128, 4096
SCALE = D**-0.5
ROTATION = 4  # input sets; each is larger than the cache or read as a whole
CALLS = 20
Call = Callable[[], object]
Case = tuple[str, str, list[Call]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="CSV file; rows are appended")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    torch.manual_seed(0)
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "python": platform.python_version(),
    }
    new = not options.output.exists()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("a", newline="") as file:
        writer = csv.DictWriter(file, ["operator", "case", "median_us", *about])
        if new:
            writer.writeheader()
        for make in (sparse_cases, lightning_cases, row_cases):
            for operator, case, calls in make(options.only):
                median = median_us(calls)
                writer.writerow({"operator": operator, "case": case, "median_us": f"{median:.1f}", **about})
                file.flush()
                print(f"{operator:28} {case:46} {median:10.1f} us", flush=True)


def median_us(calls: list[Call]) -> float:
    """Median time of a call in microseconds, between events on the device, after one warm-up of each."""
    for call in calls:
        call()
    times = []
    for index in range(CALLS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Work ahead of the call hides the host's launch time.
        torch.cuda._sleep(200_000)
        start.record()
        calls[index % len(calls)]()
        end.record()
        torch.cuda.synchronize()
        times.append(1000 * start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


def paged(lengths: list[int], rows: list[int], sparse: bool = True) -> tuple[PagedBatch, int]:
    """Requests over shuffled pages; returns the batch and the number of pages."""
    block, blocks = GEOMETRY.block_size, -(-max(lengths) // GEOMETRY.block_size)
    pages = 1 + torch.randperm(len(lengths) * blocks, device="cuda").view(len(lengths), blocks)
    slots = (pages[..., None] * block + torch.arange(block, device="cuda")).flatten(1).int()
    batch = PagedBatch(
        query_start=torch.tensor([0, *rows], device="cuda").cumsum(0).int(),
        kv_lens=torch.tensor(lengths, dtype=torch.int32, device="cuda"),
        sparse_from=torch.full((len(lengths),), 0 if sparse else max(lengths), dtype=torch.int32, device="cuda"),
        request_rows=torch.arange(len(lengths), device="cuda"),
        token_slots=slots,
        max_query_tokens=max(rows),
        max_kv_tokens=max(lengths),
    )
    return batch, len(lengths) * blocks + 1


def sparse_cases(only: str) -> Iterator[Case]:
    mixed = [4096 + 4096 * i for i in range(32)]
    cases = {
        "prefill 8192 of 8192": ([8192], [8192], True),
        "prefill 8192 of 8192, dense": ([8192], [8192], False),
        "prefill 8192 of 131072": ([131_072], [8192], True),
        "decode 1 of 131072": ([131_072], [1], True),
        "decode 32 of 4096 to 131072": (mixed, [1] * 32, True),
    }
    for case, (lengths, rows, sparse) in cases.items():
        if only in case:
            yield from sparse_case(case, lengths, rows, sparse)


def sparse_case(case: str, lengths: list[int], rows: list[int], sparse: bool) -> Iterator[Case]:
    batch, pages = paged(lengths, rows, sparse)
    keys, values = (random(pages * GEOMETRY.block_size, HKV, D) for _ in range(2))
    compressed = random(pages, HKV, GEOMETRY.page_rows, D)
    queries = [random(sum(rows), HQ, D) for _ in range(ROTATION)]
    blocks = [select_blocks(q, compressed, batch, GEOMETRY, SCALE) for q in queries]
    pairs = list(zip(queries, blocks, strict=True))

    def attend(pair):
        return sparse_attention(pair[0], keys, values, pair[1], batch, GEOMETRY, SCALE)

    yield "compress_keys", case, [lambda: compress_keys(keys, compressed, batch, GEOMETRY)]
    yield "select_blocks", case, [lambda q=q: select_blocks(q, compressed, batch, GEOMETRY, SCALE) for q in queries]
    yield "sparse_attention", case, [lambda pair=pair: attend(pair) for pair in pairs]
    if not sparse:
        yield from dense_peers(case, lengths[0], queries, keys, values, batch)


def dense_peers(case, length, queries, keys, values, batch) -> Iterator[Case]:
    """Libraries for the rows that attend to everything, on the same pages."""
    try:
        from flashinfer import BatchPrefillWithPagedKVCacheWrapper
    except ImportError:
        return
    workspace = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    wrapper = BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD")
    pages = batch.token_slots[0, :: GEOMETRY.block_size] // GEOMETRY.block_size
    starts = torch.tensor([0, len(pages)], dtype=torch.int32)
    wrapper.plan(
        torch.tensor([0, length], dtype=torch.int32),
        starts,
        pages,
        torch.tensor([GEOMETRY.block_size], dtype=torch.int32),
        HQ,
        HKV,
        D,
        GEOMETRY.block_size,
        causal=True,
        q_data_type=torch.bfloat16,
    )
    pool = tuple(x.view(-1, GEOMETRY.block_size, HKV, D) for x in (keys, values))
    yield "flashinfer paged prefill", case, [lambda q=q: wrapper.run(q, pool) for q in queries]


def lightning_cases(only: str) -> Iterator[Case]:
    decay = -torch.rand(HQ, device="cuda")
    for case, rows in {"prefill 1 x 8192": [8192], "prefill 16 x 512": [512] * 16}.items():
        if only in case:
            yield from chunk_case(case, rows, decay)
    for requests in (1, 32, 128):
        if only in f"decode {requests}":
            yield recurrent_case(requests, decay)


def state_pool(requests: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States, the requests' slots, and no snapshot for anybody."""
    slots = torch.arange(1, requests + 1, dtype=torch.int32, device="cuda")
    return random(requests + 1, HQ, D, D, dtype=torch.float32), slots, torch.full_like(slots, -1)


def chunk_case(case: str, rows: list[int], decay: torch.Tensor) -> Iterator[Case]:
    states, slots, nowhere = state_pool(len(rows))
    start = torch.tensor([0, *rows], device="cuda").cumsum(0).int()
    inputs = [[random(sum(rows), HQ, D) for _ in range(3)] for _ in range(ROTATION)]
    rest = (states, slots, start, nowhere, torch.zeros_like(slots), decay, SCALE)
    yield "lightning_chunk", case, [lambda x=x: lightning_chunk(*x, *rest) for x in inputs]
    yield from chunk_peer(case, inputs, states[1:], start, decay)


def recurrent_case(requests: int, decay: torch.Tensor) -> Case:
    states, slots, nowhere = state_pool(requests)
    inputs = [[random(requests, HQ, D) for _ in range(3)] for _ in range(ROTATION)]
    rest = (states, slots, nowhere, decay, SCALE)
    return "lightning_recurrent", f"decode {requests}", [lambda x=x: lightning_recurrent(*x, *rest) for x in inputs]


def chunk_peer(case, inputs, states, start, decay) -> Iterator[Case]:
    try:
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError:
        return
    start = start.long()
    yield (
        "fla chunk_simple_gla",
        case,
        [
            lambda x=x: chunk_simple_gla(
                *(part[None] for part in x),
                g_gamma=decay,
                scale=SCALE,
                initial_state=states,
                output_final_state=True,
                cu_seqlens=start,
            )
            for x in inputs
        ],
    )


def row_cases(only: str) -> Iterator[Case]:
    case, rows = "8192 rows", 8192
    if only not in case:
        return
    weight, head_weight = random(WIDTH), random(D)
    positions = torch.arange(rows, device="cuda")
    inv_freq = 1e4 ** (-torch.arange(0, D, 2, device="cuda") / D)
    pairs = [(random(rows, WIDTH), random(rows, WIDTH)) for _ in range(ROTATION)]
    yield "gated_norm", case, [lambda p=p: gated_norm(*p, weight, 1e-6) for p in pairs]
    yield "scaled_add_norm", case, [lambda p=p: scaled_add_norm(*p, 0.25, weight, 1e-6) for p in pairs]
    heads = [tuple(x.view(rows, HQ, D) for x in pair) for pair in pairs]
    yield (
        "qk_norm_rope",
        case,
        [lambda h=h: qk_norm_rope(*h, head_weight, head_weight, positions, inv_freq, 1e-6) for h in heads],
    )


if __name__ == "__main__":
    main()
