"""The prefix cache keeps its tree in Python where torch is not the one that SGLang's wheel was compiled against."""

import os

import pytest

from sala_sglang import tree_core


@pytest.fixture
def choice(monkeypatch):
    """What is chosen with a version of torch, for a wheel that requires torch 2.14.1."""
    monkeypatch.setattr(tree_core, "requires", lambda package: ["numpy", "torch==2.14.1", "torchvision"])

    def choose(torch_version: str, chosen: str | None = None) -> str | None:
        monkeypatch.delenv(tree_core.VARIABLE, raising=False)
        if chosen:
            monkeypatch.setenv(tree_core.VARIABLE, chosen)
        monkeypatch.setattr(tree_core, "version", lambda package: torch_version)
        tree_core.use_python_with_another_torch()
        return os.environ.get(tree_core.VARIABLE)

    return choose


def test_python_with_another_torch(choice, caplog):
    assert choice("2.11.0+cu130") == "python"
    assert "torch 2.11.0+cu130 is not what SGLang was built for (==2.14.1)" in caplog.text


@pytest.mark.parametrize("installed", ["2.14.1", "2.14.1+cu130", "2.14.1+cpu"])
def test_sglangs_choice_with_its_own_torch(choice, installed):
    assert choice(installed) is None


def test_the_users_choice_stays(choice):
    assert choice("2.11.0", chosen="rust") == "rust"


def test_sglang_requires_a_torch(monkeypatch):
    monkeypatch.delenv(tree_core.VARIABLE, raising=False)
    tree_core.use_python_with_another_torch()
    assert tree_core.VARIABLE not in os.environ  # the test environment has the torch that SGLang requires
