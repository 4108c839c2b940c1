"""What is chosen by compute capability: paths, which can be forced where they are possible, and launch options."""

import ast
from pathlib import Path

import pytest
import torch
from sala_kernels import targets
from sala_kernels.dependent_launch import dependent_launch
from sala_kernels.sparse_attention import is_compiled_for
from sala_kernels.targets import CHOICES, LIMITS, PATHS, force, known, launch_options, uses

KERNELS = Path(targets.__file__).parent
GPU = torch.device("cuda")
# As it was decided before there was a table.
CHOSEN = {
    "shared_blocks": [(9, 0)],
    "early_launch": [(9, 0), (10, 0), (10, 3), (12, 0)],
    "skinny_linear": [(9, 0)],
    "float8_rows": [(9, 0)],
}


@pytest.fixture
def pretend(monkeypatch):
    monkeypatch.setattr(targets, "_forced", {})

    def of(capability):
        monkeypatch.setattr(targets, "capability", lambda device: capability if device.type == "cuda" else None)

    return of


@pytest.mark.parametrize("capability", [*LIMITS, (8, 7), (12, 1), (7, 5)], ids=str)
def test_paths_by_capability(pretend, capability):
    pretend(capability)
    assert {path: uses(path, GPU) for path in PATHS} == {path: known(capability) in CHOSEN[path] for path in PATHS}
    assert not any(uses(path, torch.device("cpu")) for path in PATHS)


def test_a_forced_path_is_taken_and_left(pretend):
    pretend((12, 0))
    sizes = torch.bfloat16, 128, 16, 64
    assert not is_compiled_for(GPU, *sizes) and dependent_launch(GPU) == {"DEPENDENT": True, "launch_pdl": True}
    force({"shared_blocks": True, "early_launch": False}, GPU)
    assert is_compiled_for(GPU, *sizes) and dependent_launch(GPU) == {"DEPENDENT": False}
    assert not uses("skinny_linear", GPU)
    force({"shared_blocks": False}, GPU)
    assert not is_compiled_for(GPU, *sizes) and dependent_launch(GPU) == {"DEPENDENT": False}


def test_what_cannot_be_forced_is_refused(pretend):
    pretend((8, 9))
    with pytest.raises(
        ValueError, match=r"'shared_blocks' needs compute capability 9\.0, 10\.0, 10\.3, 12\.0; this GPU has 8\.9"
    ):
        force({"skinny_linear": True, "shared_blocks": True}, GPU)
    assert not uses("skinny_linear", GPU), "nothing is forced where something is refused"
    with pytest.raises(
        ValueError, match="'tma' is no path; allowed: shared_blocks, early_launch, skinny_linear, float8_rows"
    ):
        force({"tma": True}, GPU)
    force({"shared_blocks": False, "skinny_linear": True}, GPU)
    assert uses("skinny_linear", GPU)


def test_hopper_is_launched_as_it_was_measured(pretend):
    pretend((9, 0))
    assert not [choice for choice in CHOICES if (9, 0) in choice.capabilities]
    for choice in CHOICES:
        assert launch_options(choice.kernel, GPU, num_warps=4, num_stages=2) == {"num_warps": 4, "num_stages": 2}


def test_every_choice_has_its_launch_and_its_reason():
    texts = [path.read_text() for path in KERNELS.rglob("*.py")]
    calls = [node for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    chosen = {ast.literal_eval(call.args[0]) for call in calls if ast.unparse(call.func) == "launch_options"}
    assert chosen == {choice.kernel for choice in CHOICES}
    for choice in CHOICES:
        assert choice.reason.startswith(("measured: ", "derived: ")) and set(choice.capabilities) <= LIMITS.keys()


def test_options_of_other_gpus(pretend):
    pretend((8, 0))
    assert launch_options("_walk_kernel", GPU, num_warps=4, num_stages=2) == {"num_warps": 8, "num_stages": 2}
    pretend((8, 7))
    assert launch_options("_walk_kernel", GPU, num_warps=4) == {"num_warps": 8}
    pretend((12, 1))
    assert launch_options("_walk_kernel", GPU, num_warps=4) == {"num_warps": 4}
