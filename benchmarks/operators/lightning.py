"""Cases of the lightning layers."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from sala_kernels.lightning import lightning_chunk, lightning_recurrent
from sala_kernels.lightning_step import lightning_step
from sala_kernels.qk_norm_rope import qk_norm_rope

from . import floors
from .cases import Case, Choice, Target, Work
from .checks import check_rows
from .inputs import Setting
from .peers import fla_chunk
from .row_wise import EPS, NormRope
from .sizes import Sizes
from .timing import Call

CHUNK, RECURRENT = "lightning.lightning_chunk", "lightning.lightning_recurrent"


def cases(sizes: Sizes) -> list[Case]:
    chunk, (prompts, tokens) = sizes.chunk_tokens, sizes.prompts
    prefill = partial(Case, "lightning_chunk", operators=(CHUNK,), captured=False, peers=("fla",))
    steps = [
        partial(Case, "qk_norm_rope + lightning_recurrent", operators=("qk_norm_rope", RECURRENT), captured=True),
        partial(Case, "lightning_step", operators=("lightning_step",), captured=True),
    ]
    fast = Target(250, "us"), Target(2, "x fla")
    aims = Target(5, "us"), Target(80, "% of copy"), Target(85, "% of copy")
    return [
        prefill(f"prefill 1 x {chunk}", build=partial(chunked, [chunk]), targets=fast),
        prefill(f"prefill {prompts} x {tokens}", build=partial(chunked, [tokens] * prompts), targets=fast),
        *(
            decode(f"decode {requests}", build=partial(build, requests), targets=(aim,))
            for requests, aim in zip(sizes.state_batches, aims, strict=True)
            for decode, build in zip(steps, (step, fused_step), strict=True)
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
    inputs = [[setting.queries(sum(rows)) for _ in range(3)] for _ in range(setting.sets(floor.read_bytes))]
    states, start, decay = state_pool(len(rows), setting), setting.query_start(rows), log_decay(setting)
    slots = torch.arange(len(rows), dtype=torch.int32, device=setting.device)
    metadata = slots, start, torch.full_like(slots, -1), torch.zeros_like(slots), decay, sizes.scale

    def calls(choice: Choice) -> list[Call]:
        name = choice(CHUNK)
        return [partial(lightning_chunk, *x, states, *metadata, implementation=name) for x in inputs]

    def check(choice: Choice) -> None:
        pools = [states.clone() for _ in range(2)]
        outputs = [
            lightning_chunk(*inputs[0], pool, *metadata, implementation=name)
            for pool, name in zip(pools, (choice(CHUNK), "reference"), strict=True)
        ]
        check_rows("lightning_chunk output", *outputs)
        check_rows("lightning_chunk states", *pools)

    initial = states.clone()

    def peer() -> list[Call]:
        calls = fla_chunk(inputs, initial, start, decay, sizes.scale)
        expected = lightning_chunk(*inputs[0], initial.clone(), *metadata, implementation="reference")
        check_rows("fla output", calls[0]()[0][0], expected)
        return calls

    return Work(floor, calls, check, {"fla": peer})


def step(requests: int, setting: Setting) -> Work:
    """A decode step, from the projection to the lightning output, as the model computes it."""

    def run(inputs: NormRope, *rest, choice: Choice) -> torch.Tensor:
        q, k = qk_norm_rope(*inputs.arguments, EPS, implementation=choice("qk_norm_rope"))
        return lightning_recurrent(q, k, inputs.v, *rest, implementation=choice(RECURRENT))

    return _decode(requests, setting, "lightning_recurrent", run)


def fused_step(requests: int, setting: Setting) -> Work:
    """The same in one operator."""

    def run(inputs: NormRope, *rest, choice: Choice) -> torch.Tensor:
        q, k, *norm_rope = inputs.arguments
        return lightning_step(q, k, inputs.v, *norm_rope, EPS, *rest, implementation=choice("lightning_step"))

    return _decode(requests, setting, "lightning_step", run)


def _decode(requests: int, setting: Setting, operator: str, run: Callable[..., torch.Tensor]) -> Work:
    """``run`` gets the rows of a step, the states, their slots and the rest of the arguments of lightning_recurrent."""
    sizes = setting.sizes
    floor = floors.lightning_step(requests, sizes)
    sets = setting.sets(floor.read_bytes)
    states, decay = state_pool(sets * requests, setting), log_decay(setting)
    slots = torch.arange(sets * requests, dtype=torch.int32, device=setting.device).split(requests)
    rest = torch.full_like(slots[0], -1), decay, sizes.scale
    inputs = [NormRope(requests, setting) for _ in range(sets)]

    def calls(choice: Choice) -> list[Call]:
        return [partial(run, inputs[i], states, slots[i], *rest, choice=choice) for i in range(sets)]

    def check(choice: Choice) -> None:
        pools = [states.clone() for _ in range(2)]
        outputs = [
            run(inputs[0], pool, slots[0], *rest, choice=how)
            for pool, how in zip(pools, (choice, lambda _: "reference"), strict=True)
        ]
        check_rows(f"{operator} output", *outputs)
        check_rows(f"{operator} states", *pools)

    return Work(floor, calls, check)
