"""Kernels of a trace by torch's profiler: where the steps of a server begin, and what each consists of."""

import gzip
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

# What a trace calls work of the device. On a CPU the operators stand in for kernels, nested ones counted twice.
CATEGORIES = {"cuda": {"kernel", "gpu_memcpy", "gpu_memset"}, "cpu": {"cpu_op"}}
# Group of kernels: what their names contain. The first that fits counts.
GROUPS = {
    "sparse_attention": r"^_(shared_lists|tile|row|merge|shared_blocks)_kernel",
    "select_blocks": r"^_(coarse_lse|score|top_k)_kernel",
    "compress_keys": r"^_compress_kernel",
    "store_kv": r"^_store_kernel",
    "LoRA": r"lora|sgmv",
    "lightning": r"^_(step|sum|scan|walk|verify|commit)_kernel|seg_la|simple_gla|lightning",
    "dense attention": r"Batch(Prefill|Decode)|flash_?(attn|fwd)|flashinfer.*attention|VariableLengthMerge",
    "norms, rope, gates": r"^_(scaled_add_norm|qk_norm_rope|gated_norm|mean_square_part)_kernel"
    r"|^_(sigmoid_gate|float8_gate|silu_mul)_kernel|rms_?norm|act_and_mul|silu|rotary",
    "matrix products": r"^_(few_rows|int4)_kernel|gemm|gemv|cutlass|cublas|nvjet|xmma|splitK|skinny|addmm|aten::mm",
    "sampling, logits": r"argmax|softmax|top_?[kp]|sampl|sort",
    "copies, memsets": r"copy|memset|fill|Memcpy",
    "elementwise, indexing": r"elementwise|index|gather|scatter|CatArray|reduce|Scan",
}
OTHER = "other"
NAMED = 3  # kernels that a row names


@dataclass(frozen=True)
class Kernel:
    """start, end: microseconds."""

    name: str
    start: float
    end: float
    stream: int


def read(path: Path, device: str) -> list[Kernel]:
    """Kernels, copies and memsets of a Chrome trace (.json.gz), by their start."""
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    found = [
        Kernel(event["name"], event["ts"], event["ts"] + event["dur"], event.get("args", {}).get("stream", 0))
        for event in events
        if event.get("cat") in CATEGORIES[device] and event.get("ph") == "X"
    ]
    return sorted(found, key=lambda kernel: kernel.start)


def group_of(name: str) -> str:
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, name, re.IGNORECASE)), OTHER)


def step_starts(kernels: list[Kernel], steps: range) -> list[float]:
    """When each step begins, of which there are as many as one of ``steps``: at a kernel that comes once in each.

    Of the kernels of the busiest stream that come so often, those are meant that come at even distances, counted in
    launches; of these the one that comes first. Streams beside it already prepare the next step. Raises RuntimeError
    where no kernel comes so often.
    """
    busy: defaultdict[int, float] = defaultdict(float)
    for kernel in kernels:
        busy[kernel.stream] += kernel.end - kernel.start
    busiest = max(busy, key=lambda stream: busy[stream], default=None)
    places = defaultdict(list)
    launches = [kernel for kernel in kernels if kernel.stream == busiest]
    for place, kernel in enumerate(launches):
        places[kernel.name].append(place)
    candidates = [found for found in places.values() if len(found) in steps]
    if not candidates:
        raise RuntimeError(
            f"none of {len(launches)} kernels comes once in each of {steps.start} to {steps.stop - 1} steps"
        )
    slack = len(launches) / steps.stop / 10
    least = min(map(unevenness, candidates))
    first = min(found for found in candidates if unevenness(found) <= least + slack)
    return [launches[place].start for place in first]


def unevenness(places: list[int]) -> int:
    distances = [later - earlier for earlier, later in pairwise(places)]
    return max(distances) - min(distances)


def breakdown(kernels: list[Kernel], start: float, end: float, steps: int) -> list[dict]:
    """Rows per group of what starts in [start, end) microseconds, then of the device's busy and idle time.

    Times are milliseconds per step; ``steps`` lie in the interval. Shares are of the interval, and add up to more than
    the busy one where streams overlap.
    """
    inside = [kernel for kernel in kernels if start <= kernel.start < end]
    groups = defaultdict(list)
    for kernel in inside:
        groups[group_of(kernel.name)].append(kernel)
    busy = busy_time(inside, end)
    rows = [
        row(group, sum(kernel.end - kernel.start for kernel in found), end - start, steps, len(found), longest(found))
        for group, found in groups.items()
    ]
    rows.sort(key=lambda found: -found["ms_per_step"])
    rows.append(row("busy", busy, end - start, steps, len(inside)))
    return [*rows, row("idle", end - start - busy, end - start, steps)]


def row(group: str, time: float, interval: float, steps: int, launches: int = 0, names: str = "") -> dict:
    return {
        "group": group,
        "ms_per_step": round(time / steps / 1e3, 4),
        "share_percent": round(100 * time / interval, 2),
        "launches_per_step": round(launches / steps, 1),
        "kernels": names,
    }


def busy_time(kernels: list[Kernel], end: float) -> float:
    """Microseconds in which at least one of the kernels, sorted by start, runs before ``end``."""
    total, reached = 0.0, float("-inf")
    for kernel in kernels:
        total += max(0.0, min(kernel.end, end) - max(kernel.start, reached))
        reached = max(reached, min(kernel.end, end))
    return total


def longest(kernels: list[Kernel]) -> str:
    """Names of the kernels that take most of the time, shortened."""
    times: defaultdict[str, float] = defaultdict(float)
    for kernel in kernels:
        times[kernel.name[:80]] += kernel.end - kernel.start
    return "; ".join(sorted(times, key=lambda name: -times[name])[:NAMED])
