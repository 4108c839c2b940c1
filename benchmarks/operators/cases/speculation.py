"""Cases of a verify step of the lightning layers, and of the commit of what it accepted."""

from functools import partial

import torch
from sala_kernels.lightning_commit import lightning_commit
from sala_kernels.lightning_verify import lightning_verify

from benchmarks.operators.cases.lightning import log_decay, state_pool
from benchmarks.operators.cases.row_wise import EPS, NormRope
from benchmarks.operators.harness import floors
from benchmarks.operators.harness.case import Case, Choice, Target, Work
from benchmarks.operators.harness.checks import check_rows
from benchmarks.operators.harness.inputs import Setting
from benchmarks.operators.harness.sizes import Sizes
from benchmarks.operators.harness.timing import Call

ROWS = 4  # per request in a verify step
LAYERS = 24  # lightning layers of the released model


def cases(sizes: Sizes) -> list[Case]:
    verify = partial(Case, "lightning_verify", operators=("lightning_verify",), captured=True)
    committed = partial(Case, "lightning_commit", operators=("lightning_commit",), captured=False)
    aims = Target(30, "us"), Target(80, "% of copy"), Target(80, "% of copy")
    return [
        *(verify(f"verify {n} x {ROWS}", build=partial(verified, n)) for n in sizes.state_batches),
        *(
            committed(f"commit {n} x {ROWS}", build=partial(commit, n), targets=(aim,))
            for n, aim in zip(sizes.state_batches, aims, strict=True)
        ),
    ]


def verified(requests: int, setting: Setting) -> Work:
    """A verify step of one layer, from the projection to the lightning output."""
    sizes = setting.sizes
    floor = floors.lightning_verify(requests, ROWS, sizes)
    sets = setting.sets(floor.read_bytes)
    states, decay = state_pool(sets * requests, setting), log_decay(setting)
    slots = torch.arange(sets * requests, dtype=torch.int32, device=setting.device).split(requests)
    inputs = [NormRope(requests * ROWS, setting) for _ in range(sets)]
    stash = setting.random(requests * ROWS, 2, sizes.query_heads, sizes.head_dim)

    def run(i: int, kept: torch.Tensor, name: str) -> torch.Tensor:
        q, k, q_weight, k_weight, positions, inv_freq = inputs[i].arguments
        norm_rope = q_weight, k_weight, positions, inv_freq, EPS
        arguments = q, k, inputs[i].v, *norm_rope, states, slots[i], kept, decay, sizes.scale
        return lightning_verify(*arguments, implementation=name)

    def calls(choice: Choice) -> list[Call]:
        return [partial(run, i, stash, choice("lightning_verify")) for i in range(sets)]

    def check(choice: Choice) -> None:
        kept = [torch.zeros_like(stash) for _ in range(2)]
        outputs = [run(0, x, name) for x, name in zip(kept, (choice("lightning_verify"), "reference"), strict=True)]
        check_rows("lightning_verify output", *outputs)
        check_rows("lightning_verify stash", *(x.flatten(0, 1) for x in kept))

    return Work(floor, calls, check)


def commit(requests: int, setting: Setting) -> Work:
    """The commit of all layers where every draft was accepted."""
    sizes = setting.sizes
    floor = floors.lightning_commit(requests, LAYERS, sizes)
    sets = setting.sets(floor.read_bytes)
    states = state_pool(LAYERS * sets * requests, setting).unflatten(0, (LAYERS, -1))
    slots = torch.arange(sets * requests, dtype=torch.int32, device=setting.device).split(requests)
    stash = setting.random(LAYERS, requests * ROWS, 2, sizes.query_heads, sizes.head_dim)
    accepted, nowhere = torch.full_like(slots[0], ROWS), torch.full_like(slots[0], -1)

    def run(i: int, pool: torch.Tensor, name: str) -> None:
        rest = slots[i], accepted, nowhere, nowhere, log_decay(setting)
        lightning_commit(stash, ROWS, pool, *rest, implementation=name)

    def calls(choice: Choice) -> list[Call]:
        return [partial(run, i, states, choice("lightning_commit")) for i in range(sets)]

    def check(choice: Choice) -> None:
        pools = [states.clone() for _ in range(2)]
        for pool, name in zip(pools, (choice("lightning_commit"), "reference"), strict=True):
            run(0, pool, name)
        check_rows("lightning_commit states", *(pool.flatten(0, 1) for pool in pools))

    return Work(floor, calls, check)
