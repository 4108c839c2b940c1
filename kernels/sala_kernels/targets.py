"""What differs between GPUs: the limits of a multiprocessor, what a kernel may use, and how it is launched.

Capability here is CUDA's compute capability, such as (9, 0) for Hopper. What stands at the launches was measured there.
Elsewhere nothing has run yet: the same holds, except for what CHOICES names, which follows from how kernels compile
(benchmarks/results/operators/registers.csv).
"""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch

Capability = tuple[int, int]
AMPERE, AMPERE_SMALL, ADA, HOPPER = (8, 0), (8, 6), (8, 9), (9, 0)
BLACKWELL, BLACKWELL_ULTRA, BLACKWELL_SMALL = (10, 0), (10, 3), (12, 0)


class Limits(NamedTuple):
    """Of a multiprocessor, and of the shared memory of one program.

    shared_bytes, program_shared_bytes: of shared memory, of all programs and of one; the system takes 1024 of the
        former for each.
    threads, programs, registers: at the same time.
    tensor_columns: of tensor memory, where tensor cores have it.

    Source: CUDA C++ Programming Guide, appendix on compute capabilities.

    >>> LIMITS[HOPPER].program_shared_bytes, LIMITS[ADA].program_shared_bytes
    (232448, 101376)
    """

    shared_bytes: int
    program_shared_bytes: int
    threads: int
    programs: int
    registers: int = 65_536
    tensor_columns: int = 0


_SMALL_BYTES, _MIDDLE_BYTES, _LARGE_BYTES = 100 * 1024, 164 * 1024, 228 * 1024
LIMITS: dict[Capability, Limits] = {
    AMPERE: Limits(_MIDDLE_BYTES, _MIDDLE_BYTES - 1024, 2048, 32),
    AMPERE_SMALL: Limits(_SMALL_BYTES, _SMALL_BYTES - 1024, 1536, 16),
    ADA: Limits(_SMALL_BYTES, _SMALL_BYTES - 1024, 1536, 24),
    HOPPER: Limits(_LARGE_BYTES, _LARGE_BYTES - 1024, 2048, 32),
    BLACKWELL: Limits(_LARGE_BYTES, _LARGE_BYTES - 1024, 2048, 32, tensor_columns=512),
    BLACKWELL_ULTRA: Limits(_LARGE_BYTES, _LARGE_BYTES - 1024, 2048, 32, tensor_columns=512),
    BLACKWELL_SMALL: Limits(_SMALL_BYTES, _SMALL_BYTES - 1024, 1536, 24),
}


class Path(NamedTuple):
    """A way of computing that not every GPU has, or that not on every GPU is the faster one.

    possible: where it can be forced.
    chosen: where it is taken.
    reason: why there.

    >>> PATHS["skinny_linear"].chosen
    frozenset({(9, 0)})
    """

    possible: frozenset[Capability]
    chosen: frozenset[Capability]
    reason: str


_FROM_HOPPER_ON = frozenset(capability for capability in LIMITS if capability >= HOPPER)
_FROM_ADA_ON = _FROM_HOPPER_ON | {ADA}
SHARED_BLOCKS, EARLY_LAUNCH, SKINNY_LINEAR = "shared_blocks", "early_launch", "skinny_linear"
FLOAT8_ROWS = "float8_rows"
PATHS: dict[str, Path] = {
    SHARED_BLOCKS: Path(
        _FROM_HOPPER_ON,
        frozenset({HOPPER}),
        "measured on 9.0; TMA, mbarrier and setmaxnreg exist from 9.0 on, and the source compiles for 10.0, 10.3 and "
        "12.0, where it has not run",
    ),
    EARLY_LAUNCH: Path(
        _FROM_HOPPER_ON, _FROM_HOPPER_ON, "measured on 9.0; the instructions exist from 9.0 on, and change no result"
    ),
    SKINNY_LINEAR: Path(
        frozenset(LIMITS),
        frozenset({HOPPER}),
        "measured on 9.0, beside the cuBLAS of that GPU; compiles for all others",
    ),
    FLOAT8_ROWS: Path(
        _FROM_ADA_ON,
        frozenset({HOPPER}),
        "measured on 9.0, where prompts take less time in FP8; products of FP8 exist from 8.9 on",
    ),
}


class LaunchChoice(NamedTuple):
    """Options of a launch that differ from those that stand there.

    kernel: name of its function.
    capabilities: where they differ.
    options: by their names in Triton.
    reason: begins with "measured: " or "derived: ".

    >>> CHOICES[0].options
    {'num_warps': 8}
    """

    kernel: str
    capabilities: tuple[Capability, ...]
    options: dict[str, int]
    reason: str


CHOICES: tuple[LaunchChoice, ...] = (
    LaunchChoice(
        "_walk_kernel",
        (AMPERE, AMPERE_SMALL, ADA, BLACKWELL, BLACKWELL_ULTRA),
        {"num_warps": 8},
        "derived: with 4 warps 1,688 bytes spill on 8.0, 1,168 on 8.6 and 8.9, 8 on 10.0 and 10.3",
    ),
)
_forced: dict[str, bool] = {}


@cache
def capability(device: torch.device) -> Capability | None:
    """Compute capability of ``device``; None where that is no NVIDIA GPU.

    >>> capability(torch.device("cpu")) is None
    True
    """
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


@cache
def known(found: Capability | None) -> Capability | None:
    """The capability of LIMITS as which a GPU of ``found`` counts: the last one up to it; None before the first.

    >>> known((9, 0)), known((12, 1)), known((7, 5))
    ((9, 0), (12, 0), None)
    """
    return max((one for one in LIMITS if found and one <= found), default=None)


def uses(path: str, device: torch.device) -> bool:
    """Whether kernels on ``device`` take ``path``, a name in PATHS: as ``force`` says, else as measured.

    >>> uses("early_launch", torch.device("cpu"))
    False
    """
    found = known(capability(device))
    return found in PATHS[path].possible and _forced.get(path, found in PATHS[path].chosen)


def force(paths: Mapping[str, bool], device: torch.device) -> None:
    """Take or leave ``paths`` on every device from now on, whatever was measured; others stay as they are.

    To be called before kernels are launched. Raises ValueError for a name that is none of PATHS, and for a path that
    ``device`` cannot take.

    >>> force({"early_launch": True}, torch.device("cpu"))
    Traceback (most recent call last):
    ValueError: path 'early_launch' needs compute capability 9.0, 10.0, 10.3, 12.0; this is no NVIDIA GPU
    """
    found = capability(device)
    for name, taken in paths.items():
        if name not in PATHS:
            raise ValueError(f"{name!r} is no path; allowed: {', '.join(PATHS)}")
        if taken and known(found) not in PATHS[name].possible:
            able = ", ".join("{}.{}".format(*one) for one in sorted(PATHS[name].possible))
            this = "this is no NVIDIA GPU" if found is None else "this GPU has {}.{}".format(*found)
            raise ValueError(f"path {name!r} needs compute capability {able}; {this}")
    _forced.update(paths)


def launch_options(kernel: str, device: torch.device, **measured: int) -> dict[str, int]:
    """Options with which ``kernel`` is launched on ``device``: those ``measured`` on Hopper, changed by CHOICES.

    >>> launch_options("_walk_kernel", torch.device("cpu"), num_warps=4)
    {'num_warps': 4}
    """
    return measured | changed_options(kernel, known(capability(device)))


@cache
def changed_options(kernel: str, found: Capability | None) -> dict[str, int]:
    """What CHOICES has for ``kernel`` on a GPU of the known capability ``found``; empty where it has nothing.

    >>> changed_options("_walk_kernel", (8, 0)), changed_options("_walk_kernel", (9, 0))
    ({'num_warps': 8}, {})
    """
    fitting = (choice.options for choice in CHOICES if choice.kernel == kernel and found in choice.capabilities)
    return next(fitting, {})
