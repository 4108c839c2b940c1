"""The container recipe, without building it: its files are there, and its versions are those of the project."""

import re
import shlex
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sala_sglang import TESTED_SGLANG_VERSIONS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = {"ARG", "FROM", "RUN", "ENV", "COPY", "USER", "VOLUME", "EXPOSE", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """Commands of the Dockerfile and what follows them, with lines joined and comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(command, text) for command, _, text in (line.partition(" ") for line in joined.splitlines() if line)]


def installed() -> dict[str, str]:
    """Pinned packages by name, of every ``pip install``."""
    runs = [text for command, text in instructions() if command == "RUN"]
    words = [word for text in runs if text.startswith("pip install") for word in shlex.split(text)[2:]]
    return dict(word.split("==") for word in words if "==" in word)


def arguments() -> dict[str, str]:
    return dict(text.split("=") for command, text in instructions() if command == "ARG" and "=" in text)


def test_every_line_is_an_instruction():
    assert {command for command, _ in instructions()} == COMMANDS


def test_versions_are_those_of_the_project():
    pins = installed()
    assert pins["sglang"] == TESTED_SGLANG_VERSIONS[-1]
    assert SpecifierSet(PROJECT["requires-python"]).contains(arguments()["PYTHON_VERSION"])
    named = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert "sglang" in named and "cuda-bindings" in named


def test_nvcc_belongs_to_the_headers_of_torch():
    pins = installed()
    compilers = {pins[name] for name in ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm")}
    assert len(compilers) == 1
    headers = version("nvidia-cuda-runtime")
    assert compilers.pop().rsplit(".", 1)[0] == headers.rsplit(".", 1)[0] == f"{torch.version.cuda}"


def test_files_that_are_copied_are_sent_to_the_build():
    sent = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")]
    copied = [text.split()[:-1] for command, text in instructions() if command == "COPY" and "--from" not in text]
    names = [name for group in copied for name in group]
    assert sorted(names) == sorted(sent) and all((ROOT / name).exists() for name in names)
    licences = [*PROJECT["license-files"], PROJECT["readme"], "pyproject.toml"]
    assert set(licences) <= set(names), "what the build of the package reads"


def test_both_stages_have_the_same_python():
    images = [text.split()[0] for command, text in instructions() if command == "FROM"]
    assert len(images) == 2 and len(set(images)) == 1 and "${PYTHON_VERSION}" in images[0]
    environment = " ".join(text for command, text in instructions() if command == "ENV")
    assert "CUDA_HOME=/opt/venv/lib/python${PYTHON_VERSION}/site-packages/nvidia/cu13" in environment


@pytest.mark.parametrize("option", ["--host", "--port", "--trust-remote-code", "--model-path"])
def test_the_command_is_that_of_the_documents(option):
    started = " ".join(text for command, text in instructions() if command in ("ENTRYPOINT", "CMD"))
    assert '["sglang", "serve"' in started and f'"{option}"' in started
    assert any(command == "EXPOSE" and f'"{port}"' in started for command, port in instructions())
