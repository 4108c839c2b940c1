"""Registers, spills and shared memory of kernels as compiled for Hopper, as CSV. Needs no GPU.

    python -m benchmarks.operators.registers --output benchmarks/results/operators/registers.csv

Released sizes, bfloat16; what reads or writes keys and values also with these in FP8. Each operator is called as the
server would call it, and what it would launch is compiled: the sparse ones for a prefill chunk and for a decode step of
a server with a context of a million tokens. The programs that fit on a multiprocessor follow from the limits of an
H100. Spills are what ptxas reports; its stack frame also holds the table by which libdevice reduces the arguments of
sine and cosine. The kernel in CUDA C++ is launched with the registers that stand here, and its warps divide them anew.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from sala_kernels.compress_keys import compress_keys
from sala_kernels.gated_norm import gated_norm
from sala_kernels.kv_scales import E4M3
from sala_kernels.layout import PagedBatch, SparseGeometry
from sala_kernels.lightning import lightning_chunk
from sala_kernels.lightning_commit import lightning_commit
from sala_kernels.lightning_step import lightning_step
from sala_kernels.lightning_verify import lightning_verify
from sala_kernels.nvrtc import compile_source
from sala_kernels.qk_norm_rope import qk_norm_rope
from sala_kernels.scaled_add_norm import scaled_add_norm
from sala_kernels.select_blocks import select_blocks
from sala_kernels.sigmoid_gate import sigmoid_gate
from sala_kernels.silu_mul import silu_mul
from sala_kernels.skinny_linear import skinny_linear
from sala_kernels.sparse_attention import shared_blocks, sparse_attention
from sala_kernels.store_kv import store_kv
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks.common import results_file
from benchmarks.operators.linear_kernels import BLOCK, CHANNEL, INT4, make_weight

HEADS, KV_HEADS, DIM, WIDTH, PROJECTED = 32, 2, 128, 4096, 4 * 4096
TOKENS, REQUESTS, CONTEXT = 8192, 32, 2**20
LAYERS, ROWS = 24, 4  # lightning layers, and rows per request of a verify step
GEOMETRY = SparseGeometry()
FEW_ROWS = 8
TRITON = "triton"  # the implementation whose kernels are compiled
REGISTERS, SHARED_BYTES, THREADS, PROGRAMS = 65_536, 233_472, 2048, 32  # of a multiprocessor
COLUMNS = "operator", "kernel", "warps", "stages", "registers", "spill_bytes", "stack_bytes", "shared_bytes", "per_sm"


class NoDevice:
    """Stands in for Triton's driver: compiles for a Hopper GPU and has none."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(call: Callable[[], object]) -> list:
    """The kernels that ``call`` would launch."""
    kernels: list = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernels.append(run(self, *args, grid=grid, warmup=True, **options))
        return kernels[-1]

    driver.set_active(NoDevice())
    JITFunction.run = compile_only
    try:
        call()
    finally:
        JITFunction.run = run
    return kernels


def find(pattern: str, text: str) -> re.Match[str]:
    """The first match. Raises RuntimeError where there is none."""
    if match := re.search(pattern, text, re.MULTILINE):
        return match
    raise RuntimeError(f"{pattern!r} is not in:\n{text}")


def measures(kernel: Any) -> tuple:
    """What COLUMNS name, from the kernel on."""
    text, meta = kernel.asm["ptx"], kernel.metadata
    target = find(r"^\.target (\w+)", text)[1]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(text)
        file.flush()
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={target}", file.name, "-o", "/dev/null"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    stack, stores, loads = map(int, find(r"(\d+) bytes stack.* (\d+) bytes spill.* (\d+) bytes", log).groups())
    registers, threads = int(find(r"Used (\d+) registers", log)[1]), 32 * meta.num_warps
    fit = REGISTERS // (-(-registers // 8) * 8 * threads), SHARED_BYTES // (meta.shared + 1024), THREADS // threads
    sizes = registers, stores + loads, stack, meta.shared, min(*fit, PROGRAMS)
    return meta.name, meta.num_warps, meta.num_stages, *sizes


def measures_of_shared_blocks() -> tuple:
    """The same of the kernel in CUDA C++, its local memory for spills; one program fills a multiprocessor's memory."""
    defined = shared_blocks.definitions(HEADS // KV_HEADS)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compile_source(shared_blocks.SOURCE, defined, shared_blocks.ARCHITECTURE))
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(find(rf"{name}:(\d+)", log)[1]) for name in ("REG", "STACK", "LOCAL"))
    warps = shared_blocks.WARPS + shared_blocks.FETCHING_WARPS
    sizes = warps, shared_blocks.STAGES, registers, local, stack, defined["SHARED_BYTES"], 1
    return shared_blocks.NAME, *sizes


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def unread_batch(rows: list[int], context: int) -> PagedBatch:
    """A batch of requests with ``rows`` each that end at ``context`` tokens. Their token slots are not set."""
    requests = len(rows)
    return PagedBatch(
        query_start=ints(0, *rows).cumsum(0).int(),
        kv_lens=ints(*[context] * requests),
        sparse_from=ints(*[0] * requests),
        request_rows=torch.arange(requests),
        token_slots=torch.empty(1, context, dtype=torch.int32).expand(requests, -1),
        max_query_tokens=max(rows),
        max_kv_tokens=context,
    )


def sparse_operators(case: str, rows: list[int]) -> dict[str, Callable[[], object]]:
    """Calls of the sparse operators by name, for requests with ``rows`` each. Their inputs are never read."""
    batch = unread_batch(rows, CONTEXT)
    pool = empty(2 * GEOMETRY.block_size, KV_HEADS, DIM)
    compressed = empty(2, KV_HEADS, GEOMETRY.page_rows, DIM)
    queries = empty(sum(rows), PROJECTED).view(sum(rows), -1, DIM)[:, :HEADS]
    blocks = torch.empty(sum(rows), KV_HEADS, GEOMETRY.selected_blocks, dtype=torch.int32)
    rest = batch, GEOMETRY, DIM**-0.5
    return {
        f"compress_keys {case}": lambda: compress_keys(pool, compressed, batch, GEOMETRY, implementation=TRITON),
        f"select_blocks {case}": lambda: select_blocks(queries, compressed, *rest, implementation=TRITON),
        f"sparse_attention {case}": lambda: sparse_attention(queries, pool, pool, blocks, *rest, implementation=TRITON),
    }


def operators_of_fp8(case: str, rows: list[int]) -> dict[str, Callable[[], object]]:
    """The same of keys and values in FP8, where they differ."""
    batch, tokens = unread_batch(rows, CONTEXT), sum(rows)
    pool = empty(2 * GEOMETRY.block_size, KV_HEADS, DIM, dtype=E4M3)
    scales = empty(2, KV_HEADS, dtype=torch.float32)
    compressed = empty(2, KV_HEADS, GEOMETRY.page_rows, DIM)
    projected = empty(tokens, PROJECTED).view(tokens, -1, DIM)
    queries, k = projected[:, :HEADS], projected[:, HEADS : HEADS + KV_HEADS]
    blocks = torch.empty(tokens, KV_HEADS, GEOMETRY.selected_blocks, dtype=torch.int32)
    slots = torch.empty(tokens, dtype=torch.int64)
    fp8: dict[str, Any] = {"kv_scales": scales, "implementation": TRITON}
    return {
        f"store_kv {case}, FP8": lambda: store_kv(k, k, pool, pool, slots, scales, implementation=TRITON),
        f"compress_keys {case}, FP8": lambda: compress_keys(pool, compressed, batch, GEOMETRY, **fp8),
        f"sparse_attention {case}, FP8": lambda: sparse_attention(
            queries, pool, pool, blocks, batch, GEOMETRY, DIM**-0.5, **fp8
        ),
    }


def quantised_operators() -> dict[str, Callable[[], object]]:
    """Products of few rows with quantised weights or few outputs, and operators that write FP8, by name."""
    rows, gate, factors = empty(TOKENS, WIDTH), empty(TOKENS, PROJECTED)[:, -WIDTH:], empty(WIDTH)
    chosen: dict[str, Any] = {"to_float8": True, "implementation": TRITON}

    def products() -> Iterator[tuple[str, Callable[[], object]]]:
        few, many = rows[:FEW_ROWS], rows[:REQUESTS]
        yield f"skinny_linear {FEW_ROWS}", lambda: skinny_linear(few, empty(WIDTH, WIDTH), implementation=TRITON)
        for form, name in ((CHANNEL, "fp8"), (BLOCK, "fp8 block"), (INT4, "int4")):
            sizes = WIDTH, PROJECTED
            weights = [weight for outputs in sizes if (weight := make_weight(form, outputs, WIDTH, "cpu")) is not None]
            for outputs, weight in zip(sizes, weights, strict=True):
                title = f"skinny_linear {name} {FEW_ROWS} to {outputs}"
                yield title, partial(skinny_linear, few, weight, implementation=TRITON)
            if form != INT4:
                yield (
                    f"skinny_linear {name} {REQUESTS}",
                    partial(skinny_linear, many, weights[-1], implementation=TRITON),
                )

    return dict(products()) | {
        "gated_norm fp8": lambda: gated_norm(rows, gate, factors, 1e-6, **chosen),
        "scaled_add_norm fp8": lambda: scaled_add_norm(rows, rows, 0.25, factors, 1e-6, **chosen),
        "sigmoid_gate fp8": lambda: sigmoid_gate(rows, gate, **chosen),
        "silu_mul fp8": lambda: silu_mul(empty(TOKENS, 2 * PROJECTED), implementation=TRITON),
    }


def operators() -> dict[str, Callable[[], object]]:
    """Calls by name. Their inputs are never read."""

    def projection(rows: int) -> tuple[torch.Tensor, ...]:
        return empty(rows, PROJECTED).view(rows, 4, HEADS, DIM).unbind(1)

    weight, head_weight, decay = empty(WIDTH), empty(DIM), empty(HEADS, dtype=torch.float32)
    states = empty(REQUESTS, HEADS, DIM, DIM, dtype=torch.float32)
    slots = ints(*range(REQUESTS))
    q, k, v, _ = projection(TOKENS)
    q_step, k_step, v_step, _ = projection(REQUESTS)
    turned = empty(TOKENS, HEADS, DIM), empty(TOKENS, HEADS, DIM)
    inv_freq = empty(DIM // 2, dtype=torch.float32)
    chunk = *turned, v, states, ints(0), ints(0, TOKENS), ints(-1), ints(0), decay, 1.0
    step = head_weight, head_weight, slots, inv_freq, 1e-6, states, slots, slots, decay, 1.0
    q_rows, k_rows, v_rows, _ = projection(ROWS * REQUESTS)
    stash = empty(LAYERS, ROWS * REQUESTS, 2, HEADS, DIM)
    norm_rope = head_weight, head_weight, torch.arange(ROWS * REQUESTS), inv_freq, 1e-6
    verify = q_rows, k_rows, v_rows, *norm_rope, states, slots, stash[0], decay, 1.0
    commit = stash, ROWS, states.expand(LAYERS, *states.shape), slots, slots, slots, slots, decay
    rows, gate = empty(TOKENS, WIDTH), empty(TOKENS, PROJECTED)[:, -WIDTH:]
    return {
        "lightning_chunk": lambda: lightning_chunk(*chunk, implementation=TRITON),
        "lightning_step": lambda: lightning_step(q_step, k_step, v_step, *step, implementation=TRITON),
        "lightning_verify": lambda: lightning_verify(*verify, implementation=TRITON),
        "lightning_commit": lambda: lightning_commit(*commit, implementation=TRITON),
        "qk_norm_rope": lambda: qk_norm_rope(
            q, k, head_weight, head_weight, torch.arange(TOKENS), inv_freq, 1e-6, implementation=TRITON
        ),
        "gated_norm": lambda: gated_norm(rows, gate, weight, 1e-6, implementation=TRITON),
        "scaled_add_norm": lambda: scaled_add_norm(rows, rows, 0.25, weight, 1e-6, implementation=TRITON),
        "sigmoid_gate": lambda: sigmoid_gate(rows, gate, implementation=TRITON),
        "skinny_linear 1": lambda: skinny_linear(rows[:1], empty(PROJECTED, WIDTH), implementation=TRITON),
        f"skinny_linear {REQUESTS}": lambda: skinny_linear(
            rows[:REQUESTS], empty(PROJECTED, WIDTH), implementation=TRITON
        ),
        **quantised_operators(),
        **sparse_operators("prefill", [TOKENS]),
        **sparse_operators("decode", [1] * REQUESTS),
        **operators_of_fp8("prefill", [TOKENS]),
        **operators_of_fp8("decode", [1] * REQUESTS),
    }


def measured(word: str) -> Iterator[tuple]:
    """Rows of the operators whose name contains ``word``."""
    for name, call in operators().items():
        if word in name:
            yield from ((name, *measures(kernel)) for kernel in dict.fromkeys(compiled(call)))
    in_cuda = "sparse_attention prefill"
    if word in in_cuda:
        yield in_cuda, *measures_of_shared_blocks()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="CSV file; rows are appended")
    parser.add_argument("--only", default="", help="operators whose name contains this")
    options = parser.parse_args()
    columns = *COLUMNS, "triton"
    for row in measured(options.only):
        results_file.append(options.output, dict(zip(columns, (*row, triton.__version__), strict=True)), columns)
        print(f"{row[0]:32} {row[1]:24}" + "".join(f"{x:9}" for x in row[2:]), flush=True)


if __name__ == "__main__":
    main()
