"""``sglang.launch_server`` whose launches are written down, without a GPU as on a Hopper GPU that is not there.

Every process that computes adds to the file named by the variable SALA_TEST_LAUNCHES a line for each new launch of a
Triton kernel of this project: its kernel, options, and the classes of its arguments. Without a GPU nothing is computed,
and answers are what memory happened to hold. Takes the arguments of ``sglang.launch_server``. SGLang's worker processes
import this file again as their main module.
"""

import os
import runpy
from collections.abc import Callable
from typing import Any

import torch

VARIABLE = "SALA_TEST_LAUNCHES"


def line(launch: Any) -> str:
    """One launch as it stands in the file."""
    return f"{launch.kernel} {launch.options} {launch.classes}"


def record_launches() -> None:
    from sala_kernels import ahead
    from triton.runtime.jit import JITFunction

    seen: set[str] = set()
    run = JITFunction.run if torch.cuda.is_available() else _pretend_a_gpu()

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        if self.fn.__module__.startswith("sala_kernels"):
            found = line(ahead.launch_of(self, args, options))
            if found not in seen:
                seen.add(found)
                with open(os.environ[VARIABLE], "a") as file:
                    file.write(found + "\n")
        return run(self, *args, grid=grid, warmup=warmup, **options)

    JITFunction.run = record


def _pretend_a_gpu() -> Callable:
    """Have operators choose as on Hopper; what runs in place of a launch."""
    from sala_kernels import ahead, contract, targets
    from triton.runtime import driver

    from sala_sglang.models import skinny_linear

    launch_of, hopper = ahead.launch_of, ahead.NoDevice(targets.HOPPER)

    def launch_on_hopper(*described: Any) -> Any:
        real = driver._active
        driver.set_active(hopper)  # not for longer: SGLang asks Triton whether there is a GPU
        found = launch_of(*described)
        driver._active = real
        return found

    ahead.launch_of = launch_on_hopper  # type: ignore[assignment]
    targets.capability = lambda device: targets.HOPPER  # type: ignore[assignment]
    contract.default_implementation = lambda device: "triton"
    skinny_linear._takes = lambda path: True
    return lambda *args, **options: None


if __name__ == "__mp_main__":
    record_launches()

if __name__ == "__main__":
    runpy.run_module("sglang.launch_server", run_name="__main__")
