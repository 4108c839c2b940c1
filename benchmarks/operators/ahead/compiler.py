"""Kernels for a GPU that is not there: which ones a call would launch, and what the compiler makes of them."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import triton
from sala_kernels import targets
from sala_kernels.nvrtc import compile_source
from sala_kernels.sparse_attention import shared_blocks
from sala_kernels.targets import LIMITS, Capability, Limits
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver
from triton.runtime.jit import JITFunction

SYSTEM_SHARED_BYTES = 1024  # that every program takes beside its own


class NoDevice:
    """Stands in for Triton's driver: compiles for a GPU of this compute capability and has none."""

    def __init__(self, capability: Capability = targets.HOPPER) -> None:
        self.number = 10 * capability[0] + capability[1]

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.number, 32)

    def get_current_device(self) -> int:
        return self.number  # Triton keeps what it compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0


@dataclass(frozen=True)
class Launch:
    """A Triton kernel as it would be compiled: its constants, and options in Triton's names."""

    kernel: str
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def sizes(self) -> str:
        """The constants that are numbers, and the other ones by their type."""
        return " ".join(f"{name}={_shown(value)}" for name, value in self.constants)


def _shown(value: Any) -> str:
    return str(value).replace(" ", "")


@contextmanager
def pretended(capability: Capability, run: Callable) -> Iterator[None]:
    """Operators choose as on a GPU of ``capability``, and ``run`` is called in place of a launch."""
    driver.set_active(NoDevice(capability))
    with patch.object(JITFunction, "run", run), patch.object(targets, "capability", lambda device: capability):
        yield


def launches(call: Callable[[], object], capability: Capability) -> list[tuple[Launch, Callable[[], Any]]]:
    """What ``call`` would launch, each with a function that compiles it and returns Triton's kernel."""
    found: list[tuple[Launch, Callable[[], Any]]] = []
    run = JITFunction.run

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        names = [parameter.name for parameter in self.params]
        given = dict(zip(names, args, strict=False)) | options
        constants = tuple((one.name, given[one.name]) for one in self.params if one.is_constexpr)
        rest = tuple(sorted((name, value) for name, value in options.items() if name not in names))

        def compile_it() -> Any:
            with pretended(capability, run):
                return run(self, *args, grid=grid, warmup=True, **options)

        found.append((Launch(self.fn.__name__, constants, rest), compile_it))

    with pretended(capability, record):
        call()
    return found


@dataclass(frozen=True)
class Measures:
    """Of a compiled kernel; ``per_sm`` counts the programs that fit on a multiprocessor of the GPU."""

    warps: int
    stages: int
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    per_sm: int


def find(pattern: str, text: str) -> re.Match[str]:
    """The first match. Raises RuntimeError where there is none."""
    if match := re.search(pattern, text, re.MULTILINE):
        return match
    raise RuntimeError(f"{pattern!r} is not in:\n{text}")


def measures(kernel: Any, capability: Capability) -> Measures:
    """Of ``kernel`` as Triton compiled it for ``capability``. Raises RuntimeError where the assembler refuses it."""
    text, meta = kernel.asm["ptx"], kernel.metadata
    target = find(r"^\.target (\w+)", text)[1]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(text)
        file.flush()
        assembler = get_ptxas(NoDevice(capability).number).path
        command = [assembler, "-v", f"--gpu-name={target}", file.name, "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{meta.name} does not assemble for {target}:\n{done.stderr}")
    stack, stores, loads = map(int, find(r"(\d+) bytes stack.* (\d+) bytes spill.* (\d+) bytes", done.stderr).groups())
    registers = int(find(r"Used (\d+) registers", done.stderr)[1])
    fit = programs(LIMITS[capability], registers, 32 * meta.num_warps, meta.shared, getattr(meta, "tmem_size", 0) or 0)
    return Measures(meta.num_warps, meta.num_stages, registers, stores + loads, stack, meta.shared, fit)


def programs(limits: Limits, registers: int, threads: int, shared_bytes: int, tensor_columns: int = 0) -> int:
    """Programs that fit on a multiprocessor; 0 where the shared memory of one is too large."""
    if shared_bytes > limits.program_shared_bytes:
        return 0
    fit = [limits.programs, limits.threads // threads, limits.shared_bytes // (shared_bytes + SYSTEM_SHARED_BYTES)]
    fit.append(limits.registers // (-(-registers // 8) * 8 * threads))
    if tensor_columns:
        fit.append(limits.tensor_columns // tensor_columns)
    return min(fit)


def measures_of_shared_blocks(group: int, capability: Capability) -> Measures:
    """Of the kernel in CUDA C++ for ``group`` heads per KV head; its local memory counts as spills.

    It is launched with the registers that stand there, and its warps divide them anew.
    """
    defined = shared_blocks.definitions(group, capability)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compile_source(shared_blocks.SOURCE, defined, shared_blocks.architecture(capability)))
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(find(rf"{name}:(\d+)", log)[1]) for name in ("REG", "STACK", "LOCAL"))
    warps = shared_blocks.WARPS + shared_blocks.FETCHING_WARPS
    fit = programs(LIMITS[capability], registers, 32 * warps, defined["SHARED_BYTES"])
    return Measures(warps, defined["STAGES"], registers, local, stack, defined["SHARED_BYTES"], fit)
