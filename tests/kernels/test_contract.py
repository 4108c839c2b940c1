"""What all operators promise: errors that name the tensor, an explicit choice of implementation, and no way up."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sala_kernels
import torch
from sala_kernels.compress_keys import compress_keys
from sala_kernels.contract import check_dtypes, check_groups, check_shapes, default_implementation, implementation_of
from sala_kernels.gated_norm import gated_norm
from sala_kernels.layout import SparseGeometry
from sala_kernels.lightning import lightning_chunk
from sala_kernels.lightning_commit import lightning_commit
from sala_kernels.lightning_step import lightning_step
from sala_kernels.lightning_verify import lightning_verify
from sala_kernels.qk_norm_rope import qk_norm_rope
from sala_kernels.scaled_add_norm import scaled_add_norm
from sala_kernels.select_blocks import select_blocks
from sala_kernels.sigmoid_gate import sigmoid_gate
from sala_kernels.sparse_attention import sparse_attention
from sala_kernels.store_kv import store_kv

from testing.server import START_SECONDS
from tests.import_graph import imports
from tests.kernels.paging import empty_compressed, make_batch

ROOT = Path(__file__).parents[2]
KERNELS = Path(sala_kernels.__file__).parent
SOURCES = sorted(KERNELS.rglob("*.py"))
IMPLEMENTATIONS = {"reference", "triton", "cuda"}


def valid_arguments() -> dict:
    """Arguments that every operator accepts, by operator."""
    geometry = SparseGeometry()
    batch, pages = make_batch([3], [3], geometry, "cpu")
    rows, slots = torch.zeros(3, 4, 16), torch.zeros(3, dtype=torch.int32)
    pool = torch.zeros(pages * 64, 2, 16)
    paged = {"batch": batch, "geometry": geometry}
    compressed = empty_compressed(pages, geometry, 2, 16, rows)
    block_ids = torch.zeros(3, 2, geometry.selected_blocks, dtype=torch.int32)
    lightning = {
        "q": rows,
        "k": rows,
        "v": rows,
        "states": torch.zeros(5, 4, 16, 16),
        "state_slots": slots,
        "snapshot_slots": slots - 1,
        "log_decay": -torch.ones(4),
        "scale": 1.0,
    }
    starts = {"query_start": torch.arange(4, dtype=torch.int32), "snapshot_tokens": slots}
    wide, weight = torch.zeros(3, 16), torch.ones(16)
    rope = {"positions": slots, "inv_freq": torch.ones(8), "eps": 1e-6}
    norm_rope = {"q_weight": weight, "k_weight": weight} | rope
    without_snapshots = {name: value for name, value in lightning.items() if name != "snapshot_slots"}
    commit = {
        "stash": torch.zeros(2, 3, 2, 4, 16),
        "rows": 1,
        "states": torch.zeros(2, 5, 4, 16, 16),
        "state_slots": slots,
        "accepted_rows": slots,
        "snapshot_slots": slots - 1,
        "snapshot_rows": slots,
        "log_decay": -torch.ones(4),
    }
    return {
        lightning_chunk: lightning | starts,
        lightning_step: lightning | norm_rope,
        lightning_verify: without_snapshots | norm_rope | {"stash": torch.zeros(3, 2, 4, 16)},
        lightning_commit: commit,
        qk_norm_rope: {"q": rows, "k": rows[:, :2]} | norm_rope,
        sigmoid_gate: {"x": wide, "gate": wide},
        gated_norm: {"x": wide, "gate": wide, "weight": weight, "eps": 1e-6, "mean_square": torch.ones(3)},
        scaled_add_norm: {"x": wide, "residual": wide, "scale": 0.5, "weight": weight, "eps": 1e-6},
        compress_keys: {"keys": pool, "compressed": compressed} | paged,
        select_blocks: {"queries": rows, "compressed": compressed, "scale": 1.0} | paged,
        sparse_attention: {
            "queries": rows,
            "keys": pool,
            "values": pool,
            "block_ids": block_ids,
            "scale": 1.0,
        }
        | paged,
        store_kv: {
            "k": rows[:, :2],
            "v": rows[:, 2:],
            "keys": pool.to(torch.float8_e4m3fn),
            "values": pool.to(torch.float8_e4m3fn),
            "slots": slots.long(),
            "kv_scales": torch.ones(2, 2),
        },
    }


OPERATORS = valid_arguments()
TENSORS = [
    pytest.param(operator, name, id=f"{operator.__name__}-{name}")
    for operator, arguments in OPERATORS.items()
    for name, value in arguments.items()
    if isinstance(value, torch.Tensor)
]
every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
every_tensor = pytest.mark.parametrize(("operator", "name"), TENSORS)


@every_operator
def test_valid_arguments_are_accepted(operator):
    operator(**OPERATORS[operator])


@every_tensor
def test_another_rank_is_refused_by_name(operator, name):
    arguments = OPERATORS[operator]
    with pytest.raises(ValueError, match=rf"^{name}: expected shape \["):
        operator(**arguments | {name: arguments[name][None]})


@every_tensor
def test_another_size_is_refused(operator, name):
    # The first tensor that has a dimension decides its size, so the error may name the next one.
    arguments = OPERATORS[operator]
    with pytest.raises(ValueError, match=r"^\w+: expected \S+ = \d+, got shape \["):
        operator(**arguments | {name: torch.cat([arguments[name]] * 2, dim=-1)})


ANY_DTYPE = "lightning_commit-stash"  # nothing beside it has the model's dtype


@pytest.mark.parametrize(
    ("operator", "name"), [case for case in TENSORS if "positions" not in case.values and case.id != ANY_DTYPE]
)
def test_another_dtype_is_refused(operator, name):
    arguments = OPERATORS[operator]
    first = next(iter(arguments))  # it decides the dtype of those that follow
    with pytest.raises(TypeError, match=r"^\w+: expected dtype" if name == first else f"^{name}: expected dtype"):
        operator(**arguments | {name: arguments[name].to(torch.float16)})


@pytest.mark.parametrize("name", ["q", "k", "v", "states"])
@pytest.mark.parametrize("operator", [lightning_chunk, lightning_step])
def test_lightning_refuses_strided_rows(operator, name):
    arguments = OPERATORS[operator]
    with pytest.raises(ValueError, match=f"^{name}: expected contiguous"):
        operator(**arguments | {name: torch.cat([arguments[name]] * 2, dim=-1)[..., ::2]})


@every_operator
def test_unknown_implementation_is_refused(operator):
    with pytest.raises(ValueError, match="implementation: got 'cutlass', allowed are 'reference', 'triton', 'cuda'"):
        operator(**OPERATORS[operator], implementation="cutlass")


@pytest.mark.parametrize("operator", sorted(path.parent.name for path in SOURCES if path.name == "triton.py"))
def test_choice_of_implementation(operator):
    package, tensor = f"sala_kernels.{operator}", torch.zeros(1)
    assert default_implementation(torch.device("cpu")) == "reference"
    assert default_implementation(torch.device("cuda")) == "triton"
    assert implementation_of(package, None, tensor).__name__ == f"{package}.reference"
    for name in ("reference", "triton"):
        assert implementation_of(package, name, tensor).__name__ == f"{package}.{name}"


def test_an_implementation_that_the_operator_lacks_is_refused():
    with pytest.raises(ValueError, match=r"implementation: got 'cuda', which sala_kernels\.sigmoid_gate does not have"):
        implementation_of("sala_kernels.sigmoid_gate", "cuda", torch.zeros(1))


def test_shapes_share_symbols():
    a, b = torch.zeros(2, 3), torch.zeros(3, 7)
    assert check_shapes({"X": 7}, a=(a, "T D"), b=(b, "D X")) == {"X": 7, "T": 2, "D": 3}
    check_shapes(a=(a, "_ 3"), b=(b, "_ _"))  # a wildcard may be 2, 3 and 7 at once
    with pytest.raises(ValueError, match=r"b: expected D = 3, got shape \[4, 7\]"):
        check_shapes(a=(a, "T D"), b=(torch.zeros(4, 7), "D X"))
    with pytest.raises(ValueError, match=r"a: expected 4 = 4, got shape \[2, 3\]"):
        check_shapes(a=(a, "T 4"))
    with pytest.raises(ValueError, match=r"a: expected shape \[T\], got \[2, 3\]"):
        check_shapes(a=(a, "T"))


def test_dtypes_and_groups():
    check_dtypes(torch.float32, a=torch.zeros(1))
    with pytest.raises(TypeError, match=r"b: expected dtype torch.int32, got torch.int64"):
        check_dtypes(torch.int32, a=torch.zeros(1).int(), b=torch.zeros(1).long())
    check_groups(32, 2)
    with pytest.raises(ValueError, match="query heads 6 must be a multiple of KV heads 4"):
        check_groups(6, 4)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(KERNELS)))
def test_implementations_do_not_import_each_other(source):
    parts = [one.name.split(".") for one in imports(source.read_text())]
    assert not [names for names in parts if names[0] == "sala_kernels" and IMPLEMENTATIONS & set(names)]
    if source.name == "reference.py":
        assert not [names for names in parts if names[0] in ("triton", "tilelang")]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(KERNELS)))
def test_a_kernel_is_compiled_once_for_all_batches(source):
    """Triton compiles anew for integers that are 1 or multiples of 16; numbers of rows and requests must not do so."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
            varying = {argument.arg for argument in node.args.args} & {"requests", "tokens", "rows", "first_row"}
            options = [option for jit in node.decorator_list for option in getattr(jit, "keywords", ())]
            lists = [option.value for option in options if option.arg == "do_not_specialize"]
            named = {name for names in lists for name in ast.literal_eval(names)}
            assert varying <= named, f"{node.name}: {varying - named} in do_not_specialize"


def test_triton_keeps_the_same_kernels_for_all_batches():
    """As the test above, by Triton's own keys: it specialises integers in tuples whatever do_not_specialize says."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.kernel_keys"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=START_SECONDS)
    assert done.returncode == 0, done.stderr
    for steps in json.loads(done.stdout).values():
        assert len(steps) > 2 and len(steps[0]) > 6
        for step in steps[1:]:
            assert step.keys() == steps[0].keys()
            assert not {kernel for kernel in step if step[kernel] != steps[0][kernel]}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(KERNELS)))
def test_what_runs_on_the_host_has_types(source):
    """mypy is told to let functions of sala_kernels without types be, since it cannot tell which are Triton's."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.FunctionDef) and not any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert all(argument.annotation or argument.arg == "self" for argument in arguments), node.name
            assert node.returns, node.name
