"""What the compiler makes of kernels for a GPU that is not there."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any

import triton
from sala_kernels.ahead import NoDevice
from sala_kernels.nvrtc import compile_source
from sala_kernels.sparse_attention import shared_blocks
from sala_kernels.targets import LIMITS, Capability, Limits
from triton.backends.nvidia.compiler import get_ptxas

SYSTEM_SHARED_BYTES = 1024  # that every program takes beside its own


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
