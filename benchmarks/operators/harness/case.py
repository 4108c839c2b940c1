"""What a case is: how it is built, what it aims at, and with which implementations it is measured."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
from sala_kernels.contract import default_implementation
from sala_kernels.sparse_attention import serving_implementation

from benchmarks.operators.harness.floors import Floor
from benchmarks.operators.harness.inputs import Setting
from benchmarks.operators.harness.timing import Call

Choice = Callable[[str], str]  # operator -> implementation


@dataclass(frozen=True)
class Target:
    """``value`` in ``unit``: at most for ``us``; at least for ``TFLOP/s``, ``% of copy`` and ``x fla``."""

    value: float
    unit: str


@dataclass(frozen=True)
class Work:
    """A case with its inputs.

    calls: one call per input set. check: raises AssertionError unless the first call gives what the reference gives.
    peers: by library, a function that returns its checked calls on the same inputs; ImportError where it is missing.
    """

    floor: Floor
    calls: Callable[[Choice], list[Call]]
    check: Callable[[Choice], None] = lambda choice: None
    peers: dict[str, Callable[[], list[Call]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One line of work. ``operator`` is its name in the results, ``operators`` the packages that it calls.

    captured: whether the server replays it from a CUDA graph. peers: libraries, measured beside it on a GPU.
    """

    operator: str
    name: str
    operators: tuple[str, ...]
    captured: bool
    build: Callable[[Setting], Work]
    targets: tuple[Target, ...] = ()
    peers: tuple[str, ...] = ()

    def rows(self, names: list[str], setting: Setting) -> dict[str, Choice | None]:
        """The rows to measure, by implementation; None for a peer. ``names`` as asked for, empty for what serves.

        No rows at all where no operator of the case has one of ``names``.
        """
        if not self.operators:
            return {"torch": serving(setting)}
        named = [asked(name, setting) for name in names if any(has(package, name) for package in self.operators)]
        rows = {self.label(choice): choice for choice in (named if names else [serving(setting)])}
        peers = self.peers if rows and setting.device.type == "cuda" else ()
        return rows | dict.fromkeys(peers)

    def label(self, choice: Choice) -> str:
        return " + ".join(dict.fromkeys(map(choice, self.operators)))

    def title(self, implementation: str) -> str:
        """What ``--only`` is compared with."""
        return f"{self.operator} {self.name} {implementation}"


def has(operator: str, name: str) -> bool:
    """Whether ``operator``, a package of sala_kernels, has an implementation called ``name``."""
    return find_spec(f"sala_kernels.{operator}.{name}") is not None


def serving(setting: Setting) -> Choice:
    """Every operator as the server runs it."""
    sizes, device = setting.sizes, setting.device
    heads = sizes.head_dim, sizes.query_heads // sizes.kv_heads
    chosen = {"sparse_attention": serving_implementation(device, torch.bfloat16, *heads, sizes.geometry.block_size)}
    return lambda operator: chosen.get(operator, default_implementation(device))


def asked(name: str, setting: Setting) -> Choice:
    """``name`` where an operator has it; an operator of a joint case that lacks it as it is served."""
    served = serving(setting)
    return lambda operator: name if has(operator, name) else served(operator)
