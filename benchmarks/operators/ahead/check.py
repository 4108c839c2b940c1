"""Whether the table of compiled kernels is that of the code: nothing missing or stale, everything within its limits."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sala_kernels
import triton
from sala_kernels.sparse_attention import shared_blocks
from sala_kernels.targets import LIMITS

from benchmarks.operators.ahead.entries import COLUMNS, Entry, Key, capability_name, entries, row

KERNELS = Path(sala_kernels.__file__).parent
# Bytes that a thread may spill, stores and loads: few, but for the top-k of contexts beyond a million tokens, which
# holds 32,768 blocks in the registers of 16 warps.
MOST_SPILL_BYTES = 64
MORE_SPILL_BYTES = {"_top_k_kernel": 1100}
# The same compiler has chosen 40 registers on one host and 44 on another: within their granule that is no change.
REGISTER_GRANULE = 8


def kernel_names() -> set[str]:
    """Of all kernels in the sources: functions for Triton whose names end so, and the one in CUDA C++."""
    found = {shared_blocks.NAME}
    for path in KERNELS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel") and _is_jitted(node):
                found.add(node.name)
    return found


def _is_jitted(node: ast.FunctionDef) -> bool:
    return any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)


def key_of(found: dict[str, str]) -> Key:
    sizes = {name: int(found[name]) for name in ("warps", "stages")}
    return Key(**{name: sizes.get(name, found[name]) for name in Key._fields})  # type: ignore[arg-type]


def problems(rows: list[dict[str, str]], launched: Iterable[Entry]) -> Iterator[str]:
    """What is wrong with ``rows`` of the table, beside what the code launches."""
    listed, keys = {key_of(one): one for one in rows}, {entry.key for entry in launched}
    yield from (f"launched and not in the table: {key}" for key in keys - listed.keys())
    yield from (f"in the table and not launched: {key}" for key in listed.keys() - keys)
    yield from (f"no call launches {name}" for name in kernel_names() - {key.kernel for key in keys})
    for key, one in listed.items():
        if int(one["per_sm"]) < 1:
            yield f"does not fit on a multiprocessor: {key}"
        if int(one["spill_bytes"]) > MORE_SPILL_BYTES.get(key.kernel, MOST_SPILL_BYTES):
            yield f"spills {one['spill_bytes']} bytes: {key}"


def sample(launched: list[Entry]) -> list[Entry]:
    """An entry of every kernel, of another capability in turn, so that each of both appears."""
    names = list(dict.fromkeys(entry.key.kernel for entry in launched))
    turns = [capability_name(capability) for capability in LIMITS]
    chosen = []
    for index, name in enumerate(names):
        of_kernel = [entry for entry in launched if entry.key.kernel == name]
        turn = turns[index % len(turns)]
        chosen.append(next((entry for entry in of_kernel if entry.key.capability == turn), of_kernel[0]))
    return chosen


def differences(rows: list[dict[str, str]], chosen: Iterable[Entry]) -> Iterator[str]:
    """Entries that compile to something else than the table says, where that was made by this Triton."""
    listed = {key_of(one): one for one in rows}
    for entry in chosen:
        now: dict[str, Any] = row(entry)
        before = listed.get(entry.key)
        if before and before["triton"] == triton.__version__:
            changed = [f"{name} {before[name]} → {now[name]}" for name in _changed(before, now)]
            if changed:
                yield f"compiles to another result ({', '.join(changed)}): {entry.key}"


def _changed(before: dict[str, str], now: dict[str, Any]) -> list[str]:
    close = abs(now["registers"] - int(before["registers"])) < REGISTER_GRANULE
    free = ("registers", "per_sm") if close else ()
    return [name for name in COLUMNS if str(now[name]) != before[name] and name not in free]


def check(rows: list[dict[str, str]]) -> list[str]:
    """All of the above, of every capability."""
    launched = [entry for capability in LIMITS for entry in entries(capability)]
    return [*problems(rows, launched), *differences(rows, sample(launched))]
