"""The rows of the table of compiled kernels: what is launched on a GPU of each capability, and how to compile it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import triton
from sala_kernels import targets
from sala_kernels.ahead import Launch, launches_of
from sala_kernels.kv_scales import FIRST_CAPABILITY
from sala_kernels.sparse_attention import CUDA_GROUPS, shared_blocks
from sala_kernels.targets import Capability

from benchmarks.operators.ahead.calls import FORMS, FP8_CACHE, OWN_PRODUCTS, Form, operators
from benchmarks.operators.ahead.compiler import Measures, measures, measures_of_shared_blocks

DEFAULT_WARPS, DEFAULT_STAGES = 4, 3  # Triton's
IN_CUDA = "sparse_attention"  # the operator that has a kernel in CUDA C++


class Key(NamedTuple):
    """What tells rows apart."""

    capability: str
    operator: str
    kernel: str
    dtype: str
    sizes: str
    warps: int
    stages: int


COLUMNS = (*Key._fields, "chosen", "registers", "spill_bytes", "stack_bytes", "shared_bytes", "per_sm", "triton")


class Entry(NamedTuple):
    """A row to come: what is launched, and how to compile it."""

    key: Key
    chosen: str
    measure: Callable[[], Measures]


def entries(capability: Capability, forms: tuple[Form, ...] = FORMS, only: str = "") -> Iterator[Entry]:
    """Everything that is launched on a GPU of ``capability``, each once; compiles nothing."""
    seen = set()
    for form in (form for form in forms if _is_served(form, capability)):
        for operator, call in operators(form):
            if only not in operator:
                continue
            for launch, compile_it in launches_of(call, capability):
                key = _key(capability, operator, form, launch)
                if key not in seen:
                    seen.add(key)
                    yield Entry(key, _chosen(launch.kernel, capability), _measure(compile_it, capability))
    if only in IN_CUDA and capability in targets.PATHS[targets.SHARED_BLOCKS].possible:
        for group in CUDA_GROUPS:
            defined = shared_blocks.definitions(group, capability)
            warps = shared_blocks.WARPS + shared_blocks.FETCHING_WARPS
            key = Key(
                capability_name(capability),
                IN_CUDA,
                shared_blocks.NAME,
                "bfloat16",
                f"GROUP={group}",
                warps,
                defined["STAGES"],
            )
            chosen = _chosen(shared_blocks.NAME, capability) if defined["STAGES"] == shared_blocks.STAGES else "derived"
            yield Entry(key, chosen, partial(measures_of_shared_blocks, group, capability))


def _is_served(form: Form, capability: Capability) -> bool:
    """Own products are off until they are measured, so they are compiled for the GPUs that will measure them."""
    if form.special == OWN_PRODUCTS:
        return capability == targets.HOPPER
    return form.special != FP8_CACHE or capability >= FIRST_CAPABILITY


def capability_name(capability: Capability) -> str:
    return "{}.{}".format(*capability)


def _key(capability: Capability, operator: str, form: Form, launch: Launch) -> Key:
    options = dict(launch.options)
    warps, stages = options.get("num_warps", DEFAULT_WARPS), options.get("num_stages", DEFAULT_STAGES)
    return Key(capability_name(capability), operator, launch.kernel, str(form), launch.sizes, warps, stages)


def _chosen(kernel: str, capability: Capability) -> str:
    if capability == targets.HOPPER:
        return "measured"
    return "derived" if targets.changed_options(kernel, capability) else "as on 9.0"


def _measure(compile_it: Callable[[], Any], capability: Capability) -> Callable[[], Measures]:
    return lambda: measures(compile_it(), capability)


def row(entry: Entry) -> dict[str, Any]:
    """The entry compiled, as COLUMNS. Raises RuntimeError where it does not compile."""
    found = entry.measure()
    assert (found.warps, found.stages) == (entry.key.warps, entry.key.stages), entry.key
    return vars(found) | entry._asdict()["key"]._asdict() | {"chosen": entry.chosen, "triton": triton.__version__}
