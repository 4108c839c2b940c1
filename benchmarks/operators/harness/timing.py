"""Time of calls in microseconds: replayed CUDA graphs, eager calls between events, or the wall clock of a CPU."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], Any]  # what it returns is the operator's
GRAPH_CALLS = 64  # at least; so many calls hide the launch of the graph itself
REPLAYS = 20
EAGER_CALLS = 20
WALL_CALLS = 3
BUSY_CYCLES = 2_000_000  # about a millisecond of waiting on the device, in which the host launches what is timed


@dataclass(frozen=True)
class Timing:
    """Median and interquartile range in microseconds, and how they were taken: graph, events or wall."""

    median_us: float
    iqr_us: float
    method: str


def measure(calls: list[Call], captured: bool, device: torch.device) -> Timing:
    """Time of one call, taking the calls by turns, after one warm-up of each.

    captured: whether the server replays such calls from a graph. A sample is then the mean over the calls of one
    replay; otherwise it is one eager call.
    """
    for call in calls:
        call()
    if device.type == "cpu":
        method, samples = "wall", _wall(calls)
    elif captured:
        method, samples = "graph", _replays(calls)
    else:
        method, samples = "events", _between_events([calls[i % len(calls)] for i in range(EAGER_CALLS)])
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, upper - lower, method)


def _replays(calls: list[Call]) -> list[float]:
    count = len(calls) * -(-GRAPH_CALLS // len(calls))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            calls[i % len(calls)]()
    graph.replay()
    return [sample / count for sample in _between_events([graph.replay] * REPLAYS)]


def _between_events(runs: list[Call]) -> list[float]:
    samples = []
    for run in runs:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(BUSY_CYCLES)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        samples.append(1e3 * start.elapsed_time(end))
    return samples


def _wall(calls: list[Call]) -> list[float]:
    samples = []
    for i in range(WALL_CALLS):
        start = time.perf_counter()
        calls[i % len(calls)]()
        samples.append(1e6 * (time.perf_counter() - start))
    return samples
