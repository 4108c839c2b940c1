"""The ledger: complete, true of the installed SGLang, and printed as it stands."""

import ast
import importlib
import inspect
import json
import pkgutil
import re
import runpy
import subprocess
from pathlib import Path

import pytest

import sala_sglang
from sala_sglang import environment, hf
from sala_sglang.plugin.touches import HOOK_TARGETS, TARGETS, TOUCHES
from sala_sglang.plugin.touches.touch import (
    EVERY,
    FRONTEND,
    HOOKS,
    MEANS,
    PRIVATE,
    PROCESSES,
    REGISTRY,
    REPLACED,
    SUBCLASS,
    VARIABLE,
    WORKER,
)
from tests.plugin.processes import run_python

ROOT = Path(__file__).parents[2]
PACKAGE = Path(sala_sglang.__file__).parent
ROOMS = ("plugin", "attention", "models", "quantization", "speculation")
OFFLINE = {"writer", "comparison", "weights.py"}  # of commands, which touch nothing
SERVING = [path for folder in ROOMS for path in sorted((PACKAGE / folder).rglob("*.py")) if not OFFLINE & {*path.parts}]
LEDGER = PACKAGE / "plugin" / "touches"
# Every step that registers something, with a recorder in place of SGLang's registry of hooks and of its application.
STEPS = """
import json
from types import SimpleNamespace
from sala_sglang.config import SALAConfig
from sala_sglang.plugin import cpu, entry_point, hooks, http_requests, worker
from sglang.srt import runtime_context
from sglang.srt.lora import layers
from sglang.srt.mem_cache import allocation
from sglang.srt.lora.backend import torch_backend
from sglang.srt.mem_cache import memory_pool_host
from sglang.srt.mem_cache.pool_host import base, common, mamba, mha
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.kernels.ops.speculative import cache_locs
from sglang.srt.layers.rotary_embedding import base as rotary
from sglang.srt.speculative import eagle_utils, eagle_worker_common, eagle_worker_v2

MODULES = memory_pool_host, base, common, mamba, mha, layers, torch_backend, allocation
MODULES += eagle_utils, eagle_worker_common, eagle_worker_v2, cache_locs, rotary
found, registered = {}, []
HookRegistry.register = lambda target, function, kind: registered.append((target, "hook " + kind.value))
HookRegistry.apply_hooks = hooks.check_hooks = lambda: None
runtime_context.get_memory = lambda: SimpleNamespace(enable_hierarchical_cache=True)
runtime_context.get_lora = lambda: SimpleNamespace(enable_lora=True)
runtime_context.get_parallel = lambda: SimpleNamespace(pp_size=2)
runtime_context.get_spec = lambda: SimpleNamespace(speculative_algorithm="EAGLE3")
cpu.without_cuda = lambda: True
worker.check_resolution = worker.agree_on_options = lambda: None  # there are no server and no ranks

def step(process, function, *arguments):
    registered.clear()
    function(*arguments)
    found[process] = list(registered)

step("every process", entry_point._register)
step("frontend", http_requests.prepare_frontend)
before = {(module.__name__, name): value for module in MODULES for name, value in vars(module).items()}
for mode in ("prefill", "decode"):
    runtime_context.get_disagg = lambda: SimpleNamespace(disaggregation_mode=mode)
    worker._done.clear()
    step(mode, worker.prepare_worker, SALAConfig())
found["workers"] = found.pop("prefill") + found.pop("decode")
after = {(module.__name__, name): value for module in MODULES for name, value in vars(module).items()}
found["replaced"] = [".".join(key) for key, value in after.items() if before.get(key) is not value]
print("RESULT" + json.dumps(found))
"""


def ledger(*means: str) -> dict[str, object]:
    """Touches of these means by their targets."""
    return {touch.target: touch for touch in TOUCHES if touch.how in means}


@pytest.fixture(scope="module")
def steps() -> dict[str, list]:
    done = run_python(STEPS)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stderr
    return json.loads(lines[0].removeprefix("RESULT"))


def test_entries_are_whole():
    assert len(TARGETS) == len(TOUCHES), "a target stands twice"
    for touch in TOUCHES:
        assert touch.why and touch.until, touch.target
        assert touch.process in PROCESSES and touch.how in MEANS, touch.target
        assert not touch.upstream or re.fullmatch(r"sgl-project/sglang#[1-9]\d*", touch.upstream), touch.target
        assert bool(touch.names) == (touch.how == SUBCLASS) or touch.how in HOOKS, touch.target
        for text in (touch.why, touch.until, touch.when):
            assert text == text.strip() and "|" not in text and "\n" not in text, touch.target


@pytest.mark.parametrize("process", [EVERY, FRONTEND, WORKER])
def test_hooks_are_those_that_the_process_registers(process, steps):
    listed = {(touch.target, touch.how) for touch in ledger(*HOOKS).values() if touch.process == process}
    assert {tuple(pair) for pair in steps[process]} == listed


def test_replaced_attributes_are_those_that_a_worker_replaces(steps):
    assert set(steps["replaced"]) == set(ledger(REPLACED))


def resolve(target: str):
    """What a dotted path leads to, by importing as much of it as is a module."""
    hf.register()  # SGLang's imports take the model's type for its own configuration
    return pkgutil.resolve_name(target)


@pytest.mark.parametrize("target", sorted(set(TARGETS) - set(ledger(VARIABLE, REPLACED))))
def test_targets_are_there(target):
    resolve(target)


@pytest.mark.parametrize("target", sorted(ledger(REPLACED)))
def test_replaced_attributes_are_there(target):
    """SGLang imports its copies only where there is an accelerator: that it calls them, its source tells anywhere."""
    module, name = target.rsplit(".", 1)
    source = inspect.getsource(importlib.import_module(module))
    assert re.search(rf"(?<![\w.]){name}\b", source)


@pytest.mark.parametrize("name", sorted(ledger(VARIABLE)))
def test_variables_are_known_to_sglang(name):
    from sglang.srt.distributed import utils
    from sglang.srt.environ import envs

    assert hasattr(envs, name) or f'"{name}"' in inspect.getsource(utils)


def subclasses() -> list[type]:
    """The classes in these rooms that inherit from one of SGLang's."""
    found = []
    for path in SERVING:
        module = importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == module.__name__ and bases(value):
                found.append(value)
    return found


def bases(cls: type) -> list[type]:
    return [base for base in cls.__mro__ if base.__module__.startswith("sglang.")]


def test_subclasses_are_listed_with_what_they_override():
    hf.register()
    found = {}
    for cls in subclasses():
        ours = {name for part in cls.__mro__ if part.__module__.startswith("sala_sglang.") for name in vars(part)}
        theirs = {name for part in bases(cls) for name in vars(part)}
        overridden = {name for name in ours & theirs if not name.startswith("__") and name != "_abc_impl"}
        base = bases(cls)[0]
        found[f"{base.__module__}.{base.__qualname__}"] = overridden
    listed = ledger(SUBCLASS)
    assert set(found) == set(listed)
    for target, overridden in found.items():
        called = set(listed[target].names) - overridden
        assert overridden <= set(listed[target].names), target
        assert all(hasattr(resolve(target), name) for name in called), target


def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def private_names() -> set[str]:
    """Attributes with an underscore that the file in which they are read does not have itself."""
    found = set()
    for path in SERVING:
        nodes = list(ast.walk(syntax(path)))
        own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
        read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        read |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
        found |= {name for name in read - own if name.startswith("_") and not name.startswith("__")}
        found |= {name for name in read & own if f"super().{name}(" in path.read_text()}
    return found


def test_private_names_are_listed():
    listed = {part for touch in TOUCHES for part in (touch.target.rsplit(".", 1)[-1], *touch.names)}
    of_python = {"_replace", "_option_string_actions"}  # of named tuples and argparse
    assert private_names() - of_python <= listed
    assert {target.rsplit(".", 1)[-1] for target in ledger(PRIVATE)} <= private_names()


def test_variables_are_listed():
    """Names of SGLang's variables in the code; doctor only reports SGLANG_PLUGINS."""
    files = [path for path in (*SERVING, Path(environment.__file__)) if LEDGER not in path.parents]
    constants = [node.value for path in files for node in ast.walk(syntax(path)) if isinstance(node, ast.Constant)]
    found = {value for value in constants if isinstance(value, str) and re.fullmatch(r"SGLANG_\w+", value)}
    assert found == set(ledger(VARIABLE))


def test_registries_are_used():
    """Each registry's name stands in the code, or is the group of the entry point."""
    code = "\n".join(path.read_text() for path in SERVING if LEDGER not in path.parents)
    code += (ROOT / "pyproject.toml").read_text()
    for target in ledger(REGISTRY):
        *_, owner, name = target.split(".")
        assert re.search(rf"\b{owner}\.{name}\b|import .*\b{name}\b", code), target


def test_page_is_what_the_script_makes():
    script = runpy.run_path(str(ROOT / "scripts" / "reference_compatibility.py"))
    assert script["PAGE"].read_text() == script["page"](), "run python scripts/reference_compatibility.py"


def test_checkout_installs_the_newest_tested_sglang():
    """The scripts read the version from the package, so that it stands in one place."""
    command = ["bash", "-c", "source scripts/setup_env.sh && echo $SGLANG_VERSION"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == sala_sglang.TESTED_SGLANG_VERSIONS[-1]


def test_other_files_name_the_tested_versions():
    assert f'"sglang>={sala_sglang.TESTED_SGLANG_VERSIONS[0]}"' in (ROOT / "pyproject.toml").read_text()
    pinned = re.findall(r"sglang==([0-9.a-z]+)", (ROOT / "README.md").read_text())
    assert set(pinned) <= {sala_sglang.TESTED_SGLANG_VERSIONS[-1]}


def test_hooks_are_refused_with_another_kind():
    from sala_sglang.plugin.hooks import hook_after

    around = next(target for target, how in HOOK_TARGETS.items() if how == "hook around")
    with pytest.raises(KeyError, match=r"is not in the ledger, .* as 'hook after'"):
        hook_after({around: print})
