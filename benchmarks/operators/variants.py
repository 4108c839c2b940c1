"""Launch options and constants of kernels, tried side by side on cases of ``run.py``, with each kernel's time, as CSV.

    python -m benchmarks.operators.variants --case "select_blocks prefill 8192 of 131072" \\
        --variant "" --variant "_score_kernel.num_stages=3" \\
        --variant "_top_k_kernel.num_warps=2 sala_kernels.select_blocks.lse.TILE_SLOTS=128" \\
        --output benchmarks/results/operators/variants.csv

A variant is a list of settings: KERNEL.OPTION=N for an argument of a launch, or MODULE.CONSTANT=N. The empty one is
what serves. The case is built once, outputs are checked before they are timed, and a variant that cannot be compiled or
computes something else is reported and left out. Needs a GPU.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from benchmarks.common import results_file
from benchmarks.operators.harness.case import Case, Work, serving
from benchmarks.operators.harness.inputs import Setting
from benchmarks.operators.harness.sizes import RELEASED
from benchmarks.operators.harness.timing import Call, measure
from benchmarks.operators.run import all_cases, cache_bytes

COLUMNS = "date", "case", "variant", "median_us", "iqr_us", "kernels", "gpu", "torch"
PROFILED_CALLS = 3


def settings(variant: str) -> dict[str, int]:
    """Values by name, such as ``_score_kernel.num_stages``. Raises ValueError for what is none."""
    found = {}
    for word in variant.split():
        name, _, value = word.partition("=")
        if "." not in name or not value.isdecimal():
            raise ValueError(f"{word!r} is no setting; allowed: KERNEL.OPTION=N and MODULE.CONSTANT=N")
        found[name] = int(value)
    return found


@contextmanager
def applied(variant: str) -> Iterator[None]:
    """Launches and modules with the settings of ``variant``, and as they were afterwards."""
    options: dict[str, dict[str, int]] = {}
    constants: list[tuple[ModuleType, str, Any]] = []
    for name, value in settings(variant).items():
        owner, _, field = name.rpartition(".")
        if owner.startswith("_"):
            options.setdefault(owner, {})[field] = value
        else:
            module = importlib.import_module(owner)
            constants.append((module, field, getattr(module, field)))
            setattr(module, field, value)
    run = JITFunction.run

    def with_options(self: JITFunction, *args: Any, **kwargs: Any) -> Any:
        return run(self, *args, **kwargs | options.get(self.fn.__name__, {}))

    JITFunction.run = with_options
    try:
        yield
    finally:
        JITFunction.run = run
        for module, field, value in constants:
            setattr(module, field, value)


def kernel_times(call: Call) -> str:
    """Microseconds per call of each kernel, the longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(PROFILED_CALLS):
            call()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    times = [(event.key.split("(")[0], event.self_device_time_total / PROFILED_CALLS) for event in events]
    return "; ".join(f"{name} {microseconds:.1f}" for name, microseconds in times if microseconds > 0)


def try_variant(case: Case, work: Work, variant: str, setting: Setting) -> dict:
    choice = serving(setting)
    with applied(variant):
        work.check(choice)
        calls = work.calls(choice)
        timing = measure(calls, case.captured, setting.device)
        kernels = kernel_times(calls[0])
    return {
        "date": time.strftime("%Y-%m-%d"),
        "case": f"{case.operator} {case.name}",
        "variant": variant or "as served",
        "median_us": round(timing.median_us, 2),
        "iqr_us": round(timing.iqr_us, 2),
        "kernels": kernels,
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", required=True, help="operator and case as benchmarks.operators.run prints them")
    parser.add_argument("--variant", action="append", required=True, help="settings; may be given several times")
    parser.add_argument("--output", type=Path, required=True, help="CSV file; rows are appended")
    options = parser.parse_args()
    cases = {f"{case.operator} {case.name}": case for case in all_cases(RELEASED)}
    if options.case not in cases:
        parser.error("\n".join([f"--case {options.case!r} is not there; allowed:", *cases]))
    for variant in options.variant:
        try:
            settings(variant)
        except ValueError as error:
            parser.error(f"--variant: {error}")
    device = torch.device("cuda")
    case, setting = cases[options.case], Setting(RELEASED, device, cache_bytes(device))
    work = case.build(setting)
    for variant in options.variant:
        try:
            row = try_variant(case, work, variant, setting)
        except Exception as error:  # too many registers, say: the other variants are still worth their time
            print(f"{variant or 'as served'}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        results_file.record(options.output, row, COLUMNS)


if __name__ == "__main__":
    main()
