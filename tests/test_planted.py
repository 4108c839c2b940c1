"""The list of planted mistakes does not rot: what it changes is there once, and so are its tests."""

import ast
from pathlib import Path

import pytest

from tests.planted import MISTAKES
from tests.planted.mistake import Mistake

ROOT = Path(__file__).parents[1]


def test_names_are_unique_and_show_in_a_table():
    names = [mistake.name for mistake in MISTAKES]
    assert len(set(names)) == len(names) >= 40
    assert not any("|" in name for name in names)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_can_be_planted(mistake: Mistake):
    text = (ROOT / mistake.file).read_text()
    assert text.count(mistake.old) == 1 and mistake.old != mistake.new
    if mistake.file.endswith(".py"):
        ast.parse(text.replace(mistake.old, mistake.new))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_the_test_of_a_mistake_is_there(mistake: Mistake):
    file, _, name = mistake.test.partition("::")
    functions = {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert not name or name.split("[")[0] in functions
