"""Compiles what a server launches, in as many processes as there are cores, into Triton's cache."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import torch
import triton
from sala_kernels import targets
from sala_kernels.ahead import Launch, launches_of, pretended
from sala_kernels.kv_scales import E4M3
from sala_kernels.sparse_attention import is_compiled_for, shared_blocks
from sala_kernels.targets import Capability

from sala_sglang import environment
from sala_sglang.ahead.calls import calls
from sala_sglang.ahead.form import Form

Compile = Callable[[], Any]
_tasks: list[tuple[str, Compile]] = []  # for the processes that compile, which are forks of this one


class Compiled(NamedTuple):
    """A kernel, and whether the cache had it already."""

    kernel: str
    found: bool


def server_launches(form: Form, capability: Capability) -> dict[Launch, Compile]:
    """Every Triton kernel that a server launches on a GPU of ``capability``, each once, and what compiles it."""
    return {launch: compile_it for _, call in calls(form) for launch, compile_it in launches_of(call, capability)}


def take_paths_as_told(capability: Capability) -> None:
    """Have kernels take the paths that the environment names, as in a server. Raises ValueError for impossible ones."""
    with pretended(capability, _nothing):
        targets.force(environment.forced_paths(), torch.device("cpu"))


def takes(path: str, capability: Capability) -> bool:
    """Whether a server on a GPU of ``capability`` takes ``path``, a name of sala_kernels.targets.PATHS."""
    with pretended(capability, _nothing):
        return targets.uses(path, torch.device("cuda"))


def compile_server(form: Form, capability: Capability) -> list[Compiled]:
    """Compile all kernels of a server, the one in CUDA C++ included, each of which ends up in Triton's cache."""
    launched = server_launches(form, capability)
    _tasks[:] = [(launch.kernel, compile_it) for launch, compile_it in launched.items()]
    if binary := _shared_blocks(form, capability):
        _tasks.append((shared_blocks.NAME, binary))
    processes = min(len(os.sched_getaffinity(0)), len(_tasks))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
        return list(pool.map(_compile, range(len(_tasks))))


def _shared_blocks(form: Form, capability: Capability) -> Compile | None:
    """What compiles the kernel in CUDA C++; None where Triton serves in its place."""
    group = form.query_heads // form.kv_heads
    dtype = E4M3 if form.fp8_cache else form.dtype
    with pretended(capability, _nothing):
        described = torch.device("cuda"), dtype, form.config.head_dim, group, form.geometry.block_size
        if not is_compiled_for(*described):
            return None
    return lambda: shared_blocks.binary(group, capability)


def _nothing(*args: Any, **options: Any) -> None:
    """In place of a launch."""


def _compile(index: int) -> Compiled:
    name, compile_it = _tasks[index]
    found: list[bool] = []
    triton.knobs.compilation.listener = lambda **told: found.append(told["cache_hit"])
    result = compile_it()
    return Compiled(name, found[0] if found else result.found)
