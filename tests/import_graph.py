"""Which module imports which, read from the sources without running them."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Top-level packages by the directory that they lie in.
PACKAGES = {
    "sala_sglang": ROOT,
    "sala_kernels": ROOT / "kernels",
    "benchmarks": ROOT,
    "testing": ROOT,
    "training": ROOT,
    "tests": ROOT,
}
ALWAYS, LAZY, CHECKER = "when it is imported", "in a function", "for type checkers alone"


@dataclass(frozen=True)
class Import:
    """The absolute name that a statement asks for, a module or something in one, and when: ALWAYS, LAZY or CHECKER."""

    name: str
    when: str


def sources(packages: Iterable[str]) -> dict[str, Path]:
    """Files of the modules of ``packages``, by name; a package stands for its ``__init__``."""
    found = {}
    for package in packages:
        for path in sorted((PACKAGES[package] / package).rglob("*.py")):
            parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: str) -> set[Import]:
    """Everything that ``source`` imports. Raises ValueError on a relative import, which this project does not use."""
    return set(_imports(ast.parse(source), ALWAYS))


def _imports(node: ast.AST, when: str) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, when) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        if node.level or node.module is None:
            raise ValueError(f"line {node.lineno}: a relative import; allowed: absolute ones")
        yield from (Import(f"{node.module}.{alias.name}", when) for alias in node.names)
    elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for statement in node.body:
            yield from _imports(statement, CHECKER)
        for statement in node.orelse:
            yield from _imports(statement, when)
    else:
        inside_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and when == ALWAYS
        for part in ast.iter_child_nodes(node):
            yield from _imports(part, LAZY if inside_function else when)


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def graph(texts: dict[str, str], kinds: tuple[str, ...]) -> dict[str, set[str]]:
    """The modules of ``texts``, sources by name, that each of them imports by imports of these ``kinds``.

    ``from package import module`` is an import of the module. Importing a module also runs the packages around it, but
    for those that the importing module is in itself: they have begun to run before it.
    """
    edges: dict[str, set[str]] = {}
    for module, text in texts.items():
        reached: set[str] = set()
        for one in imports(text):
            if one.when in kinds:
                name = one.name if one.name in texts else one.name.rpartition(".")[0]
                parts = name.split(".")
                around = (".".join(parts[:count]) for count in range(1, len(parts)))
                reached |= {name, *(package for package in around if not is_in(module, package))}
        edges[module] = (reached & texts.keys()) - {module}
    return edges


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Modules of which each imports the next one, the first again at the end; empty where there is no circle."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []
