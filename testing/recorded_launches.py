"""``sglang.launch_server`` as on a Hopper GPU that is not there: launches are written down, and nothing is computed.

Every process that computes adds to the file named by the variable SALA_TEST_LAUNCHES a line for each new launch of a
Triton kernel of this project: its kernel, options, and the classes of its arguments. Answers are what memory happened
to hold. Takes the arguments of ``sglang.launch_server``. SGLang's worker processes import this file again as their main
module.
"""

import os
import runpy
from typing import Any

VARIABLE = "SALA_TEST_LAUNCHES"


def line(launch: Any) -> str:
    """One launch as it stands in the file."""
    return f"{launch.kernel} {launch.options} {launch.classes}"


def record_launches() -> None:
    from sala_kernels import contract, targets
    from sala_kernels.ahead import NoDevice, launch_of
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from sala_sglang.models import skinny_linear

    seen: set[str] = set()
    hopper = NoDevice(targets.HOPPER)

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        real = driver._active
        driver.set_active(hopper)  # not for longer: SGLang asks Triton whether there is a GPU
        found = line(launch_of(self, args, options))
        driver._active = real
        if found not in seen:
            seen.add(found)
            with open(os.environ[VARIABLE], "a") as file:
                file.write(found + "\n")

    JITFunction.run = record
    targets.capability = lambda device: targets.HOPPER  # type: ignore[assignment]
    contract.default_implementation = lambda device: "triton"
    skinny_linear._is_chosen = lambda: True


if __name__ == "__mp_main__":
    record_launches()

if __name__ == "__main__":
    runpy.run_module("sglang.launch_server", run_name="__main__")
