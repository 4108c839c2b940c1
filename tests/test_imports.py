"""Who may import whom: no circles, and one way from what is measured and tested to what is installed."""

import ast
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.import_graph import ALWAYS, LAZY, PACKAGES, ROOT, circle, graph, imports, is_in, sources
from tests.plugin.processes import run_python

INSTALLED = ("sala_sglang", "sala_kernels")
BESIDE = ("benchmarks", "testing", "tests", "training")
KERNELS_KNOW = {"torch", "triton", "tilelang", "cuda", "sala_kernels", *sys.stdlib_module_names}
WITHOUT_PLUGIN = tuple(
    f"sala_sglang.{room}"
    for room in ("ahead", "attention", "checkpoint", "evaluation", "hf", "models", "quantization", "speculation")
)
MODULES = sources(PACKAGES)


def python_files() -> list[Path]:
    """All of the repository, without environments and caches, whose names begin with a dot, and what was built."""
    tops = [top for top in ROOT.iterdir() if not top.name.startswith(".") and top.name not in ("build", "dist")]
    return [path for top in tops for path in ([top] if top.suffix == ".py" else sorted(top.rglob("*.py")))]


def imports_of(*packages: str, forbidden: Callable[[str], bool]) -> dict[str, set[str]]:
    """The names that ``forbidden`` picks out of what the modules of ``packages`` import, by module."""
    found = {name: path for name, path in MODULES.items() if any(is_in(name, package) for package in packages)}
    assert set(packages) <= found.keys()
    wrong = {
        name: {one.name for one in imports(path.read_text()) if forbidden(one.name)} for name, path in found.items()
    }
    return {name: names for name, names in wrong.items() if names}


@pytest.mark.parametrize("kinds", [(ALWAYS,), (ALWAYS, LAZY)], ids=["at the top", "in functions too"])
def test_no_module_imports_itself_by_way_of_others(kinds):
    texts = {module: path.read_text() for module, path in MODULES.items()}
    found = circle(graph(texts, kinds))
    assert not found, " imports ".join(found)


@pytest.mark.parametrize(
    ("texts", "kinds", "expected"),
    [
        ({"a": "import b", "b": "import a"}, (ALWAYS,), {"a", "b"}),
        ({"a": "import b", "b": "from a import name"}, (ALWAYS,), {"a", "b"}),
        ({"a": "import b", "b": "def f():\n    import a"}, (ALWAYS,), set()),
        ({"a": "import b", "b": "def f():\n    import a"}, (ALWAYS, LAZY), {"a", "b"}),
        ({"a": "if TYPE_CHECKING:\n    import b", "b": "import a"}, (ALWAYS, LAZY), set()),
        ({"a": "if TYPE_CHECKING:\n    x = 1\nelse:\n    import b", "b": "import a"}, (ALWAYS,), {"a", "b"}),
        ({"a": "try:\n    import b\nfinally:\n    x = 1", "b": "class C:\n    import a"}, (ALWAYS,), {"a", "b"}),
        # A package and its modules.
        ({"a": "from a.b import name", "a.b": ""}, (ALWAYS,), set()),
        ({"a": "from a.b import name", "a.b": "from a import c", "a.c": ""}, (ALWAYS,), set()),
        ({"a": "from a.b import name", "a.b": "from a import other"}, (ALWAYS,), {"a", "a.b"}),
        ({"a": "from a.b import name", "a.b": "import a"}, (ALWAYS,), {"a", "a.b"}),
        ({"a": "", "a.b": "from a import c", "a.c": "import a.b"}, (ALWAYS,), {"a.b", "a.c"}),
        # Importing a module runs the package that it is in.
        ({"a": "import b", "a.c": "", "b": "import a.c"}, (ALWAYS,), {"a", "b"}),
    ],
)
def test_circles_are_found(texts, kinds, expected):
    edges = graph(texts, kinds)
    found = circle(edges)
    assert set(found) == expected
    assert all(after in edges[before] for before, after in pairwise(found))


def test_kernels_know_only_torch_triton_and_cuda():
    assert not imports_of("sala_kernels", forbidden=lambda name: name.split(".")[0] not in KERNELS_KNOW)


def test_model_attention_and_evaluation_know_no_plugin():
    assert not imports_of(*WITHOUT_PLUGIN, forbidden=lambda name: is_in(name, "sala_sglang.plugin"))


def test_what_is_installed_needs_nothing_that_is_not():
    assert not imports_of(*INSTALLED, forbidden=lambda name: name.split(".")[0] in BESIDE)


def path_changes(source: str) -> set[str]:
    """What ``source`` says of the list of places where modules are looked for."""
    names = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    names |= {one.name for one in imports(source)}
    return {name for name in names if name == "sys.path" or name.split(".")[-1] in ("syspath_prepend", "addsitedir")}


def test_nobody_changes_where_modules_are_looked_for():
    found = {path.relative_to(ROOT): path_changes(path.read_text()) for path in python_files()}
    assert len(found) > len(MODULES)
    assert not {path: changes for path, changes in found.items() if changes}


def test_importing_the_model_registers_nothing():
    code = (
        "import sys\n"
        "import sala_sglang.models.minicpm_sala\n"
        "from sglang.srt.arg_groups import choices\n"
        "from sglang.srt.configs.linear_attn_model_registry import get_linear_attn_spec_by_arch\n"
        "from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS\n"
        "from sglang.srt.plugins.hook_registry import HookRegistry\n"
        "from sala_sglang.config import ARCHITECTURE\n"
        "plugin = [name for name in sys.modules if name.startswith('sala_sglang.plugin')]\n"
        "spec = get_linear_attn_spec_by_arch(ARCHITECTURE)\n"
        "listed = 'sala' in choices.ATTENTION_BACKEND_CHOICES, 'sala' in ATTENTION_BACKENDS\n"
        "print('FOUND', plugin, spec, *listed, dict(HookRegistry._hooks))\n"
    )
    done = run_python(code)
    assert "FOUND [] None False False {}\n" in done.stdout, done.stdout + done.stderr
