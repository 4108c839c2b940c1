"""Clock and power of the first GPU while something runs there."""

import statistics
import threading
from types import TracebackType
from typing import Any

from benchmarks.common import results_file

SAMPLE_SECONDS = 0.02


class GPUState:
    """Samples while it is entered; medians of the later half are those of a steady state. Nothing on a CPU."""

    def __init__(self, device: str) -> None:
        self._samples: list[tuple[int, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample) if device == "cuda" else None

    def __enter__(self) -> "GPUState":
        if self._thread:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _sample(self) -> None:
        with results_file.first_gpu() as (nvml, gpu):
            while not self._stop.is_set():
                clock = nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)
                self._samples.append((clock, nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3))
                self._stop.wait(SAMPLE_SECONDS)

    def cells(self) -> dict[str, Any]:
        """Median clock of the multiprocessors in MHz and power of the board in W; empty where there are no samples."""
        later = self._samples[len(self._samples) // 2 :]
        if not later:
            return {"clock_mhz": "", "power_w": ""}
        clocks, powers = zip(*later, strict=True)
        return {"clock_mhz": round(statistics.median(clocks)), "power_w": round(statistics.median(powers))}
