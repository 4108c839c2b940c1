"""Kernels for a GPU that is not there: which ones a call would launch, and their compilation into Triton's cache.

Triton keeps a compiled kernel under its source, the GPU's compute capability, its options, and the classes of its
arguments: dtypes, and which integers and addresses are multiples of 16. Calls with tensors on the CPU that have shapes
and strides of those on a GPU come to the same key, and no element of them is read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from sala_kernels import targets
from sala_kernels.targets import Capability


class NoDevice:
    """Stands in for Triton's driver: compiles for a GPU of this compute capability and has none.

    capability: of the GPU.

    >>> NoDevice((9, 0)).get_current_target().arch
    90
    """

    def __init__(self, capability: Capability = targets.HOPPER) -> None:
        self.number = 10 * capability[0] + capability[1]

    def get_current_target(self) -> GPUTarget:
        """What Triton compiles for."""
        return GPUTarget("cuda", self.number, 32)

    def get_current_device(self) -> int:
        """Another number for each capability: Triton keeps what it compiled by device."""
        return self.number

    def get_current_stream(self, device: int) -> int:
        """A number that nobody uses."""
        return 0


@dataclass(frozen=True)
class Launch:
    """A Triton kernel as it would be compiled.

    kernel: name of its function.
    constants: names and values of its parameters that are constants.
    options: by their names in Triton.
    classes: of its arguments, by which Triton tells kernels of the same constants and options apart.

    >>> Launch("_kernel", (("D", 128), ("STRIDES", (1, 2))), (("num_warps", 4),), "").sizes
    'D=128 STRIDES=(1,2)'
    """

    kernel: str
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, Any], ...]
    classes: str

    @property
    def sizes(self) -> str:
        """The constants that are numbers, and the other ones by their type."""
        return " ".join(f"{name}={str(value).replace(' ', '')}" for name, value in self.constants)


@contextmanager
def pretended(capability: Capability, run: Callable) -> Iterator[None]:
    """Operators choose as on a GPU of ``capability``, and ``run`` is called in place of a launch.

    Triton's driver stays the one that has no device.
    """
    real = targets.capability, JITFunction.run
    driver.set_active(NoDevice(capability))
    targets.capability, JITFunction.run = lambda device: capability, run  # type: ignore[assignment]
    try:
        yield
    finally:
        targets.capability, JITFunction.run = real


def launches_of(call: Callable[[], object], capability: Capability) -> list[tuple[Launch, Callable[[], Any]]]:
    """What ``call`` would launch on a GPU of ``capability``, each with a function that compiles it.

    That function returns Triton's kernel, which it takes from Triton's cache where it is there, and leaves it there.
    """
    found: list[tuple[Launch, Callable[[], Any]]] = []
    run = JITFunction.run

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        def compile_it() -> Any:
            with pretended(capability, run):
                return run(self, *args, grid=grid, warmup=True, **options)

        found.append((launch_of(self, args, options), compile_it))

    with pretended(capability, record):
        call()
    return found


def launch_of(function: JITFunction, args: tuple, options: dict[str, Any]) -> Launch:
    """The launch of ``function`` with ``args`` and ``options``, for the GPU of Triton's driver."""
    names = [parameter.name for parameter in function.params]
    given = dict(zip(names, args, strict=False)) | options
    constants = tuple((one.name, given[one.name]) for one in function.params if one.is_constexpr)
    rest = tuple(sorted((name, value) for name, value in options.items() if name not in names))
    binder = function.device_caches[driver.active.get_current_device()][-1]
    _, classes, _ = binder(*args, **options)
    return Launch(function.fn.__name__, constants, rest, str(classes))
