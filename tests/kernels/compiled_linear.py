"""Prints how kernels of skinny_linear compile for Hopper: spilled bytes, and loads of 16 bytes from global memory.

Run without TRITON_INTERPRET; no GPU is needed.
"""

import json
import re
from collections.abc import Callable

import torch
from sala_kernels import targets
from sala_kernels.ahead import launches_of
from sala_kernels.skinny_linear import skinny_linear

from benchmarks.operators.ahead.compiler import measures
from benchmarks.operators.linear_kernels import BLOCK, CHANNEL, INT4, make_weight
from sala_sglang.ahead.calls import TRITON

ROWS, OUTPUTS, INPUTS = 8, 4096, 4096


def call(form: str) -> Callable[[], object]:
    weight, x = make_weight(form, OUTPUTS, INPUTS, "cpu"), torch.empty(ROWS, INPUTS, dtype=torch.bfloat16)
    assert weight is not None
    return lambda: skinny_linear(x, weight, implementation=TRITON)


if __name__ == "__main__":
    found = {}
    for form in (CHANNEL, BLOCK, INT4):
        ((_, compile_it),) = launches_of(call(form), targets.HOPPER)
        kernel = compile_it()
        measured = measures(kernel, targets.HOPPER)
        wide = len(re.findall(r"cp\.async\.cg\.shared\.global .*0x10|ld\.global\S*\.v4\.b32", kernel.asm["ptx"]))
        found[form] = {"spills": measured.spill_bytes, "programs": measured.per_sm, "wide_loads": wide}
    print(json.dumps(found))
