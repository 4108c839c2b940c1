"""What takes the memory of the GPU once an engine has started, in MiB."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.common import results_file

if TYPE_CHECKING:  # imported where an engine runs
    from sglang import Engine

COLUMNS = ("date", "engine", "what", "mib", *results_file.SURROUNDINGS)
GIB = 1024  # MiB; SGLang tells GiB, to three digits


def used_mib(device: str) -> int:
    """Memory in use on the first GPU by every process together; 0 on a CPU."""
    if device == "cpu":
        return 0
    with results_file.first_gpu() as (nvml, gpu):
        return nvml.nvmlDeviceGetMemoryInfo(gpu).used >> 20


def after_start(engine: Engine, before: int, device: str) -> list[dict]:
    """Rows of what SGLang knows, and of the rest of what NVML says.

    before: MiB in use before the engine was started. The rest are the states of the lightning layers and their
    snapshots, the block scores, CUDA's context, and what libraries and the allocator hold; none on a CPU.
    """
    (state,) = engine.get_server_info()["internal_states"]
    told = state["memory_usage"]
    sizes = {"weights": told["weight"], "keys, values and compressed keys": told["kvcache"]}
    sizes |= {f"{phase} graphs": size for phase, size in told["graph"].items() if size}
    found = {what: round(size * GIB) for what, size in sizes.items()}
    if device != "cpu":
        total = used_mib(device) - before
        found |= {"states and the rest": total - sum(found.values()), "sum after the start": total}
    return [{"what": what, "mib": mib} for what, mib in found.items()]
