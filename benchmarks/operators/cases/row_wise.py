"""Cases of the operators that treat every row by itself, and of the ceilings that all cases are compared with."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from sala_kernels.gated_norm import gated_norm
from sala_kernels.qk_norm_rope import qk_norm_rope
from sala_kernels.scaled_add_norm import scaled_add_norm
from sala_kernels.sigmoid_gate import sigmoid_gate
from sala_kernels.skinny_linear import skinny_linear

from benchmarks.operators.harness import floors
from benchmarks.operators.harness.case import Case, Choice, Target, Work
from benchmarks.operators.harness.checks import check_rows
from benchmarks.operators.harness.inputs import Setting
from benchmarks.operators.harness.sizes import Sizes
from benchmarks.operators.harness.timing import Call

EPS = 1e-6
RESIDUAL_SCALE = 0.25


def ceilings(sizes: Sizes) -> list[Case]:
    """Copy bandwidth first: the shares of all rows refer to it."""
    side = sizes.matmul_side
    ceiling = partial(Case, operators=(), captured=False)
    return [
        ceiling("copy", f"{sizes.copy_bytes} bytes", build=copy),
        ceiling("matmul", f"{side} x {side} x {side}", build=matmul),
    ]


def cases(sizes: Sizes) -> list[Case]:
    rows = f"{sizes.chunk_tokens} rows"
    row_wise = partial(Case, name=rows, captured=True, targets=(Target(80, "% of copy"),))
    return [
        row_wise("qk_norm_rope", operators=("qk_norm_rope",), build=norm_rope),
        row_wise("gated_norm", operators=("gated_norm",), build=gate_norm),
        row_wise("scaled_add_norm", operators=("scaled_add_norm",), build=add_norm),
        row_wise("sigmoid_gate", operators=("sigmoid_gate",), build=gate, peers=("torch",)),
        *(
            Case(
                "skinny_linear",
                f"{requests} x {sizes.width} x {4 * sizes.width}",
                operators=("skinny_linear",),
                captured=True,
                build=partial(product, requests),
                peers=("torch",),
            )
            for requests in (1, len(sizes.mixed_lengths))
        ),
    ]


def copy(setting: Setting) -> Work:
    size_bytes = setting.sizes.copy_bytes
    source, target = (torch.zeros(size_bytes, dtype=torch.uint8, device=setting.device) for _ in range(2))
    return Work(floors.copy(size_bytes), lambda choice: [partial(target.copy_, source)])


def matmul(setting: Setting) -> Work:
    side = setting.sizes.matmul_side
    left, right, product = (setting.random(side, side) for _ in range(3))
    return Work(floors.matmul(side), lambda choice: [partial(torch.mm, left, right, out=product)])


class NormRope:
    """Arguments of qk_norm_rope but the last, and v, from one projection [T, q k v gate] as the model has it."""

    def __init__(self, tokens: int, setting: Setting):
        heads, dim = setting.sizes.query_heads, setting.sizes.head_dim
        q, k, self.v, _ = setting.random(tokens, 4, heads, dim).unbind(1)
        weights = setting.random(dim), setting.random(dim)
        positions = torch.arange(tokens, device=setting.device)
        inv_freq = 1e4 ** (-torch.arange(0, dim, 2, device=setting.device) / dim)
        self.arguments = (q, k, *weights, positions, inv_freq)


def norm_rope(setting: Setting) -> Work:
    tokens, width = setting.sizes.chunk_tokens, setting.sizes.width
    floor = floors.row_wise(tokens, width, read=2, written=2)
    inputs = [(*NormRope(tokens, setting).arguments, EPS) for _ in range(setting.sets(floor.read_bytes))]
    return _work(floor, "qk_norm_rope", qk_norm_rope, inputs)


def gate_norm(setting: Setting) -> Work:
    """The gate is the last part of the projection to q, k, v and gate."""
    tokens, width = setting.sizes.chunk_tokens, setting.sizes.width
    floor = floors.row_wise(tokens, width, read=2, written=1)
    inputs = [
        (setting.random(tokens, width), setting.random(tokens, 4 * width)[:, -width:], setting.random(width), EPS)
        for _ in range(setting.sets(floor.read_bytes))
    ]
    return _work(floor, "gated_norm", gated_norm, inputs)


def add_norm(setting: Setting) -> Work:
    tokens, width = setting.sizes.chunk_tokens, setting.sizes.width
    floor = floors.row_wise(tokens, width, read=2, written=2)
    inputs = [
        (setting.random(tokens, width), setting.random(tokens, width), RESIDUAL_SCALE, setting.random(width), EPS)
        for _ in range(setting.sets(floor.read_bytes))
    ]
    return _work(floor, "scaled_add_norm", scaled_add_norm, inputs)


def gate(setting: Setting) -> Work:
    """The output gate of the sparse layers; the gate is the last part of a projection."""
    sizes, tokens = setting.sizes, setting.sizes.chunk_tokens
    floor = floors.row_wise(tokens, sizes.width, read=2, written=1)
    projected = 2 * sizes.width + 2 * sizes.kv_heads * sizes.head_dim
    inputs = [
        (setting.random(tokens, sizes.width), setting.random(tokens, projected)[:, -sizes.width :])
        for _ in range(setting.sets(floor.read_bytes))
    ]
    work = _work(floor, "sigmoid_gate", sigmoid_gate, inputs)
    return replace(work, peers={"torch": lambda: [partial(lambda x, gate: x * gate.sigmoid(), *x) for x in inputs]})


def product(rows: int, setting: Setting) -> Work:
    """The projection of a lightning layer to q, k, v and gate."""
    width, outputs = setting.sizes.width, 4 * setting.sizes.width
    floor = floors.product(rows, width, outputs)
    inputs = [
        (setting.random(rows, width), setting.random(outputs, width)) for _ in range(setting.sets(floor.read_bytes))
    ]
    work = _work(floor, "skinny_linear", skinny_linear, inputs)
    return replace(work, peers={"torch": lambda: [partial(torch.nn.functional.linear, *x) for x in inputs]})


def _work(floor: floors.Floor, name: str, operator: Callable, inputs: list[tuple]) -> Work:
    """An operator that returns a tensor or several, each compared with the reference as a whole."""

    def calls(choice: Choice) -> list[Call]:
        return [partial(operator, *arguments, implementation=choice(name)) for arguments in inputs]

    def check(choice: Choice) -> None:
        outputs = calls(choice)[0](), calls(lambda _: "reference")[0]()
        for pair in zip(*(x if isinstance(x, tuple) else (x,) for x in outputs), strict=True):
            check_rows(name, *pair)

    return Work(floor, calls, check)
