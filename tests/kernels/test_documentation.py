"""The docstrings of sala_kernels: complete, with examples that are true, and the page that is made from them."""

import ast
import doctest
import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest
import sala_kernels
from sala_kernels import layout

ROOT = Path(__file__).parents[2]
MODULES = sorted(module.name for module in pkgutil.walk_packages(sala_kernels.__path__, "sala_kernels."))

# Public functions and classes without an example, and why there is none.
WITHOUT_EXAMPLE = {
    "CudaKernel": "needs a driver",
    "cached_binary": "needs NVRTC, which comes with CUDA builds of torch only",
    "compile_source": "needs NVRTC, which comes with CUDA builds of torch only",
    "tensor_map": "needs a driver",
    "has_cuda_compiler": "differs between machines",
    "pretended": "needs kernels that are compiled, and those of tests are interpreted",
    "launches_of": "needs kernels that are compiled, and those of tests are interpreted",
    "launch_of": "needs kernels that are compiled, and those of tests are interpreted",
}
COMMON_PARAMETERS = {"batch", "geometry", "implementation"}  # explained once, for all operators
DTYPES = re.compile(r"\b(dtype|integers|int32|int64|float32|bfloat16)\b")
SHAPES = re.compile(r"\[[^\]]+\]|any shape")


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script("reference_operators")
SOURCES = [*script.operators(), *script.shared()]
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}
PUBLIC = [node for tree in TREES.values() for node in script.definitions(tree)]
every_definition = pytest.mark.parametrize("node", PUBLIC, ids=lambda node: node.name)


def describe(node: ast.FunctionDef | ast.ClassDef) -> str:
    """The docstring; the test fails where there is none."""
    text = ast.get_docstring(node)
    assert text, f"{node.name}: no docstring"
    return text


def entries(node: ast.FunctionDef | ast.ClassDef) -> dict[str, str]:
    """What the docstring says of each argument that has a line of its own."""
    names = {argument.arg for argument in script.parameters(node)}
    found = [block.split(": ", 1) for kind, block in script.blocks(describe(node), names) if kind == "entry"]
    return {name: text for listed, text in found for name in listed.split(", ")}


def raised_by(trees) -> dict[str, set[str]]:
    """Exceptions that each function, or a function that it calls, raises by name."""
    functions = {node.name: node for tree in trees for node in tree.body if hasattr(node, "name")}
    raised = {}
    for name, node in functions.items():
        calls = [raises.exc for raises in ast.walk(node) if isinstance(raises, ast.Raise) and raises.exc]
        raised[name] = {ast.unparse(call).split("(")[0] for call in calls}
    for _ in functions:
        for name, node in functions.items():
            called = {
                call.func.id for call in ast.walk(node) if isinstance(call, ast.Call) and hasattr(call.func, "id")
            }
            raised[name] = raised[name].union(*(raised[other] for other in called & set(raised)))
    return raised


RAISED = raised_by(TREES.values())


def examples(text: str) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(text)


@pytest.fixture(scope="module")
def example_batch() -> dict:
    """The geometry and the batch that the docstring of layout.py builds."""
    test = doctest.DocTestParser().get_doctest(layout.__doc__, dict(vars(layout)), "layout", None, None)
    doctest.DocTestRunner(verbose=False).run(test, clear_globs=False)
    return {name: test.globs[name] for name in ("geometry", "batch")}


@pytest.mark.parametrize("name", ["sala_kernels", *MODULES])
def test_examples_are_true(name, example_batch):
    module = importlib.import_module(name)
    assert not doctest.testmod(module, extraglobs=example_batch, verbose=False).failed


@every_definition
def test_examples_show_a_result(node):
    text = describe(node)
    shown = any(example.want or example.exc_msg for example in examples(text))
    if script.is_device_function(node) or node.name in WITHOUT_EXAMPLE:
        assert not shown, f"{node.name}: has an example, so it needs no exception"
    else:
        assert shown, f"{node.name}: no example with a result"


def test_exceptions_are_there():
    assert set(WITHOUT_EXAMPLE) <= {node.name for node in PUBLIC}


@every_definition
def test_members_are_described(node):
    for member in script.definitions(node) if isinstance(node, ast.ClassDef) else ():
        describe(member)


@every_definition
def test_arguments_are_described(node):
    if script.is_device_function(node):
        return
    described, prose = entries(node), describe(node).split(">>>")[0]
    for argument in script.parameters(node):
        name, annotation = argument.arg, ast.unparse(argument.annotation)
        if annotation.startswith("torch.Tensor") and name != "tensors":  # these are any number of them
            assert name in described, f"{node.name}: a tensor {name} that is not described"
            assert SHAPES.search(described[name]), f"{node.name}: {name} without a shape"
            assert DTYPES.search(described[name]), f"{node.name}: {name} without a dtype"
        assert name in COMMON_PARAMETERS or re.search(rf"\b{name}\b", prose), f"{node.name}: nothing about {name}"


@every_definition
def test_errors_are_named(node):
    text = describe(node)
    for error in RAISED[node.name]:
        assert re.search(rf"\bRaises?\b[^>]*\b{error}\b", text), f"{node.name}: raises {error}, which it does not say"


@every_definition
def test_results_and_sources_of_operators(node):
    if "implementation" in {argument.arg for argument in script.parameters(node)}:
        text = describe(node)
        assert re.search(r"^Source: ", text, re.MULTILINE), f"{node.name}: no source of its formula"
        written = re.search(r"\bwritten in place\b", text)
        assert re.search(r"^Returns ", text, re.MULTILINE) or written, f"{node.name}: neither returns nor writes"


def test_page_is_what_the_docstrings_say():
    made = script.page()
    assert script.PAGE.read_text() == made, "run python scripts/reference_operators.py"


@pytest.mark.parametrize(
    "page", [script.PAGE, ROOT / "docs" / "explanation" / "selection.md"], ids=lambda page: page.stem
)
def test_links_lead_somewhere(page):
    text = page.read_text()
    anchors = {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in re.findall(r"(?m)^#+ (.+)$", text)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        assert path or anchor in anchors, f"{page.name}: no section {anchor}"
        assert target.startswith("https://") or (page.parent / path).exists(), f"{page.name}: {path} is not there"
