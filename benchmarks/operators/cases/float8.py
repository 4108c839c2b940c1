"""Cases of the operators that write rows of FP8, beside the same in 16 bits with SGLang's quantiser behind it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sala_kernels.float8_rows import Float8Rows, empty_float8_rows
from sala_kernels.gated_norm import gated_norm
from sala_kernels.scaled_add_norm import scaled_add_norm
from sala_kernels.sigmoid_gate import sigmoid_gate
from sala_kernels.silu_mul import silu_mul

from benchmarks.operators.cases.row_wise import EPS, RESIDUAL_SCALE
from benchmarks.operators.harness.case import Case, Choice, Target, Work
from benchmarks.operators.harness.checks import FLOAT8_ROW_BOUND, check_rows
from benchmarks.operators.harness.floors import ELEMENT_BYTES, Floor
from benchmarks.operators.harness.inputs import Setting
from benchmarks.operators.harness.sizes import Sizes
from benchmarks.operators.harness.timing import Call

PEER = "two kernels"
SCALE_BYTES = 4
MLP_WIDTHS = 4  # columns of the MLP in units of the hidden size


def cases(sizes: Sizes) -> list[Case]:
    name = f"{sizes.chunk_tokens} rows to FP8"
    written = partial(Case, name=name, captured=True, targets=(Target(80, "% of copy"),), peers=(PEER,))
    return [
        written("gated_norm", operators=("gated_norm",), build=partial(work, gated_norm)),
        written("scaled_add_norm", operators=("scaled_add_norm",), build=partial(work, scaled_add_norm)),
        written("sigmoid_gate", operators=("sigmoid_gate",), build=partial(work, sigmoid_gate)),
        written("silu_mul", operators=("silu_mul",), build=partial(work, silu_mul)),
    ]


def arguments(operator: Callable, setting: Setting) -> tuple[Any, ...]:
    """One set; gates are the last part of a projection to q, k, v and gate."""
    tokens, width = setting.sizes.chunk_tokens, setting.sizes.width
    if operator is silu_mul:
        return (setting.random(tokens, 2 * MLP_WIDTHS * width),)
    rows, gate = setting.random(tokens, width), setting.random(tokens, 4 * width)[:, -width:]
    return {
        gated_norm: (rows, gate, setting.random(width), EPS),
        scaled_add_norm: (rows, setting.random(tokens, width), RESIDUAL_SCALE, setting.random(width), EPS),
        sigmoid_gate: (rows, gate),
    }[operator]


def work(operator: Callable, setting: Setting) -> Work:
    tokens, width = setting.sizes.chunk_tokens, setting.sizes.width
    columns = MLP_WIDTHS * width if operator is silu_mul else width
    hidden_bytes = tokens * width * ELEMENT_BYTES if operator is scaled_add_norm else 0
    floor = Floor(2 * tokens * columns * ELEMENT_BYTES, tokens * (columns + SCALE_BYTES) + hidden_bytes)
    inputs = [arguments(operator, setting) for _ in range(setting.sets(floor.read_bytes))]
    name, chosen = operator.__name__, {} if operator is silu_mul else {"to_float8": True}

    def calls(choice: Choice) -> list[Call]:
        return [partial(operator, *each, **chosen, implementation=choice(name)) for each in inputs]

    def check(choice: Choice) -> None:
        outputs = (first(calls(wanted)[0]()) for wanted in (choice, lambda _: "reference"))
        values = (rows.codes.float() * rows.scales for rows in outputs)
        check_rows(name, *values, bound=FLOAT8_ROW_BOUND)

    return Work(floor, calls, check, {PEER: lambda: [quantised(operator, each) for each in inputs]})


def first(output: Any) -> Any:
    """The rows that an operator returns, alone or with others."""
    return output[0] if isinstance(output, tuple) and not isinstance(output, Float8Rows) else output


def quantised(operator: Callable, given: tuple[Any, ...]) -> Call:
    """The operator in 16 bits, SGLang's for the activation, and SGLang's quantiser of tokens."""
    from sglang.kernels.ops.activation.activation import silu_and_mul
    from sglang.kernels.ops.quantization.per_token_quant_fp8 import per_token_quant_fp8

    def activate(gate_up: torch.Tensor) -> torch.Tensor:
        output = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
        silu_and_mul(gate_up, output)
        return output

    def call() -> Float8Rows:
        rows = first(activate(*given) if operator is silu_mul else operator(*given))
        output = empty_float8_rows(rows.shape[0], rows.shape[1], rows.device)
        per_token_quant_fp8(rows, *output)
        return output

    return call
