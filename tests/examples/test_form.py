"""What every example has: few lines, a docstring that says how it is run, a name of its own, and a test."""

import ast
import importlib.util
from pathlib import Path

import pytest

from tests.examples.conftest import EXAMPLES

MAX_LINES = 40
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
TESTS = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
every_example = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)


@every_example
def test_examples_are_short_and_say_how_they_are_run(path):
    text = path.read_text()
    assert len(text.splitlines()) < MAX_LINES
    assert f"``python examples/{path.name}" in (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]


@every_example
def test_examples_hide_no_package(path):
    """Python looks for modules beside the script that it runs before it looks anywhere else."""
    assert importlib.util.find_spec(path.stem) is None


@every_example
def test_examples_have_a_test(path):
    assert f'{path.stem}"' in TESTS


@every_example
def test_examples_are_listed(path):
    assert f"[{path.name}]({path.name})" in (EXAMPLES / "README.md").read_text()
