"""Cases of the lightning layers."""

from collections.abc import Sequence
from functools import partial

import torch
from sala_kernels.lightning import lightning_chunk
from sala_kernels.lightning_step import lightning_step

from benchmarks.operators.cases.row_wise import EPS, NormRope
from benchmarks.operators.harness import floors
from benchmarks.operators.harness.case import Case, Choice, Target, Work
from benchmarks.operators.harness.checks import check_rows
from benchmarks.operators.harness.inputs import Setting
from benchmarks.operators.harness.peers import fla_chunk
from benchmarks.operators.harness.sizes import Sizes
from benchmarks.operators.harness.timing import Call

QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def cases(sizes: Sizes) -> list[Case]:
    chunk, (prompts, tokens) = sizes.chunk_tokens, sizes.prompts
    prefill = partial(Case, "lightning_chunk", operators=("lightning",), captured=False, peers=("fla",))
    decode = partial(Case, "lightning_step", operators=("lightning_step",), captured=True)
    fast = Target(250, "us"), Target(2, "x fla")
    aims = Target(5, "us"), Target(80, "% of copy"), Target(85, "% of copy")
    return [
        prefill(f"prefill 1 x {chunk}", build=partial(chunked, [chunk]), targets=fast),
        prefill(f"prefill {prompts} x {tokens}", build=partial(chunked, [tokens] * prompts), targets=fast),
        *(
            decode(f"decode {requests}", build=partial(step, requests), targets=(aim,))
            for requests, aim in zip(sizes.state_batches, aims, strict=True)
        ),
    ]


def log_decay(setting: Setting) -> torch.Tensor:
    """[H] float32, the model's."""
    heads = setting.sizes.query_heads
    return -(2.0 ** (-8 / heads * torch.arange(1, heads + 1, device=setting.device)))


def state_pool(slots: int, setting: Setting) -> torch.Tensor:
    """Random states [slots, H, D, D] float32."""
    heads, dim = setting.sizes.query_heads, setting.sizes.head_dim
    return setting.random(slots, heads, dim, dim, dtype=torch.float32)


def chunked(rows: Sequence[int], setting: Setting) -> Work:
    """Prompts of ``rows`` tokens in one step, without snapshots."""
    sizes = setting.sizes
    floor = floors.lightning_chunk(rows, sizes)

    def draw() -> QKV:
        return setting.queries(sum(rows)), setting.queries(sum(rows)), setting.queries(sum(rows))

    inputs = [draw() for _ in range(setting.sets(floor.read_bytes))]
    states, start, decay = state_pool(len(rows), setting), setting.query_start(rows), log_decay(setting)
    slots = torch.arange(len(rows), dtype=torch.int32, device=setting.device)
    metadata = slots, start, torch.full_like(slots, -1), torch.zeros_like(slots), decay, sizes.scale

    def run(qkv: QKV, pool: torch.Tensor, name: str) -> torch.Tensor:
        arguments = *qkv, pool, *metadata
        return lightning_chunk(*arguments, implementation=name)

    def calls(choice: Choice) -> list[Call]:
        name = choice("lightning")
        return [partial(run, x, states, name) for x in inputs]

    def check(choice: Choice) -> None:
        pools = [states.clone() for _ in range(2)]
        outputs = [
            run(inputs[0], pool, name) for pool, name in zip(pools, (choice("lightning"), "reference"), strict=True)
        ]
        check_rows("lightning_chunk output", *outputs)
        check_rows("lightning_chunk states", *pools)

    initial = states.clone()

    def peer() -> list[Call]:
        calls = fla_chunk(inputs, initial, start, decay, sizes.scale)
        expected = run(inputs[0], initial.clone(), "reference")
        check_rows("fla output", calls[0]()[0][0], expected)
        return calls

    return Work(floor, calls, check, {"fla": peer})


def step(requests: int, setting: Setting) -> Work:
    """A decode step, from the projection to the lightning output."""
    sizes = setting.sizes
    floor = floors.lightning_step(requests, sizes)
    sets = setting.sets(floor.read_bytes)
    states, decay = state_pool(sets * requests, setting), log_decay(setting)
    slots = torch.arange(sets * requests, dtype=torch.int32, device=setting.device).split(requests)
    rest = torch.full_like(slots[0], -1), decay, sizes.scale
    inputs = [NormRope(requests, setting) for _ in range(sets)]

    def run(i: int, pool: torch.Tensor, name: str) -> torch.Tensor:
        q, k, q_weight, k_weight, positions, inv_freq = inputs[i].arguments
        norm_rope = q_weight, k_weight, positions, inv_freq, EPS
        arguments = q, k, inputs[i].v, *norm_rope, pool, slots[i], *rest
        return lightning_step(*arguments, implementation=name)

    def calls(choice: Choice) -> list[Call]:
        return [partial(run, i, states, choice("lightning_step")) for i in range(sets)]

    def check(choice: Choice) -> None:
        pools = [states.clone() for _ in range(2)]
        names = choice("lightning_step"), "reference"
        outputs = [run(0, pool, name) for pool, name in zip(pools, names, strict=True)]
        check_rows("lightning_step output", *outputs)
        check_rows("lightning_step states", *pools)

    return Work(floor, calls, check)
