"""Write docs/reference/operators.md from the docstrings of sala_kernels: python scripts/reference_operators.py

Sources are parsed and never imported, so the page is the same with and without torch, Triton and a GPU.
"""

import ast
import os
import re
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "kernels" / "sala_kernels"
PAGE = ROOT / "docs" / "reference" / "operators.md"
IMPLEMENTATIONS = "reference", "triton", "cuda"
FOR_CALLERS = "layout.py", "contract.py"  # the other modules beside the operators serve those who write kernels
SYMBOLS = "Symbols of shapes:\n"  # begins the last part of the package's docstring
HANDED_ON = "Arguments"  # class of what a contract passes on to its implementations; callers never see it
LEADS = "Returns ", "Raises ", "Source: "  # of the paragraphs that follow the arguments
ENTRY = re.compile(r"(\w+(?:, \w+)*): ")
CODE, SHAPE = re.compile(r"``(.+?)``"), re.compile(r"(\w*\[[^\[\]]+\])")
HEAD = """# Operators

What every operator of `sala_kernels` computes, on which shapes and dtypes, what it writes and refuses, and which
implementation serves where. This page is made from the docstrings by `python scripts/reference_operators.py`, and
`tests/kernels/test_documentation.py` runs its examples: change the docstrings, not the page. How an operator is built
is in [CONTRIBUTING.md](../../CONTRIBUTING.md#operators), what selection computes in
[selection](../explanation/selection.md).
"""

Definition = ast.FunctionDef | ast.ClassDef


def main() -> None:
    PAGE.write_text(page())


def operators() -> list[Path]:
    """Sources of the operators' contracts."""
    return sorted(path.with_name("__init__.py") for path in KERNELS.glob("*/reference.py"))


def shared() -> list[Path]:
    """Sources of what operators share, what their callers need in front."""
    callers = [KERNELS / name for name in FOR_CALLERS]
    return callers + sorted(set(KERNELS.glob("*.py")) - {*callers, KERNELS / "__init__.py"})


def definitions(tree: ast.Module | ast.ClassDef) -> list[Definition]:
    """Public functions and classes, or the public members of a class."""
    named = [node for node in tree.body if isinstance(node, Definition)]
    return [node for node in named if not node.name.startswith("_") and node.name != HANDED_ON]


def parameters(node: Definition) -> list[ast.arg]:
    """Parameters of a function; those of a class are its fields, or what its __init__ takes."""
    if isinstance(node, ast.FunctionDef):
        several = [argument for argument in (node.args.vararg, node.args.kwarg) if argument]
        return [*node.args.args, *node.args.kwonlyargs, *several]
    fields = [
        ast.arg(ast.unparse(field.target), field.annotation) for field in node.body if isinstance(field, ast.AnnAssign)
    ]
    inits = [member for member in node.body if isinstance(member, ast.FunctionDef) and member.name == "__init__"]
    return fields + [argument for init in inits for argument in parameters(init)[1:]]


def is_device_function(node: Definition) -> bool:
    """Whether only Triton kernels can call it."""
    return any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list)


def blocks(docstring: str, names: Set[str]) -> Iterator[tuple[str, str]]:
    """Kind and text of what follows each other: "example", "paragraph", "bullet", or "entry", ``name: text``.

    An entry has some of ``names`` in front. It and a bullet go on in lines that are indented.
    """
    kind = ""
    lines: list[str] = []
    for line in [*docstring.splitlines(), ""]:
        if kind == "example":
            goes_on = bool(line)
        elif kind in ("entry", "bullet"):
            goes_on = line.startswith(" ")
        else:
            goes_on = bool(line) and not _kind(line, names)
        if lines and not goes_on:
            yield kind, "\n".join(lines)
            lines = []
        if line:
            kind = kind if lines else _kind(line, names) or "paragraph"
            lines.append(line)


def _kind(line: str, names: Set[str]) -> str:
    """Kind of what the line begins whatever stands before it, if anything."""
    entry = ENTRY.match(line)
    if entry and set(entry[1].split(", ")) <= names:
        return "entry"
    kinds = {">>>": "example", "* ": "bullet"} | dict.fromkeys(LEADS, "paragraph")
    return next((kind for start, kind in kinds.items() if line.startswith(start)), "")


class Writer:
    """Markdown of sources, in which the names of what is documented are links to its sections."""

    def __init__(self, trees: dict[Path, ast.Module]):
        self.trees = trees
        anchors = {node.name: node.name.lower() for tree in trees.values() for node in definitions(tree)}
        anchors |= {_module(path): _module(path).replace(".", "") for path in trees}
        self.link = {name: f"[`{name}`](#{anchor})" for name, anchor in anchors.items()}
        longest_first = "|".join(map(re.escape, sorted(anchors, key=len, reverse=True)))
        self.name = re.compile(rf"(?<![\w.=])({longest_first})(?![\w(=])")

    def inline(self, text: str) -> str:
        """Text with code between double backticks, shapes and documented names, on one line."""
        pieces = CODE.split(re.sub(r"\s*\n\s*", " ", text))
        pieces[1::2] = [self.link.get(code, f"`{code}`") for code in pieces[1::2]]
        pieces[::2] = [self.prose(piece) for piece in pieces[::2]]
        return "".join(pieces)

    def prose(self, text: str) -> str:
        pieces = SHAPE.split(text)
        pieces[1::2] = [f"`{shape}`" for shape in pieces[1::2]]
        pieces[::2] = [self.name.sub(lambda match: self.link[match[1]], piece) for piece in pieces[::2]]
        return "".join(pieces)

    def docstring(self, docstring: str, names: Set[str] = frozenset()) -> str:
        """A docstring of something whose arguments or fields are ``names``."""
        text, before = "", ""
        for kind, block in blocks(docstring, names):
            text += "\n" if kind == before and kind in ("entry", "bullet") else "\n\n"
            text += self.block(kind, block)
            before = kind
        return text.strip() + "\n"

    def block(self, kind: str, text: str) -> str:
        if kind == "example":
            return f"```pycon\n{text}\n```"
        if kind == "bullet":
            return f"- {self.inline(text[2:])}"
        if kind == "entry":
            entry, text = text.split(": ", 1)
            return f"- {', '.join(f'`{name}`' for name in entry.split(', '))}: {self.inline(text)}"
        lead = next((lead for lead in LEADS if text.startswith(lead)), "")
        return (f"**{lead.strip()}** " if lead else "") + self.inline(text[len(lead) :])

    def module(self, path: Path) -> str:
        """Section of one source: what it says of itself, its constants, implementations, functions and classes."""
        tree = self.trees[path]
        text = f"## {_module(path)}\n\nFile: {_source_link(path)}\n\n{self.docstring(described(tree))}\n"
        if constants := _constants(path, tree):
            text += f"```python\n{constants}\n```\n\n"
        if path in operators():
            text += self.implementations(path) + "\n"
        return text + "\n".join(self.definition(path, node) for node in definitions(tree))

    def definition(self, path: Path, node: Definition) -> str:
        """Section of one function or class."""
        names = {argument.arg for argument in parameters(node)}
        text = f"### {node.name}\n\n```python\n{_signature(path, node)}\n```\n\n"
        text += "Inside Triton kernels only. " if is_device_function(node) else ""
        text += self.docstring(described(node), names)
        members = definitions(node) if isinstance(node, ast.ClassDef) else []
        rows = [f"| `{_member(member)}` | {self.inline(described(member))} |" for member in members]
        return text + ("\n" + _table(("member", "what it is"), rows) if rows else "")

    def implementations(self, path: Path) -> str:
        """Table of an operator's implementations and where they serve."""
        there = _implementations(path)
        serves = {
            "reference": "tensors that are not on a CUDA device",
            "triton": "tensors on CUDA devices" + (", where `cuda` does not serve" if "cuda" in there else ""),
            "cuda": f"where {self.link.get('is_compiled_for')} is true",
        }
        rows = []
        for name in there:
            source = path.with_name(f"{name}.py")
            how = self.inline(_summary(ast.parse(source.read_text())))
            rows.append(f"| {_source_link(source, name)} | {serves[name]} | {how} |")
        return _table(("implementation", "serves", "how"), rows)

    def overview(self) -> str:
        """Table of the functions that implementations compute."""
        rows = []
        for path in operators():
            for node in definitions(self.trees[path]):
                if "implementation" in {argument.arg for argument in parameters(node)}:
                    there = ", ".join(_implementations(path))
                    rows.append(f"| {self.link[node.name]} | {self.inline(_summary(node))} | {there} |")
        return _table(("operator", "what it does", "implementations"), rows)


def page() -> str:
    """The whole page."""
    layout, *others = shared()
    sections = [layout, *operators(), *others]
    writer = Writer({path: ast.parse(path.read_text()) for path in sections})
    about, symbols = described(ast.parse((KERNELS / "__init__.py").read_text())).split(SYMBOLS)
    entries = (line.split(": ", 1) for line in symbols.split("\n") if line)
    rows = [f"| `{symbol}` | {writer.inline(size)} |" for symbol, size in entries]
    head = [HEAD, writer.docstring(about), writer.overview(), _table(("symbol of shapes", "size"), rows)]
    return "\n".join([*head, *map(writer.module, sections)])


def _table(names: Sequence[str], rows: list[str]) -> str:
    """A table of lines below the names of its columns."""
    return "\n".join([f"| {' | '.join(names)} |", "|---" * len(names) + "|", *rows]) + "\n"


def described(node: ast.FunctionDef | ast.ClassDef | ast.Module) -> str:
    """The docstring; empty where there is none."""
    return ast.get_docstring(node) or ""


def _summary(node: ast.FunctionDef | ast.ClassDef | ast.Module) -> str:
    return described(node).split("\n\n")[0]


def _module(path: Path) -> str:
    module = path.parent if path.name == "__init__.py" else path.with_suffix("")
    return ".".join(module.relative_to(KERNELS.parent).parts)


def _implementations(path: Path) -> list[str]:
    return [name for name in IMPLEMENTATIONS if path.with_name(f"{name}.py").exists()]


def _source_link(path: Path, name: str | None = None) -> str:
    return f"[`{name or path.relative_to(KERNELS.parent)}`]({os.path.relpath(path, PAGE.parent)})"


def _signature(path: Path, node: Definition) -> str:
    """Source of a function up to its docstring; of a class the fields and the like of its __init__."""
    lines = path.read_text().splitlines()
    text = lines[node.lineno - 1 : node.body[0].lineno - 1]
    for member in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(member, ast.AnnAssign):
            text += lines[member.lineno - 1 : member.end_lineno]
        elif isinstance(member, ast.FunctionDef) and member.name == "__init__":
            text += lines[member.lineno - 1 : member.body[0].lineno - 1]
    return "\n".join(text)


def _member(node: Definition) -> str:
    if any(ast.unparse(decorator) == "property" for decorator in node.decorator_list):
        return node.name
    return f"{node.name}({', '.join(argument.arg for argument in parameters(node)[1:])})"


def _constants(path: Path, tree: ast.Module) -> str:
    """Source of the public constants."""
    lines, text = path.read_text().splitlines(), []
    for node in tree.body:
        if isinstance(node, ast.Assign) and re.match(r"\(?[A-Z]", ast.unparse(node.targets[0])):
            text += lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(text)


if __name__ == "__main__":
    main()
