"""Results: rows of a CSV file, lines on the terminal, and a table of targets."""

import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.common import results_file
from benchmarks.operators.harness.case import Case, Target
from benchmarks.operators.harness.floors import Floor
from benchmarks.operators.harness.timing import Timing

# fmt: off
COLUMNS = (
    "operator", "case", "implementation", "tensor_parallel", "method", "median_us", "iqr_us", "read_bytes",
    "written_bytes", "operations", "gb_per_s", "copy_share", "tflop_per_s", "date", "gpu", "driver", "torch", "triton",
    "python",
)
# fmt: on


@dataclass(frozen=True)
class Row:
    """A measured row. copy_gb_per_s is the copy bandwidth measured in the same run."""

    case: Case
    implementation: str
    timing: Timing
    floor: Floor
    copy_gb_per_s: float

    @property
    def gb_per_s(self) -> float:
        return gb_per_s(self.floor, self.timing)

    @property
    def copy_share(self) -> float:
        return self.gb_per_s / self.copy_gb_per_s

    @property
    def tflop_per_s(self) -> float:
        return self.floor.operations / self.timing.median_us / 1e6

    def cells(self) -> dict[str, object]:
        """The cells of the CSV row that do not depend on the machine; no rate where nothing is counted."""
        floor, timing = self.floor, self.timing
        return {
            "operator": self.case.operator,
            "case": self.case.name,
            "implementation": self.implementation,
            "method": timing.method,
            "median_us": f"{timing.median_us:.2f}",
            "iqr_us": f"{timing.iqr_us:.2f}",
            "read_bytes": floor.read_bytes,
            "written_bytes": floor.written_bytes,
            "operations": floor.operations or "",
            "gb_per_s": f"{self.gb_per_s:.1f}",
            "copy_share": f"{self.copy_share:.3f}",
            "tflop_per_s": f"{self.tflop_per_s:.1f}" if floor.operations else "",
        }

    def line(self) -> str:
        cells = self.cells()
        return (
            f"{cells['operator']:34} {cells['case']:40} {self.implementation:16} {cells['median_us']:>10} us"
            f" ± {cells['iqr_us']:>8} {cells['gb_per_s']:>8} GB/s {100 * self.copy_share:6.1f} %"
            f" {cells['tflop_per_s']:>8} TFLOP/s"
        )


def gb_per_s(floor: Floor, timing: Timing) -> float:
    """Bytes of the floor per time, in 10⁹ bytes per second."""
    return floor.moved_bytes / timing.median_us / 1e3


class Results:
    """A CSV file to which rows are appended; ValueError where it has other columns."""

    def __init__(self, path: Path, device: torch.device, tensor_parallel: int = 1):
        self.path, self.about = path, {"tensor_parallel": tensor_parallel} | surroundings(device)
        found = results_file.columns(path)
        if found not in (None, COLUMNS):
            raise ValueError(f"{path} has the columns {','.join(found)}; allowed: {','.join(COLUMNS)}")

    def append(self, row: Row) -> None:
        results_file.append(self.path, row.cells() | self.about, COLUMNS)


def surroundings(device: torch.device) -> dict[str, str]:
    """Machine and versions, for every row."""
    found = {"date": time.strftime("%Y-%m-%d"), "gpu": "none", "driver": "none"}
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(), "driver": driver()}
    versions = {"torch": torch.__version__, "triton": version("triton"), "python": platform.python_version()}
    return found | versions


def driver() -> str:
    try:
        import pynvml
    except ImportError:
        return "unknown"
    pynvml.nvmlInit()
    try:
        return pynvml.nvmlSystemGetDriverVersion()
    finally:
        pynvml.nvmlShutdown()


def verdicts(rows: list[Row]) -> list[str]:
    """Lines of the table of targets: one per target and own row."""
    lines = [f"{'case':76} {'implementation':16} {'measured':>20} {'target':>22}  met"]
    for row in rows:
        if row.implementation in row.case.peers:
            continue
        for target in row.case.targets:
            value, least = measured(row, target, rows), "at most" if target.unit == "us" else "at least"
            met = value is not None and (value <= target.value if target.unit == "us" else value >= target.value)
            shown = "not measured" if value is None else f"{value:.1f} {target.unit}"
            answer = "-" if value is None else "yes" if met else "no"
            title = f"{row.case.operator}, {row.case.name}"
            aim = f"{least} {target.value:g} {target.unit}"
            lines.append(f"{title:76} {row.implementation:16} {shown:>20} {aim:>22}  {answer}")
    return lines


def measured(row: Row, target: Target, rows: list[Row]) -> float | None:
    """The row's value in the unit of the target; None where a peer is needed and was not measured."""
    if target.unit == "us":
        return row.timing.median_us
    if target.unit == "TFLOP/s":
        return row.tflop_per_s
    if target.unit == "% of copy":
        return 100 * row.copy_share
    peer = target.unit.removeprefix("x ")
    times = [x.timing.median_us for x in rows if x.case is row.case and x.implementation == peer]
    return times[0] / row.timing.median_us if times else None
