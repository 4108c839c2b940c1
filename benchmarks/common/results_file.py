"""Rows of measurements: where they were measured, and the CSV files that they are appended to."""

import argparse
import csv
import os
import platform
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

# What ``surroundings`` finds and the caller adds about its engine; the last columns of every row.
SURROUNDINGS = ("gpu", "driver", "torch", "sglang", "triton", "python", "commit", "dtype", "weights", "options")


def surroundings(arguments: argparse.Namespace) -> dict:
    """Machine and versions, for every row."""
    found = {"date": time.strftime("%Y-%m-%d"), "commit": arguments.commit, "gpu": "none", "driver": "none"}
    found |= {package: version(package) for package in ("torch", "sglang", "triton")}
    if arguments.device == "cuda":
        with first_gpu() as (nvml, gpu):
            found |= {"gpu": nvml.nvmlDeviceGetName(gpu), "driver": nvml.nvmlSystemGetDriverVersion()}
    return found | {"python": platform.python_version()}


def current_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


@contextmanager
def first_gpu() -> Iterator[tuple[ModuleType, Any]]:
    """NVML and its handle of the first GPU that programs may use; unlike torch it takes no memory there."""
    import pynvml

    name = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    pynvml.nvmlInit()
    try:
        find = pynvml.nvmlDeviceGetHandleByIndex if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID
        yield pynvml, find(int(name) if name.isdigit() else name)
    finally:
        pynvml.nvmlShutdown()


@contextmanager
def peak_memory(device: str) -> Iterator[dict[str, int | str]]:
    """Sample the memory in use on the first GPU; ``peak_mib`` is set at the end, empty on a CPU."""
    result: dict[str, int | str] = {"peak_mib": ""}
    if device == "cpu":
        yield result
        return
    samples: list[int] = []
    stop = threading.Event()

    def sample() -> None:
        with first_gpu() as (nvml, gpu):
            while not stop.is_set():
                samples.append(nvml.nvmlDeviceGetMemoryInfo(gpu).used)
                stop.wait(0.1)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield result
    finally:
        stop.set()
        sampler.join()
    result["peak_mib"] = max(samples) >> 20


def append(path: Path, row: dict, columns: tuple[str, ...]) -> None:
    """Append a row to the CSV file, so that what was measured is kept when a run is ended."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerow(row)


def record(path: Path, row: dict, columns: tuple[str, ...]) -> None:
    """Append a row, and print what it says besides its surroundings."""
    append(path, row, columns)
    measured = columns[1 : columns.index("gpu")]
    print(", ".join(f"{name}={row[name]}" for name in measured if name in row), flush=True)


def columns(path: Path) -> tuple[str, ...] | None:
    """Columns of the CSV file so far; None where there is no file."""
    if not path.exists():
        return None
    with path.open(newline="") as file:
        return tuple(next(csv.reader(file), ()))


def read(path: Path) -> list[dict]:
    """Rows of the CSV file so far; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(rows: list[dict], columns: tuple[str, ...]) -> str:
    """Markdown of these columns; a value that a row lacks is left empty."""
    lines = [columns, ["---"] * len(columns)]
    lines += [[str(row.get(name, "")) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
